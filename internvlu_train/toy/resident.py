"""All data of a stage in the memory of the device, for data as small as the toy's.

Feed prepares each micro-batch on the CPU, from a cache on the disk. A GPU would wait for that: it takes the toy's steps
as fast as Python can start its kernels. Here other processes make the examples (Makers), and a micro-batch is rows of
tensors that are on the device already.
"""

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing.pool import AsyncResult
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import open_source
from internvlu_core.conditioning import Conditioner
from internvlu_core.imaging import vit_tiles
from internvlu_core.prompt import Tokenizer

from .. import objectives
from ..data import (
    FULL,
    LENGTH_STEP,
    PARTIAL,
    UNCONDITIONAL,
    Batch,
    Context,
    Example,
    TokenBatch,
    TokenRow,
    make_example,
    reference_of,
)
from ..feed import BATCH_SEEDS
from ..settings import PictureStage, Stage, VAEStage
from ..storage import Networks
from .world import mixture

CHUNK = 512  # samples that a process makes at once
ENCODED = 1024  # pictures or token rows that are encoded at once
SPARE_CORES = 2  # for the process that trains, and its driver
Structure = tuple  # what the examples of a micro-batch have in common


@dataclass
class Rows:
    """Token rows [N, T] as arrays, padded at their ends. images, trained: the masks of TokenRow."""

    ids: np.ndarray
    images: np.ndarray
    trained: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


@dataclass
class Group:
    """Examples of one structure as arrays with N entries.

    pictures: uint8 [N, H, W, 3], or None. references: likewise, one array per input image. tiles: float16 [N, images,
    3, S, S]. rows: by branch, and those of the next-token loss as "text".
    """

    pictures: np.ndarray | None
    references: tuple[np.ndarray, ...]
    tiles: np.ndarray | None
    rows: dict[str, Rows]


# Making examples in other processes


class Makers:
    """Processes that make the examples of stages, one stage after the other, in the order in which they are asked for.

    The examples do not depend on the number of processes.
    """

    def __init__(self, checkpoint: Path, processes: int | None = None):
        """checkpoint: whose tokenizer and configuration are used."""
        processes = processes or max(1, (os.cpu_count() or 1) - SPARE_CORES)
        # Spawned, because a forked process inherits locks that threads of its parent hold.
        self.pool = multiprocessing.get_context("spawn").Pool(processes, _start, (checkpoint,))
        self.asked: dict[Stage, list[AsyncResult]] = {}

    def ask(self, stage: Stage):
        """Begin to make a stage's examples."""
        orders = iter(mixture.orders(stage))
        self.asked[stage] = [
            self.pool.apply_async(_make, (chunk, stage)) for chunk in iter(lambda: list(islice(orders, CHUNK)), [])
        ]

    def groups(self, stage: Stage) -> dict[Structure, Group]:
        """The examples of a stage, by their structure. Raises what making them raised."""
        if stage not in self.asked:
            self.ask(stage)
        found: dict[Structure, list[Group]] = {}
        for chunk in self.asked.pop(stage):
            for structure, group in chunk.get().items():
                found.setdefault(structure, []).append(group)
        return {structure: merged(found[structure]) for structure in sorted(found, key=repr)}

    def close(self):
        self.pool.terminate()


_conditioner: Conditioner | None = None  # of a process of Makers


def _start(checkpoint: Path):
    global _conditioner
    os.nice(10)
    torch.set_num_threads(1)
    source = open_source(checkpoint)
    with source.tokenizer_folder() as processor:
        _conditioner = Conditioner(None, Tokenizer(processor), Config.read(source), weights=lambda: None)


def _make(orders: list[tuple], stage: Stage) -> dict[Structure, Group]:
    examples = (make_example(mixture.make_ordered(order), _conditioner, stage) for order in orders)
    return grouped(list(examples), _conditioner)


def grouped(examples: list[Example], conditioner: Conditioner) -> dict[Structure, Group]:
    found: dict[Structure, list[Example]] = {}
    for example in examples:
        found.setdefault(structure_of(example), []).append(example)
    return {structure: arrays(alike, conditioner) for structure, alike in found.items()}


def structure_of(example: Example) -> Structure:
    """The shape of the picture and of its references, whether there is text, and where ViT tokens are."""
    picture = () if example.picture is None else example.picture.shape
    images = tuple(image.shape for image in example.images)
    places = tuple((name, row.image_positions) for name, row in example.branches.items())
    return picture, images, example.text is not None, places


def arrays(examples: list[Example], conditioner: Conditioner) -> Group:
    """Examples of one structure as one group."""
    first = examples[0]
    pixels = [[reference_of(image, conditioner)[0] for image in e.images] for e in examples if e.branches]
    tiles = [[tile_of(image, conditioner) for image in e.images] for e in examples]
    rows = {name: packed([e.branches[name] for e in examples]) for name in first.branches}
    if first.text is not None:
        rows["text"] = packed([e.text for e in examples])
    return Group(
        None if first.picture is None else np.stack([e.picture for e in examples]),
        tuple(np.stack([as_bytes(p) for p in images]) for images in zip(*pixels, strict=True)),
        np.stack([torch.stack(each).half().numpy() for each in tiles]) if first.images else None,
        rows,
    )


def as_bytes(pixels: Tensor) -> np.ndarray:
    """[3, H, W] in [-1, 1] → uint8 [H, W, 3]."""
    return ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def tile_of(image: np.ndarray, conditioner: Conditioner) -> Tensor:
    """The ViT's tile [3, S, S] of an input picture, as in make_token_batch."""
    return vit_tiles(Image.fromarray(image), conditioner.config.processor)[0]


def packed(rows: list[TokenRow]) -> Rows:
    lengths = np.array([len(row.ids) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)  # whatever the padding is, no token before it sees it
    images, trained = (np.zeros(ids.shape, bool) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], images[i, : len(row.ids)] = row.ids, row.image_mask
        trained[i, : len(row.trained)] = row.trained
    return Rows(ids, images, trained, np.array([row.start for row in rows]), lengths)


def merged(groups: list[Group]) -> Group:
    """Groups of one structure as one."""
    first = groups[0]
    return Group(
        None if first.pictures is None else np.concatenate([g.pictures for g in groups]),
        tuple(np.concatenate(parts) for parts in zip(*(g.references for g in groups), strict=True)),
        None if first.tiles is None else np.concatenate([g.tiles for g in groups]),
        {name: merged_rows([g.rows[name] for g in groups]) for name in first.rows},
    )


def merged_rows(parts: list[Rows]) -> Rows:
    longest = max(part.ids.shape[1] for part in parts)

    def joined(name: str) -> np.ndarray:
        values = [getattr(part, name) for part in parts]
        if values[0].ndim == 2:
            values = [np.pad(each, ((0, 0), (0, longest - each.shape[1]))) for each in values]
        return np.concatenate(values)

    return Rows(*map(joined, ("ids", "images", "trained", "starts", "lengths")))


# Micro-batches


class OnDevice:
    """A group on the device, with what frozen networks compute from it.

    latents, references: as in data.Batch, for all N examples. contexts: by branch, if the language model is frozen.
    """

    def __init__(self, group: Group, networks: Networks, stage: Stage, device: torch.device):
        self.networks, self.device = networks, device
        self.pictures, self.rows = group.pictures, group.rows
        self.count = len(next(iter(group.rows.values())).ids) if group.rows else len(group.pictures)
        self.tiles = None if group.tiles is None else torch.from_numpy(group.tiles).to(device)
        self.columns = {
            name: {key: torch.from_numpy(getattr(rows, key)).to(device) for key in ("ids", "images", "trained")}
            for name, rows in group.rows.items()
        }
        self.contexts: dict[str, Contexts] = {}
        if isinstance(stage, VAEStage):
            self.pixels = torch.from_numpy(group.pictures).to(device)
        elif isinstance(stage, PictureStage) and group.pictures is not None:
            self.latents, *self.references = map(self._encoded, (group.pictures, *group.references))
            if not stage.learns("vlm"):
                self.contexts = {name: self._contexts(name) for name in group.rows if name != "text"}
                self.tiles, self.columns = None, {}

    def lengths(self, name: str) -> np.ndarray:
        return self.rows[name].lengths if self.rows else np.zeros(self.count, int)

    @torch.no_grad()
    def _encoded(self, pictures: np.ndarray) -> Tensor:
        parts = torch.from_numpy(pictures).split(ENCODED)
        return torch.cat([self.networks.vae.encode(as_pixels(part.to(self.device))) for part in parts])

    @torch.no_grad()
    def _contexts(self, name: str) -> "Contexts":
        """The conditioning of all rows of a branch; equal rows without images are computed once."""
        rows, number = self.rows[name], np.arange(self.count)
        some = number
        if not rows.images.any():
            keys, first_of, number = np.column_stack([rows.starts, rows.lengths, rows.ids]), {}, []
            for index, key in enumerate(keys):
                number.append(first_of.setdefault(key.tobytes(), (len(first_of), index))[0])
            some, number = np.array([index for _, index in first_of.values()]), np.array(number)
        lengths = (rows.lengths - rows.starts)[some]
        longest = rounded_up(lengths.max())
        hidden = torch.zeros(len(some), longest, self.networks.config.mmdit.context_size, device=self.device)
        for first in range(0, len(some), ENCODED):
            part = some[first : first + ENCODED]
            context = objectives.context_of(self.networks, self.tokens(name, part))
            hidden[first : first + len(part), : context.hidden.shape[1]] = context.hidden
        image_mask = np.zeros(longest, bool)
        where = rows.images[0, rows.starts[0] : rows.lengths[0]]
        image_mask[: len(where)] = where
        as_tensor = partial(torch.as_tensor, device=self.device)
        return Contexts(hidden, as_tensor(lengths), image_mask, number, lengths)

    def tokens(self, name: str, chosen: np.ndarray) -> TokenBatch:
        """The token rows of some examples."""
        rows, columns = self.rows[name], self.columns[name]
        longest, index = rows.lengths[chosen].max(), torch.from_numpy(chosen).to(self.device, non_blocking=True)
        tiles = None
        if self.tiles is not None and rows.images.any():
            tiles = self.tiles[index].flatten(0, 1).float()
        return TokenBatch(
            *(columns[key][index, :longest] for key in ("ids", "images", "trained")),
            starts=tuple(rows.starts[chosen].tolist()),
            lengths=tuple(rows.lengths[chosen].tolist()),
            tiles=tiles,
        )


@dataclass
class Contexts:
    """Hidden states [U, T, C] of the different rows of a branch, with their lengths [U] on the device and on the CPU.

    number [N]: which of them each example has. image_mask: [T], the same in every row.
    """

    hidden: Tensor
    on_device: Tensor
    image_mask: np.ndarray
    number: np.ndarray
    lengths: np.ndarray

    def take(self, chosen: np.ndarray, networks: Networks) -> Context:
        """The conditioning of some examples, padded to one of few lengths."""
        number = self.number[chosen]
        longest = rounded_up(self.lengths[number].max())
        index = torch.from_numpy(number).to(self.hidden.device, non_blocking=True)
        mask = torch.arange(longest, device=self.hidden.device) < self.on_device[index][:, None]
        grid = networks.config.tile_grid
        count = int(self.image_mask.sum()) // (grid[1] * grid[2])
        image_mask = torch.from_numpy(self.image_mask[:longest])
        return Context(self.hidden[index, :longest], mask, image_mask, [grid] * count)


def rounded_up(length: int) -> int:
    """The next multiple of LENGTH_STEP."""
    return -(-int(length) // LENGTH_STEP) * LENGTH_STEP


def as_pixels(pictures: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] → [B, 3, H, W] in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


class ResidentFeed:
    """Micro-batches by their number, as Feed has them. The same number always gives the same batch."""

    def __init__(self, makers: Makers, networks: Networks, stage: Stage, device: torch.device):
        self.networks, self.stage, self.device = networks, stage, device
        self.groups = [OnDevice(group, networks, stage, device) for group in makers.groups(stage).values()]
        self.epoch, self.first = -1, 0
        self.plans: list[tuple[OnDevice, str, np.ndarray]] = []

    def pictures(self) -> Iterator[np.ndarray]:
        """The pictures of the stage, uint8 [H, W, 3]."""
        for group in self.groups:
            yield from group.pictures

    def batch(self, number: int, stride: int = 1) -> Batch:
        """The batch, on the device. Numbers must be asked for in rising order."""
        while number >= self.first + len(self.plans):
            self.first += len(self.plans)
            self.epoch += 1
            self.plans = plan_epoch(self.groups, self.stage, self.epoch)
        group, branch, chosen = self.plans[number - self.first]
        generator = torch.Generator(self.device).manual_seed(self.stage.seed * BATCH_SEEDS + number)
        batch = Batch(weight=len(chosen) / self.stage.batch, generator=generator)
        index = torch.from_numpy(chosen).to(self.device, non_blocking=True)
        if isinstance(self.stage, VAEStage):
            pixels = as_pixels(group.pixels[index])
            negative = torch.rand(len(pixels), generator=generator, device=self.device) < self.stage.negatives
            return replace(batch, pixels=torch.where(negative[:, None, None, None], -pixels, pixels))
        if "text" in group.columns:
            batch = replace(batch, text=group.tokens("text", chosen))
        if not branch:
            return batch
        references = () if branch == UNCONDITIONAL else tuple(latents[index] for latents in group.references)
        batch = replace(batch, latents=group.latents[index], references=references)
        if group.contexts:
            return replace(batch, context=group.contexts[branch].take(chosen, self.networks))
        return replace(batch, context_tokens=group.tokens(branch, chosen))


def plan_epoch(groups: list[OnDevice], stage: Stage, epoch: int) -> list[tuple[OnDevice, str, np.ndarray]]:
    """The micro-batches of an epoch: (group, branch or "", numbers of examples). Each example occurs once.

    As data.plan_epoch does, with arrays: lists of all examples took seconds.
    """
    rng, batches = np.random.default_rng((stage.seed, epoch)), []
    for group in groups:
        order, draw = rng.permutation(group.count), rng.random(group.count)
        branches = np.where(draw < stage.drop_all, 2, 0) if isinstance(stage, PictureStage) else np.zeros(group.count)
        if isinstance(stage, PictureStage):
            dropped = (draw >= stage.drop_all) & (draw < stage.drop_all + stage.drop_prompt)
            branches[dropped] = 1 if group.pictures is not None and group.references else 2
        for number, name in enumerate((FULL, PARTIAL, UNCONDITIONAL)):
            branch = name if FULL in group.rows else ""
            chosen = order[branches[order] == number] if branch else order[: group.count * (number == 0)]
            lengths = group.lengths(branch or "text")[chosen]
            chosen = chosen[np.argsort(lengths // LENGTH_STEP, kind="stable")]
            batches += [(group, branch, chosen[i : i + stage.batch]) for i in range(0, len(chosen), stage.batch)]
    rng.shuffle(batches)
    return batches
