"""The domain text: posters, signs, cards, book covers and notes; edits of their words in place; questions about them.

Before and after an edit have the same surface, scene, light and noise. Truth: "texts", the words of each block with the
quads of its lines in the picture; of an edit also "before", the same of the input, "role", and "changed", boxes of all
that differs; of a question "answer".
"""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..sample import Sample
from . import LanguageChoices, phrases, scenes, text_prompts
from .colours import GLOWS, colour, readable
from .fonts import faces
from .judge import Verdict, judge_changes, judge_texts
from .layout import Block, NoRoom, draw, fit, is_wide, same_size
from .media import MEDIA, Piece, tried

TRIES = 100  # of other words, for one that fits
Changed = tuple[tuple[Block, ...], tuple[Block, ...], str]  # blocks before and after, the instruction


def render(piece: Piece, blocks: tuple[Block, ...], size: tuple[int, int], seed: int) -> tuple[np.ndarray, list[dict]]:
    """A picture of a piece, uint8 [H, W, 3], and the truth of its words. seed: of scene, place, light and noise."""
    surface = piece.surface.copy()
    lines = [draw(surface, block, seed + place) for place, block in enumerate(blocks)]
    if piece.scene:
        scene = scenes.background(piece.scene, seed, size)
        chance = np.random.default_rng((seed, 1))
        perspective = scenes.matrix(surface.size, scenes.quad_in(chance, size, surface.size, piece.tilt))
        picture = scenes.put(scene, surface, perspective)
    else:
        perspective, picture = np.eye(3), np.asarray(surface.convert("RGB"), np.float32)
    texts = []
    for block, drawn in zip(blocks, lines, strict=True):
        if not block.text:
            continue
        quads = [{"text": line.text, "quad": _rounded(scenes.moved(perspective, line.quad))} for line in drawn]
        texts.append({"role": block.role, "text": block.text, "lines": quads})
    return scenes.lit(np.random.default_rng((seed, 2)), picture, 1 if piece.scene else 0.4), texts


def _rounded(quad) -> list[list[float]]:
    return [[round(x, 1), round(y, 1)] for x, y in quad]


def drawing(medium: Callable[[LanguageChoices], Piece]) -> Callable[[LanguageChoices], Sample]:
    """A function that makes a sample of drawing such a thing."""

    def sample(choices: LanguageChoices) -> Sample:
        piece = medium(choices)
        picture, texts = render(piece, piece.blocks, choices.size, choices.number(0, 2**40))
        prompt = text_prompts.request(choices, piece)
        return Sample("draw", "text", prompt, (), picture, "", {"texts": texts, "medium": piece.name[0]})

    return sample


def editing(
    change: Callable[[LanguageChoices, Piece], Changed],
    media: dict[str, Callable[[LanguageChoices], Piece]] = MEDIA,
    domain: str = "text",
) -> Callable[[LanguageChoices], Sample]:
    """A function that makes a sample of an edit of one of these media."""

    @tried
    def attempt(choices: LanguageChoices) -> tuple[Piece, Changed]:
        piece = media[choices.pick(sorted(media))](choices)
        return piece, change(choices, piece)

    def sample(choices: LanguageChoices) -> Sample:
        piece, (before, after, prompt) = attempt(choices)
        seed = choices.number(0, 2**40)
        (old, texts_before), (new, texts) = (render(piece, blocks, choices.size, seed) for blocks in (before, after))
        truth = {"texts": texts, "before": texts_before, "medium": piece.name[0], "changed": changed_box(old, new)}
        return Sample("edit", domain, prompt, (old,), new, "", truth)

    return sample


def changed_box(before: np.ndarray, after: np.ndarray) -> list[int]:
    """[left, top, right, bottom] around all pixels that differ."""
    rows, columns = np.nonzero((before != after).any(-1))
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def change(choices: LanguageChoices, piece: Piece) -> Changed:
    """Other words in the place of some. Raises ValueError if none fit."""
    place = choices.number(0, len(piece.blocks) - 1)
    old, there = piece.blocks[place], {block.text.casefold() for block in piece.blocks}
    fit(old)
    for _ in range(TRIES):
        text, words = another(choices, piece, old)
        new = replace(old, text=old.style.shown(text))
        if new.text.casefold() not in there and _fits(new):
            one, other = same_size(old, new)
            prompt = text_prompts.change(choices, piece, one, other, words)
            return _with(piece, place, one), _with(piece, place, other), prompt
    raise NoRoom(f"no other words fit in the place of {old.text!r}")


def _fits(block: Block) -> bool:
    try:
        return bool(fit(block))
    except NoRoom:
        return False


def another(choices: LanguageChoices, piece: Piece, block: Block) -> tuple[str, tuple[str, str] | None]:
    """(other words for a block, (old word, new word) if only one is another).

    A word that is replaced alone is the only one of its kind on the whole piece, so that the instruction is clear.
    """
    there = [word.casefold() for other in piece.blocks for word in re.findall(r"\w+", other.text)]
    words = block.text.split()
    able = {}
    for place, word in enumerate(words):
        if word.isascii() and word.isalpha() and there.count(word.casefold()) == 1:
            able[place] = [one for one in phrases.swaps(block.make, word) if one.casefold() not in there]
    able = {place: found for place, found in able.items() if found}
    if able and len(words) > 1 and choices.flip(0.5):
        place = choices.pick(sorted(able))
        new = block.style.shown(choices.pick(able[place]))
        return " ".join([*words[:place], new, *words[place + 1 :]]), (words[place], new)
    return block.make(choices, text_prompts.language_of(block.text)), None


def add(choices: LanguageChoices, piece: Piece) -> Changed:
    """Words where there were none."""
    place = _spare(choices, piece)
    return _without(piece, place), piece.blocks, text_prompts.add(choices, piece, place)


def remove(choices: LanguageChoices, piece: Piece) -> Changed:
    """What was below some words, in their place."""
    place = _spare(choices, piece)
    return piece.blocks, _without(piece, place), text_prompts.remove(choices, piece, piece.blocks[place])


def restyle(choices: LanguageChoices, piece: Piece) -> Changed:
    """The same words in another colour or another kind of letters."""
    place = choices.number(0, len(piece.blocks) - 1)
    old = piece.blocks[place]
    inks = [ink for ink in _inks(piece, old) if _apart(colour(ink), _light(old))]
    if inks and choices.flip(0.5):
        ink = choices.pick(inks)
        field = "second" if old.style.effect == "glow" else "colour"
        new = replace(old, style=replace(old.style, **{field: colour(ink)}))
        return piece.blocks, _with(piece, place, new), text_prompts.restyle(choices, piece, old, ink=ink)
    looks = [look for look in ("sans", "serif", "hand", "poster") if look != old.style.face.look]
    wide = any(map(is_wide, old.text))
    face, look = None, ""
    while face is None or face == old.style.face:
        look = choices.pick([one for one in looks if not wide or one in ("sans", "serif")] or ["sans"])
        face = choices.pick(faces(old.text, (look,), choices.resources.fonts))
    new = replace(old, style=replace(old.style, face=face, wobble=0.25 if look == "hand" else 0))
    one, other = same_size(old, replace(new, text=new.style.shown(new.text)))
    return _with(piece, place, one), _with(piece, place, other), text_prompts.restyle(choices, piece, old, look=look)


def _inks(piece: Piece, block: Block) -> list[str]:
    """The names of colours that words of a block can have: such as can be read on the surface, or in their edge."""
    if block.style.effect == "glow":
        return list(GLOWS)
    if block.style.effect == "outline":
        return readable(np.full((8, 8, 3), block.style.second, np.uint8))
    left, top, right, bottom = (round(side) for side in block.box)
    return readable(np.asarray(piece.surface.convert("RGB"))[top:bottom, left:right], 3)


def _light(block: Block):
    return block.style.second if block.style.effect == "glow" else block.style.colour


def _apart(one, other) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) > 90


def _spare(choices: LanguageChoices, piece: Piece) -> int:
    """A block without which something is left to read, if there is one: not the largest."""
    return choices.number(1, len(piece.blocks) - 1) if len(piece.blocks) > 1 else 0


def _with(piece: Piece, place: int, block: Block) -> tuple[Block, ...]:
    return (*piece.blocks[:place], block, *piece.blocks[place + 1 :])


def _without(piece: Piece, place: int) -> tuple[Block, ...]:
    """All blocks but one, whose place is kept so that others keep their wobble."""
    return _with(piece, place, replace(piece.blocks[place], text=""))


def ask(choices: LanguageChoices) -> Sample:
    """What is written where?"""
    piece = MEDIA[choices.pick(sorted(MEDIA))](choices)
    picture, texts = render(piece, piece.blocks, choices.size, choices.number(0, 2**40))
    prompt, answer = text_prompts.question(choices, piece)
    return Sample(
        "ask", "text", prompt, (picture,), None, answer, {"texts": texts, "medium": piece.name[0], "answer": answer}
    )


KINDS = {
    "draw": {name: drawing(medium) for name, medium in MEDIA.items()},
    "edit": {f.__name__: editing(f) for f in (change, add, remove, restyle)},
    "ask": {"read": ask},
}


def check(sample: Sample, picture: np.ndarray) -> Verdict:
    """Judge a picture, uint8 [H, W, 3], by reading it: all words are there, and those that an edit took away are not.

    Of an edit also: what is outside of the changed box is as before.
    """
    verdict = judge_texts(sample.truth, picture)
    return judge_changes(sample, picture, verdict) if sample.task == "edit" else verdict
