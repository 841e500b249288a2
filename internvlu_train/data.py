"""Samples → exercises (tokens, pictures) → micro-batches. All of it follows from the stage's settings and a position.

The prompts are built by the functions that build them for inference, so that the two cannot differ.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvlu_core.conditioning import Conditioner, TextResult
from internvlu_core.errors import InputError
from internvlu_core.imaging import reference_pixels, vit_tiles
from internvlu_core.models.rope import Grid
from internvlu_core.prompt import IM_END, IMG, PAD, Prompt

from .sample import Sample
from .settings import Stage, TextStage, VAEStage

FULL, PARTIAL, UNCONDITIONAL = "full", "partial", "unconditional"
LENGTH_STEP = 8  # tokens; texts within one step count as of one length


@dataclass(frozen=True)
class Tokens:
    """One row that the language model reads. image_mask marks ViT positions. start: of the user's turn.

    trained marks the tokens that the next-token loss is on, as targets.
    """

    ids: tuple[int, ...]
    image_mask: tuple[bool, ...]
    start: int
    trained: tuple[bool, ...] = ()

    @property
    def layout(self) -> tuple[int, ...]:
        """Where the ViT positions are in the context that starts at the user's turn."""
        return tuple(i for i, on in enumerate(self.image_mask[self.start :]) if on)


@dataclass(frozen=True)
class Exercise:
    """A sample in tokens. text: what the next-token loss is on. branches: of a picture, by name."""

    text: Tokens | None
    branches: dict[str, Tokens]
    images: tuple[np.ndarray, ...]
    picture: np.ndarray | None


@dataclass(frozen=True)
class Item:
    """An exercise in an epoch. branch: the one with which its picture is trained, "" if it has none."""

    index: int
    branch: str


def exercise(sample: Sample, conditioner: Conditioner, stage: Stage) -> Exercise:
    """A sample as a stage trains it: a VAE stage its picture, a text stage its words or else its prompt, a picture
    stage its picture, and its words if the language model learns.

    Raises InputError for a sample of which the stage would learn nothing.
    """
    if isinstance(stage, TextStage):
        return Exercise(text_tokens(sample, conditioner), {}, sample.images, None)
    text = text_tokens(sample, conditioner) if sample.words and stage.learns("vlm") else None
    if text is None and sample.picture is None:
        raise InputError(f"tasks has {sample.task!r}, of which a stage that trains {stage.trained} learns nothing")
    if isinstance(stage, VAEStage):
        return Exercise(None, {}, (), sample.picture)
    branches = {} if sample.picture is None else branch_tokens(sample, conditioner)
    return Exercise(text, branches, sample.images, sample.picture)


def text_tokens(sample: Sample, conditioner: Conditioner) -> Tokens:
    """A prompt with its answer or thoughts, which are trained; of a sample without words the user's turn is."""
    count, prompts = len(sample.images), conditioner.prompts
    asks = sample.picture is None
    prompt = prompts.chat(sample.prompt, [1] * count, None) if asks else prompts.full(sample.prompt, count, None)
    if not sample.words:
        trained = (i >= prompt.start and not image for i, image in enumerate(prompt.image_mask))
        return Tokens(prompt.ids, prompt.image_mask, prompt.start, tuple(trained))
    answer = written(sample.words, conditioner)
    mask = prompt.image_mask + (False,) * len(answer)
    return Tokens(prompt.ids + answer, mask, prompt.start, (False,) * len(prompt) + (True,) * len(answer))


def written(words: str, conditioner: Conditioner) -> tuple[int, ...]:
    """What the model should generate: the words' tokens and the one that ends a turn."""
    return (*conditioner.tokenizer.encode(words), conditioner.tokenizer.id(IM_END))


def branch_tokens(sample: Sample, conditioner: Conditioner) -> dict[str, Tokens]:
    """The contexts of a picture's three branches, as Conditioner.context reads them."""
    count, prompts = len(sample.images), conditioner.prompts
    full, blank = prompts.full(sample.prompt, count, None), prompts.unconditional(count, None)
    partial = prompts.partial(count, None) if count else blank
    reasoning = TextResult(sample.words, written(sample.words, conditioner)) if sample.words else None
    words, pads = conditioner.reasoned(full, max(len(partial), len(blank)), reasoning, False)

    def tokens(prompt: Prompt, ids: tuple[int, ...], pads: int = 0) -> Tokens:
        ids = (*[conditioner.tokenizer.id(PAD)] * pads, *ids, conditioner.tokenizer.id(IMG))
        mask = (*[False] * pads, *prompt.image_mask)[: len(ids)]
        return Tokens(ids, mask + (False,) * (len(ids) - len(mask)), pads + prompt.start)

    return {
        FULL: tokens(full, words, pads),
        PARTIAL: tokens(partial, partial.ids),
        UNCONDITIONAL: tokens(blank, blank.ids),
    }


# Batches


@dataclass(frozen=True)
class Reading:
    """Rows padded at their ends. ids, image_mask, trained [B, T]; starts, lengths: of the rows; tiles [N, 3, S, S]."""

    ids: Tensor
    image_mask: Tensor
    trained: Tensor | None
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    tiles: Tensor | None


@dataclass(frozen=True)
class Context:
    """What the MMDiT reads: hidden [B, T, C] padded at the end, mask [B, T]: which positions are there.

    image_mask [T] marks ViT positions, the same in every row; image_grids are their grids.
    """

    hidden: Tensor
    mask: Tensor
    image_mask: Tensor
    image_grids: list[Grid]


@dataclass(frozen=True)
class Batch:
    """A micro-batch. weight: its size over the nominal one. generator draws whatever is random in its loss.

    pixels [B, 3, H, W] in [-1, 1] (VAE stages only). latents [B, z, h, w], references likewise, normalised.
    reading: of the context, if that is not cached.
    """

    weight: float
    generator: torch.Generator
    text: Reading | None = None
    pixels: Tensor | None = None
    latents: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    reading: Reading | None = None
    context: Context | None = None


def make_reading(rows: Sequence[Tokens], images: Sequence[tuple[np.ndarray, ...]], conditioner: Conditioner) -> Reading:
    """images: of each row; those of a row without ViT positions are left out."""
    lengths = tuple(len(row.ids) for row in rows)
    pad = conditioner.tokenizer.id(PAD)

    def padded(name: str, filler) -> Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor([[*v, *[filler] * (max(lengths) - len(v))] for v in values])

    seen = [image for row, those in zip(rows, images, strict=True) if any(row.image_mask) for image in those]
    tiles = [vit_tiles(Image.fromarray(image), conditioner.config.processor) for image in seen]
    return Reading(
        ids=padded("ids", pad),
        image_mask=padded("image_mask", False),
        trained=padded("trained", False) if rows[0].trained else None,
        starts=tuple(row.start for row in rows),
        lengths=lengths,
        tiles=torch.cat(tiles) if tiles else None,
    )


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] each → [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def reference_of(image: np.ndarray, conditioner: Conditioner) -> Tensor:
    """As the VAE reads it at inference: pixels [1, 3, H, W]."""
    return reference_pixels(Image.fromarray(image), conditioner.config.processor)


def plan_epoch(exercises: list[Exercise], stage: Stage, epoch: int) -> list[list[Item]]:
    """An epoch's micro-batches: every exercise once, each batch of one structure and about one length."""
    chance = random.Random(f"{stage.seed}/{epoch}")
    items = [Item(index, choose_branch(one, stage, chance)) for index, one in enumerate(exercises)]
    chance.shuffle(items)
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        groups.setdefault(structure(exercises[item.index], item.branch), []).append(item)
    batches = []
    for group in groups.values():
        group.sort(key=lambda item: length(exercises[item.index], item.branch) // LENGTH_STEP)
        batches += [group[i : i + stage.batch] for i in range(0, len(group), stage.batch)]
    chance.shuffle(batches)
    return batches


def choose_branch(one: Exercise, stage: Stage, chance: random.Random) -> str:
    """A picture's branch in this epoch; one number is drawn for it."""
    draw = chance.random()
    if not one.branches:
        return ""
    if draw < stage.drop_all:
        return UNCONDITIONAL
    return PARTIAL if draw < stage.drop_all + stage.drop_prompt else FULL


def structure(one: Exercise, branch: str) -> tuple:
    """What exercises of one batch share: losses, sizes, and where pictures are in the context."""
    if not branch:
        return (one.text is not None, None if one.picture is None else one.picture.shape)
    layout = one.branches[branch].layout
    references = tuple(image.shape for image in one.images) if layout else ()
    return (one.text is not None, one.picture.shape, references, layout)


def length(one: Exercise, branch: str) -> int:
    if branch:
        return len(one.branches[branch].ids)
    return len(one.text.ids) if one.text else 0
