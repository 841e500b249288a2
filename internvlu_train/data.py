"""From samples to micro-batches: token rows, images, and a batch plan that the settings and the position determine.

Prompts are built by the functions that build them for inference, so that training and inference cannot differ.
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
LENGTH_STEP = 8  # tokens; rows whose lengths are within one step may share a batch


@dataclass(frozen=True)
class TokenRow:
    """One input of the language model.

    image_mask: which positions are ViT tokens. start: index of the first token of the user's turn. trained: which
    tokens are targets of the next-token loss.
    """

    ids: tuple[int, ...]
    image_mask: tuple[bool, ...]
    start: int
    trained: tuple[bool, ...] = ()

    @property
    def image_positions(self) -> tuple[int, ...]:
        """Positions of the ViT tokens in the conditioning, which begins with the user's turn."""
        return tuple(i for i, on in enumerate(self.image_mask[self.start :]) if on)


@dataclass(frozen=True)
class Example:
    """A tokenised sample. text: the row of the next-token loss. branches: the rows that condition a picture, by name.

    images, picture: as in Sample.
    """

    text: TokenRow | None
    branches: dict[str, TokenRow]
    images: tuple[np.ndarray, ...]
    picture: np.ndarray | None


@dataclass(frozen=True)
class Item:
    """An example in an epoch. branch: the one that conditions its picture in this epoch, "" without a picture."""

    index: int
    branch: str


def make_example(sample: Sample, conditioner: Conditioner, stage: Stage) -> Example:
    """Tokenise what a stage learns from a sample.

    A VAE stage learns the picture; a text stage the words, or the prompt of a sample without words; a picture stage the
    picture, and the words if it also trains the language model. Raises InputError if the stage learns nothing from it.
    """
    if isinstance(stage, TextStage):
        return Example(text_row(sample, conditioner), {}, sample.images, None)
    if not is_of_use(sample, stage):
        raise InputError(f"tasks has {sample.task!r}, from which a stage that trains {stage.trained} learns nothing")
    text = text_row(sample, conditioner) if sample.words and stage.learns("vlm") else None
    if isinstance(stage, VAEStage):
        return Example(None, {}, (), sample.picture)
    branches = {} if sample.picture is None else branch_rows(sample, conditioner)
    return Example(text, branches, sample.images, sample.picture)


def is_of_use(sample, stage: Stage) -> bool:
    """Whether the stage learns anything from a sample. sample: a Sample, or another object with `picture` and `words`.

    Only a stage that trains the language model learns from a question, which has no picture to draw.
    """
    return isinstance(stage, TextStage) or sample.picture is not None or bool(sample.words and stage.learns("vlm"))


def text_row(sample: Sample, conditioner: Conditioner) -> TokenRow:
    """A prompt and the answer or reasoning, whose tokens are trained; without words, the user's turn is trained."""
    count, prompts = len(sample.images), conditioner.prompts
    if sample.picture is None:
        prompt = prompts.chat(sample.prompt, [1] * count, None)
    else:
        prompt = prompts.full(sample.prompt, count, None)
    if not sample.words:
        trained = (i >= prompt.start and not image for i, image in enumerate(prompt.image_mask))
        return TokenRow(prompt.ids, prompt.image_mask, prompt.start, tuple(trained))
    response = response_ids(sample.words, conditioner)
    image_mask = prompt.image_mask + (False,) * len(response)
    return TokenRow(prompt.ids + response, image_mask, prompt.start, (False,) * len(prompt) + (True,) * len(response))


def response_ids(words: str, conditioner: Conditioner) -> tuple[int, ...]:
    """The token ids that the model should generate: those of the words, and the one that ends a turn."""
    return (*conditioner.tokenizer.encode(words), conditioner.tokenizer.id(IM_END))


def branch_rows(sample: Sample, conditioner: Conditioner) -> dict[str, TokenRow]:
    """The rows of the three branches that condition a picture, as Conditioner.context builds them."""
    count, prompts = len(sample.images), conditioner.prompts
    full, blank = prompts.full(sample.prompt, count, None), prompts.unconditional(count, None)
    partial = prompts.partial(count, None) if count else blank
    reasoning = TextResult(sample.words, response_ids(sample.words, conditioner)) if sample.words else None
    full_ids, pads = conditioner.reasoned(full, max(len(partial), len(blank)), reasoning, False)

    def row(prompt: Prompt, ids: tuple[int, ...], pads: int = 0) -> TokenRow:
        ids = (*[conditioner.tokenizer.id(PAD)] * pads, *ids, conditioner.tokenizer.id(IMG))
        mask = (*[False] * pads, *prompt.image_mask)[: len(ids)]
        return TokenRow(ids, mask + (False,) * (len(ids) - len(mask)), pads + prompt.start)

    return {
        FULL: row(full, full_ids, pads),
        PARTIAL: row(partial, partial.ids),
        UNCONDITIONAL: row(blank, blank.ids),
    }


# Batches


@dataclass(frozen=True)
class TokenBatch:
    """Token rows, padded at their ends.

    ids, image_mask, trained: [B, T]. starts, lengths: of each row. tiles: ViT tiles [N, 3, S, S] of all rows' images.
    idle_tiles: tiles that are computed without effect, because another process has some (see company.py).
    """

    ids: Tensor
    image_mask: Tensor
    trained: Tensor | None
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    tiles: Tensor | None
    idle_tiles: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """The conditioning of a batch of pictures.

    hidden: [B, T, C], padded at the end. mask: [B, T], False for padding. image_mask: [T], which positions are ViT
    tokens, the same in every row. image_grids: their grids.
    """

    hidden: Tensor
    mask: Tensor
    image_mask: Tensor
    image_grids: list[Grid]


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    weight: its size divided by the nominal one. generator: for all random numbers in its loss. text: rows of the
    next-token loss. pixels: [B, 3, H, W] in [-1, 1], for VAE stages only. latents: [B, z, h, w], normalised;
    references: likewise, one tensor per input image. context: the conditioning, if it is cached; otherwise
    context_tokens has the rows to compute it from. idle: the losses, "text" and "flow", that are computed without
    effect (see company.py).
    """

    weight: float
    generator: torch.Generator
    text: TokenBatch | None = None
    pixels: Tensor | None = None
    latents: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    context_tokens: TokenBatch | None = None
    context: Context | None = None
    idle: tuple[str, ...] = ()


def make_token_batch(
    rows: Sequence[TokenRow], images: Sequence[tuple[np.ndarray, ...]], conditioner: Conditioner
) -> TokenBatch:
    """images: those of each row. The images of a row without ViT tokens are left out."""
    lengths = tuple(len(row.ids) for row in rows)
    pad = conditioner.tokenizer.id(PAD)

    def padded(name: str, filler) -> Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor([[*v, *[filler] * (max(lengths) - len(v))] for v in values])

    used = [image for row, those in zip(rows, images, strict=True) if any(row.image_mask) for image in those]
    tiles = [vit_tiles(Image.fromarray(image), conditioner.config.processor) for image in used]
    return TokenBatch(
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
    """The pixels [1, 3, H, W] that the VAE encodes of a reference image at inference."""
    return reference_pixels(Image.fromarray(image), conditioner.config.processor)


def plan_epoch(examples: list[Example], stage: Stage, epoch: int) -> list[list[Item]]:
    """The micro-batches of an epoch. Each example occurs once; those of a batch have one key and similar lengths."""
    rng = random.Random(f"{stage.seed}/{epoch}")
    items = [Item(index, choose_branch(example, stage, rng)) for index, example in enumerate(examples)]

    def key_of(item: Item) -> tuple:
        return batch_key(examples[item.index], item.branch)

    return grouped(items, stage, rng, key_of, lambda item: length(examples[item.index], item.branch))


def grouped(items: list[Item], stage: Stage, rng: random.Random, key_of, length_of) -> list[list[Item]]:
    """The items in batches of one key and similar lengths, in random order. key_of, length_of: functions of an item."""
    rng.shuffle(items)
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        groups.setdefault(key_of(item), []).append(item)
    batches = []
    for group in groups.values():
        group.sort(key=lambda item: length_of(item) // LENGTH_STEP)
        batches += [group[i : i + stage.batch] for i in range(0, len(group), stage.batch)]
    rng.shuffle(batches)
    return batches


def choose_branch(example, stage: Stage, rng: random.Random) -> str:
    """The branch that conditions a picture in this epoch. Draws exactly one random number.

    example: an Example, or another object with `branches`.
    """
    draw = rng.random()
    if not example.branches:
        return ""
    if draw < stage.drop_all:
        return UNCONDITIONAL
    return PARTIAL if draw < stage.drop_all + stage.drop_prompt else FULL


def batch_key(example: Example, branch: str) -> tuple:
    """What the examples of a batch must have in common: their losses, sizes, and positions of ViT tokens."""
    if not branch:
        return (example.text is not None, None if example.picture is None else example.picture.shape)
    positions = example.branches[branch].image_positions
    references = tuple(image.shape for image in example.images) if positions else ()
    return (example.text is not None, example.picture.shape, references, positions)


def length(example: Example, branch: str) -> int:
    """Number of tokens by which an example is grouped."""
    if branch:
        return len(example.branches[branch].ids)
    return len(example.text.ids) if example.text else 0
