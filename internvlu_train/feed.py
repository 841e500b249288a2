"""The examples of a stage, a cache of what frozen networks compute from them, and the micro-batch at any position."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import objectives
from .company import Form, brought_to, union
from .data import (
    Batch,
    Context,
    Example,
    Item,
    TokenBatch,
    TokenRow,
    make_example,
    make_token_batch,
    plan_epoch,
    reference_of,
    to_pixels,
)
from .folder import read_folder
from .repository import repository_module
from .sample import Sample
from .settings import LoraStage, PictureStage, Stage, VAEStage
from .storage import Networks, replaced

AHEAD = 4  # micro-batches that are prepared in the background
CHUNK = 64  # pictures or token rows that are encoded at once for the cache
Key = tuple[tuple[int, ...], int]  # of a token row: its ids, the index of its example
BATCH_SEEDS = 2**32  # number of micro-batches for which one Stage.seed has generator seeds


@dataclass(frozen=True)
class Cache:
    """What frozen networks compute from the examples.

    latents: of each picture [z, h, w]. references: latents of each example's images. hidden: hidden states of each
    token row [T, C], by hidden_key; empty if the language model is trained.
    """

    latents: dict[int, Tensor]
    references: dict[int, list[Tensor]]
    hidden: dict[Key, Tensor]


class Feed:
    """Micro-batches by their number, from 0. The same number always gives the same batch."""

    def __init__(
        self,
        networks: Networks,
        stage: Stage,
        device: torch.device,
        cache_file: Path | None = None,
        samples: Iterable[Sample] | None = None,
    ):
        """cache_file: the cache for a resumed run. It is read if it exists, otherwise written. samples: by default
        those that the stage names.
        """
        self.networks, self.stage, self.device = networks, stage, device
        samples = samples_of(stage, networks) if samples is None else samples
        self.examples = [make_example(sample, networks.conditioner, stage) for sample in samples]
        self.cache = self._cache(cache_file) if isinstance(stage, PictureStage) else Cache({}, {}, {})
        self._start()

    def _start(self):
        self.sequence, self.counted = self._sequence(), 0
        self.plans: dict[int, list[Item]] = {}
        self.workers = ThreadPoolExecutor(AHEAD)
        self.pending: dict[int, Future[Batch]] = {}

    def pictures(self) -> Iterator[np.ndarray]:
        """The pictures of the stage, uint8 [H, W, 3]."""
        return (example.picture for example in self.examples)

    def batch(self, number: int, stride: int = 1, together: int = 1) -> Batch:
        """The batch, on the device. Meanwhile the next batches (number + stride, …) are prepared in the background.

        together: how many consecutive batches, from a multiple of it on, are brought to one form (see company.py).
        """
        self._pass_over(number // together * together)
        for ahead in range(number, number + (AHEAD + 1) * stride, stride):
            if ahead not in self.pending:
                form = self._form_of_round(ahead, together) if together > 1 else Form()
                self.pending[ahead] = self.workers.submit(self._collate, ahead, self.plan(ahead), form)
        for past in [each for each in self.plans if each <= number - stride]:
            del self.plans[past]
        return to_device(self.pending.pop(number).result(), self.device)

    def _pass_over(self, number: int):
        """Go on to the plan of this number, where a resumed run begins, and keep none of those before it."""
        for _ in range(number - self.counted):
            next(self.sequence)
        self.counted = max(self.counted, number)

    def plan(self, number: int) -> list[Item]:
        """The items of a micro-batch. Numbers must be asked for in rising order, but for the last few."""
        while number >= self.counted:
            self.plans[self.counted] = next(self.sequence)
            self.counted += 1
        return self.plans[number]

    def _sequence(self) -> Iterator[list[Item]]:
        """The items of all micro-batches, epoch after epoch."""
        for epoch in count():
            yield from plan_epoch(self.examples, self.stage, epoch)

    def _form_of_round(self, number: int, together: int) -> Form:
        first = number // together * together
        return union(self._form(self.plan(each)) for each in range(first, first + together))

    def _form(self, items: list[Item]) -> Form:
        examples = [self.examples[item.index] for item in items]
        text, flow = examples[0].text is not None, bool(items[0].branch)
        return Form(
            text,
            text and any(any(example.text.image_mask) for example in examples),
            flow,
            flow and bool(examples[0].branches[items[0].branch].image_positions),
        )

    def _collate(self, number: int, items: list[Item], form: Form) -> Batch:
        batch = self._own(number, items)
        return brought_to(form, batch, self.networks.conditioner, self.cached)

    def _own(self, number: int, items: list[Item]) -> Batch:
        chosen = [self.examples[item.index] for item in items]
        batch = Batch(
            weight=len(items) / self.stage.batch,
            generator=torch.Generator().manual_seed(self.stage.seed * BATCH_SEEDS + number),
        )
        if isinstance(self.stage, VAEStage):
            pixels = to_pixels([example.picture for example in chosen])
            negative = torch.rand(len(pixels), generator=batch.generator) < self.stage.negatives
            return replace(batch, pixels=torch.where(negative[:, None, None, None], -pixels, pixels))
        if chosen[0].text is not None:
            rows, images = [example.text for example in chosen], [example.images for example in chosen]
            batch = replace(batch, text=make_token_batch(rows, images, self.networks.conditioner))
        return self._with_pictures(batch, items, chosen) if items[0].branch else batch

    def _with_pictures(self, batch: Batch, items: list[Item], chosen: list[Example]) -> Batch:
        rows = [example.branches[item.branch] for item, example in zip(items, chosen, strict=True)]
        references = [self._references(item.index) for item in items] if rows[0].image_positions else []
        batch = replace(
            batch,
            latents=torch.stack([self._latent(item.index) for item in items]),
            references=tuple(torch.stack(images) for images in zip(*references, strict=True)),
        )
        if self.cached:
            hidden = [self._states(row, item.index).float() for row, item in zip(rows, items, strict=True)]
            masks = [torch.tensor(row.image_mask[row.start :]) for row in rows]
            return replace(batch, context=objectives.make_context(self.networks, hidden, masks))
        images = [example.images for example in chosen]
        return replace(batch, context_tokens=make_token_batch(rows, images, self.networks.conditioner))

    # The cache

    @property
    def cached(self) -> bool:
        """Whether the conditionings of pictures are in the cache."""
        return bool(self.cache.hidden)

    def _latent(self, index: int) -> Tensor:
        return self.cache.latents[index]

    def _references(self, index: int) -> list[Tensor]:
        return self.cache.references[index]

    def _states(self, row: TokenRow, index: int) -> Tensor:
        return self.cache.hidden[hidden_key(row, index)]

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
        """Latents of pictures and of reference images, in a fixed order and grouping: equal to the bit in each run."""
        groups: dict[torch.Size, list[tuple[int, int, Tensor]]] = {}  # by size: (example, image or -1, pixels)
        latents, references = {}, {index: [] for index, example in enumerate(self.examples) if example.branches}

        def encode(group):
            pixels = torch.cat([pixels for _, _, pixels in group]).to(self.device)
            for (index, image, _), latent in zip(group, self.networks.vae.encode(pixels).cpu(), strict=True):
                if image < 0:
                    latents[index] = latent
                else:
                    references[index].append((image, latent))
            group.clear()

        for index in tqdm(references, "latents", leave=False):
            example, conditioner = self.examples[index], self.networks.conditioner
            pixels = [to_pixels([example.picture]), *(reference_of(image, conditioner) for image in example.images)]
            for image, each in enumerate(pixels, -1):
                group = groups.setdefault(each.shape, [])
                group.append((index, image, each))
                if len(group) == CHUNK:
                    encode(group)
        for group in filter(None, groups.values()):
            encode(group)
        for images in references.values():
            images.sort(key=lambda numbered: numbered[0])
        return latents, {index: [latent for _, latent in images] for index, images in references.items()}

    def _hidden(self) -> dict[Key, Tensor]:
        rows = {}  # by key: the row, its images
        for index, example in enumerate(self.examples):
            rows |= {hidden_key(row, index): (row, example.images) for row in example.branches.values()}
        keys = sorted(rows, key=lambda key: (key[1] >= 0, len(key[0])))
        hidden = {}
        dtype = torch.bfloat16 if self.stage.autocast else torch.float32
        half = next(self.networks.vlm.parameters()).dtype == torch.bfloat16
        for start in tqdm(range(0, len(keys), CHUNK), "hidden states", leave=False):
            chunk = keys[start : start + CHUNK]
            tokens = make_token_batch(*zip(*(rows[key] for key in chunk), strict=True), self.networks.conditioner)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                context = objectives.context_of(self.networks, to_device(tokens, self.device))
            for key, states, mask in zip(chunk, context.hidden, context.mask, strict=True):
                hidden[key] = states[mask].to("cpu", dtype)
        return hidden


def samples_of(stage: Stage, networks: Networks) -> Iterable[Sample]:
    """The samples of a stage: those of its folder for a LoRA stage, synthetic ones for every other stage."""
    if isinstance(stage, LoraStage):
        return read_folder(Path(stage.pictures), networks.config.processor)
    mixture = repository_module("toy.world.mixture", "a stage on synthetic samples")
    return tqdm(mixture.samples(stage), "samples", stage.samples, leave=False)


def hidden_key(row: TokenRow, index: int) -> Key:
    """A row with images belongs to its example alone; equal rows without images share one entry, with the index -1."""
    return row.ids, index if any(row.image_mask) else -1


def to_device(value, device: torch.device):
    """Move tensors, and the tensors in dataclasses and tuples. Position masks of a context stay on the CPU."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(to_device(each, device) for each in value)
    if isinstance(value, Batch | TokenBatch):
        moved = {field.name: to_device(getattr(value, field.name), device) for field in fields(value)}
        return replace(value, **moved)
    if isinstance(value, Context):
        return replace(value, hidden=to_device(value.hidden, device), mask=to_device(value.mask, device))
    return value
