"""A stage's exercises, what of them is computed once, and the micro-batch at any position."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from . import objectives
from .data import (
    Batch,
    Context,
    Exercise,
    Item,
    Reading,
    Tokens,
    exercise,
    make_reading,
    plan_epoch,
    reference_of,
    to_pixels,
)
from .folder import read_folder
from .repository import repository_module
from .sample import Sample
from .settings import LoraStage, PictureStage, Stage, VAEStage
from .storage import Networks, replaced

AHEAD = 4  # micro-batches that are made while others are computed
CHUNK = 64  # pictures or rows that are computed at once for the cache
Key = tuple[tuple[int, ...], int]  # of a row: its tokens, its exercise
BATCH_SEEDS = 2**32  # micro-batches of one Stage.seed


@dataclass(frozen=True)
class Cache:
    """What frozen networks make of the exercises.

    latents: of each picture [z, h, w]; references: of each exercise's images. hidden: of each row of tokens [T, C], if
    the language model is frozen, by what hidden_key says.
    """

    latents: dict[int, Tensor]
    references: dict[int, list[Tensor]]
    hidden: dict[Key, Tensor]


class Feed:
    """Micro-batches by their number, from 0. Whoever asks for the same number gets the same batch."""

    def __init__(self, networks: Networks, stage: Stage, device: torch.device, cache_file: Path | None = None):
        """cache_file: where the cache is kept for a resumed run; read if it exists, else made and written."""
        self.networks, self.stage, self.device = networks, stage, device
        self.exercises = [exercise(sample, networks.conditioner, stage) for sample in samples_of(stage, networks)]
        self.cache = self._cache(cache_file) if isinstance(stage, PictureStage) else Cache({}, {}, {})
        self.epoch, self.first = -1, 0
        self.plans: list[list[Item]] = []
        self.workers = ThreadPoolExecutor(AHEAD)
        self.pending: dict[int, Future[Batch]] = {}

    def batch(self, number: int, stride: int = 1) -> Batch:
        """The batch on the device. Those that are a few times the stride further on are made meanwhile."""
        for ahead in range(number, number + (AHEAD + 1) * stride, stride):
            if ahead not in self.pending:
                self.pending[ahead] = self.workers.submit(self._collate, ahead, self.plan(ahead))
        return moved(self.pending.pop(number).result(), self.device)

    def plan(self, number: int) -> list[Item]:
        """The exercises of a micro-batch. Numbers are asked for in rising order."""
        while number >= self.first + len(self.plans):
            self.first += len(self.plans)
            self.epoch += 1
            self.plans = plan_epoch(self.exercises, self.stage, self.epoch)
        return self.plans[number - self.first]

    def _collate(self, number: int, items: list[Item]) -> Batch:
        chosen = [self.exercises[item.index] for item in items]
        batch = Batch(
            weight=len(items) / self.stage.batch,
            generator=torch.Generator().manual_seed(self.stage.seed * BATCH_SEEDS + number),
        )
        if isinstance(self.stage, VAEStage):
            pixels = to_pixels([one.picture for one in chosen])
            negative = torch.rand(len(pixels), generator=batch.generator) < self.stage.negatives
            return replace(batch, pixels=torch.where(negative[:, None, None, None], -pixels, pixels))
        if chosen[0].text is not None:
            rows = [one.text for one in chosen]
            batch = replace(batch, text=make_reading(rows, [one.images for one in chosen], self.networks.conditioner))
        return self._with_pictures(batch, items, chosen) if items[0].branch else batch

    def _with_pictures(self, batch: Batch, items: list[Item], chosen: list[Exercise]) -> Batch:
        rows = [one.branches[item.branch] for item, one in zip(items, chosen, strict=True)]
        references = [self.cache.references[item.index] for item in items] if rows[0].layout else []
        batch = replace(
            batch,
            latents=torch.stack([self.cache.latents[item.index] for item in items]),
            references=tuple(torch.stack(images) for images in zip(*references, strict=True)),
        )
        if self.cache.hidden:
            keys = [hidden_key(row, item.index) for row, item in zip(rows, items, strict=True)]
            hidden = [self.cache.hidden[key].float() for key in keys]
            masks = [torch.tensor(row.image_mask[row.start :]) for row in rows]
            return replace(batch, context=objectives.make_context(self.networks, hidden, masks))
        return replace(batch, reading=make_reading(rows, [one.images for one in chosen], self.networks.conditioner))

    # The cache

    def _cache(self, file: Path | None) -> Cache:
        if file is not None and file.exists():
            return Cache(**torch.load(file, weights_only=True))
        with torch.no_grad():
            cache = Cache(*self._latents(), {} if self.stage.learns("vlm") else self._hidden())
        if file is not None:
            with replaced(file) as new:
                torch.save({field.name: getattr(cache, field.name) for field in fields(Cache)}, new)
        return cache

    def _latents(self) -> tuple[dict[int, Tensor], dict[int, list[Tensor]]]:
        """In a fixed order and grouping, so that a resumed run's are the same to the bit."""
        wanted: dict[torch.Size, list[tuple[int, int, Tensor]]] = {}  # by size: (exercise, image or −1, pixels)
        latents, references = {}, {index: [] for index, one in enumerate(self.exercises) if one.branches}

        def encode(group):
            pixels = torch.cat([pixels for _, _, pixels in group]).to(self.device)
            for (index, image, _), latent in zip(group, self.networks.vae.encode(pixels).cpu(), strict=True):
                if image < 0:
                    latents[index] = latent
                else:
                    references[index].append((image, latent))
            group.clear()

        for index in tqdm(references, "latents", leave=False):
            one = self.exercises[index]
            pixels = [
                to_pixels([one.picture]),
                *(reference_of(image, self.networks.conditioner) for image in one.images),
            ]
            for image, each in enumerate(pixels, -1):
                group = wanted.setdefault(each.shape, [])
                group.append((index, image, each))
                if len(group) == CHUNK:
                    encode(group)
        for group in filter(None, wanted.values()):
            encode(group)
        for images in references.values():
            images.sort(key=lambda numbered: numbered[0])
        return latents, {index: [latent for _, latent in images] for index, images in references.items()}

    def _hidden(self) -> dict[Key, Tensor]:
        rows = {}  # by key: the row, its images
        for index, one in enumerate(self.exercises):
            rows |= {hidden_key(row, index): (row, one.images) for row in one.branches.values()}
        keys = sorted(rows, key=lambda key: (key[1] >= 0, len(key[0])))
        hidden = {}
        dtype = torch.bfloat16 if self.stage.autocast else torch.float32
        for start in tqdm(range(0, len(keys), CHUNK), "hidden states", leave=False):
            chunk = keys[start : start + CHUNK]
            reading = make_reading(*zip(*(rows[key] for key in chunk), strict=True), self.networks.conditioner)
            context = objectives.read(self.networks, moved(reading, self.device))
            for key, states, mask in zip(chunk, context.hidden, context.mask, strict=True):
                hidden[key] = states[mask].to("cpu", dtype)
        return hidden


def samples_of(stage: Stage, networks: Networks) -> Iterable[Sample]:
    """A LoRA stage's samples are those of its folder; those of every other stage are synthetic."""
    if isinstance(stage, LoraStage):
        return read_folder(Path(stage.pictures), networks.config.processor)
    mixture = repository_module("synthesis.mixture", "a stage on synthetic samples")
    return tqdm(mixture.samples(stage), "samples", stage.samples, leave=False)


def hidden_key(row: Tokens, index: int) -> Key:
    """A row with pictures is its exercise's own; one without is the same for all, whose index is then −1."""
    return row.ids, index if any(row.image_mask) else -1


def moved(value, device: torch.device):
    """Tensors, and dataclasses and tuples of them, on a device. Position masks of a context stay on the CPU."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    if isinstance(value, Batch | Reading):
        return replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    if isinstance(value, Context):
        return replace(value, hidden=moved(value.hidden, device), mask=moved(value.mask, device))
    return value
