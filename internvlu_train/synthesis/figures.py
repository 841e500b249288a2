"""What the domains of drawn figures share: samples from specs, and their check."""

import hashlib
import json
import re
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from ..sample import Sample
from ..toy.world.check import Verdict
from .drawing import drawn, render, rgb

BLOCK = 16  # pixels: the side of the squares in which pictures are compared
SOFTENED = 1.0  # pixels: the blur before
# Levels: the largest mean difference in a block, of brightness and of colour. JPEG at quality 70 makes up to 3.6 and
# 7.7, one other digit in a label 11 of brightness and more.
FARTHEST = 6.0, 12.0
# What a spec has about looks and language alone. Figures that differ in nothing else are the same one.
LOOKS = {"style", "language", "colours", "mark", "marked", "hue", "room", "frame", "order"}
# The Chinese words that specs have, with the English ones, so that a figure's content is the same in both languages.
ENGLISH: dict[str, str] = {}
TRIES = 200  # that find a figure for evaluation but for one in 10^19 times


@dataclass(frozen=True)
class Figures:
    """The figures of a domain. draw: {name: function(paper, spec)}. read: {name: function(spec, picture) -> parts}."""

    domain: str
    draw: dict = field(default_factory=dict)
    read: dict = field(default_factory=dict)

    def figure(self, name: str):
        return lambda function: self.draw.setdefault(name, function)

    def reader(self, name: str):
        return lambda function: self.read.setdefault(name, function)

    def picture(self, spec: dict, size: tuple[int, int]) -> np.ndarray:
        return render(self.draw[spec["figure"]], spec, size)

    def paper(self, spec: dict, size: tuple[int, int]):
        """The paper after drawing, whose texts can be measured."""
        return drawn(self.draw[spec["figure"]], spec, size)[1]

    def to_draw(self, choices, spec: dict, prompt: str, words: str = "", **truth) -> Sample:
        """words: the reasoning before the picture, which makes the task "reason". truth: what else is known."""
        keep_apart(choices, spec)
        task = "reason" if words else "draw"
        return Sample(task, self.domain, prompt, (), self.picture(spec, choices.size), words, {"spec": spec} | truth)

    def to_edit(self, choices, before: dict, after: dict, prompt: str, words: str = "", **truth) -> Sample:
        keep_apart(choices, before)
        pictures = [self.picture(spec, choices.size) for spec in (before, after)]
        task, truth = "reason" if words else "edit", {"before": before, "spec": after} | truth
        return Sample(task, self.domain, prompt, (pictures[0],), pictures[1], words, truth)

    def to_ask(self, choices, specs, prompt: str, answer: str, others=()) -> Sample:
        """specs: of one picture, or a list. others: answers that are right too."""
        specs = specs if isinstance(specs, list) else [specs]
        keep_apart(choices, specs[0])
        pictures = tuple(self.picture(spec, choices.size) for spec in specs)
        truth = {"before": specs[0], "answers": [str(answer), *others]}
        return Sample("ask", self.domain, prompt, pictures, None, str(answer), truth)

    def check(self, sample: Sample, made) -> Verdict:
        """Judge a picture, uint8 [H, W, 3], or the answer to a question, a text.

        Of an edit, and of a prompt with reasoning about a picture, the result must be what the renderer makes of the
        truth. Without an input picture, arrangement and style are free, so that only what a reader can measure is
        judged; a figure without a reader is compared with the renderer's picture there too, which refuses right
        pictures of another arrangement.
        """
        if isinstance(made, str):
            right = tidy(made) in {tidy(answer) for answer in sample.truth["answers"]}
            return Verdict(right, {"answer": right})
        spec, parts = sample.truth["spec"], {}
        reader = self.read.get(spec["figure"])
        if sample.images or not reader:
            parts["same"] = alike(self.picture(spec, made.shape[1::-1]), made)
        if reader:
            parts |= reader(spec, made)
        return Verdict(all(parts.values()), parts)


def tidy(answer: str) -> str:
    """An answer without case, spaces and the last punctuation."""
    return re.sub(r"\s+", "", answer).rstrip(".。!！").lower()


def alike(picture: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures of the same size, uint8 [H, W, 3], show the same up to noise."""
    if picture.shape != other.shape:
        return False
    soft = [
        Image.fromarray(one).filter(ImageFilter.GaussianBlur(SOFTENED)).convert("YCbCr") for one in (picture, other)
    ]
    apart = np.abs(np.asarray(soft[0], np.float32) - np.asarray(soft[1], np.float32))
    brightness, colour = blocks(apart[..., 0]).max(), blocks(apart[..., 1:].max(axis=-1)).max()
    return bool(brightness <= FARTHEST[0] and colour <= FARTHEST[1])


def blocks(values: np.ndarray) -> np.ndarray:
    """The means of squares of BLOCK pixels; those at the right and lower edge may be smaller."""
    rows, columns = np.arange(0, values.shape[0], BLOCK), np.arange(0, values.shape[1], BLOCK)
    sums = np.add.reduceat(np.add.reduceat(values, rows, 0), columns, 1)
    counts = np.add.reduceat(np.add.reduceat(np.ones_like(values), rows, 0), columns, 1)
    return sums / counts


def where(picture: np.ndarray, colour: str, near: float = 40.0) -> np.ndarray:
    """The pixels of a colour, bool [H, W]. near: the largest difference of a channel in levels."""
    return (np.abs(picture.astype(np.float32) - rgb(colour)) <= near).all(axis=-1)


def pieces(mask: np.ndarray, smallest: int = 12) -> list[np.ndarray]:
    """Connected parts of a mask of at least so many pixels, each as an index array [N, 2] of (row, column)."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    found = [np.argwhere(labels == number) for number in range(1, count + 1)]
    return [piece for piece in found if len(piece) >= smallest]


def held_out(choices, items) -> list:
    """The items for training, or for evaluation: every fifth is evaluation's alone."""
    choices.is_apart = True
    return [item for i, item in enumerate(items) if (i % 5 == 4) == choices.evaluates]


class WrongSide(Exception):
    """The figure is for evaluation and the sample for training, or the other way round."""


def keep_apart(choices, spec: dict):
    """Raise WrongSide for the figure of a sample that is not to start from it: a fifth of them are evaluation's alone.

    Which ones follows from what they show, so that it is the same for all tasks and seeds. Figures of items of
    held_out are told apart by the items.
    """
    if not choices.is_apart and is_evaluations(spec) != choices.evaluates:
        raise WrongSide


def is_evaluations(spec: dict) -> bool:
    return hashlib.sha256(content(spec).encode()).digest()[0] % 5 == 4


def content(spec: dict) -> str:
    """What a figure shows, without its looks, and in English."""
    shown = {key: in_english(value) for key, value in spec.items() if key not in LOOKS}
    return json.dumps(shown, sort_keys=True, ensure_ascii=False)


def in_english(value):
    if isinstance(value, list):
        return [in_english(item) for item in value]
    return ENGLISH.get(value, value) if isinstance(value, str) else value


def bilingual(words) -> None:
    """Add the pairs (English, Chinese) in nested tuples to ENGLISH."""
    if len(words) == 2 and all(isinstance(word, str) for word in words):
        en, zh = words
        if ENGLISH.setdefault(zh, en) != en:
            raise ValueError(f"{zh} is both {ENGLISH[zh]} and {en}: figures would not be the same in both languages")
        return
    for part in words:
        if isinstance(part, tuple):
            bilingual(part)


def apart(function):
    """A function from choices to a sample, which goes on choosing until the figure is on the right side."""

    def sample(choices) -> Sample:
        for _ in range(TRIES):
            choices.is_apart = False
            try:
                return function(choices)
            except WrongSide:
                continue
        raise ValueError(f"{TRIES} figures are all for {'training' if choices.evaluates else 'evaluation'}")

    return sample
