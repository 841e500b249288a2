"""Draw many pictures at once: prompts whose contexts have the same lengths go through the MMDiT as one batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from internvlu_core import imaging
from internvlu_core.checkpoints.config import MMDiTConfig
from internvlu_core.conditioning import Branch, Context, TextResult
from internvlu_core.pipeline import InternVLU
from internvlu_core.sampling import flow_sigmas


@dataclass(frozen=True)
class Settings:
    """How all pictures are sampled.

    size: (width, height) in pixels, multiples of the model's size factor. batch: pictures at once. all_scale,
    partial_scale: guidance; None for the checkpoint's own.
    """

    size: tuple[int, int]
    steps: int = 20
    batch: int = 50
    all_scale: float | None = None
    partial_scale: float | None = None

    def scales(self, config: MMDiTConfig, reasoned: bool) -> tuple[float, float]:
        """(all_scale, partial_scale) that are used, with or without reasoning."""
        return config.guidance(reasoned, self.all_scale, self.partial_scale)


@dataclass(frozen=True)
class Order:
    """A picture to draw, by arguments of InternVLU.generate. images: uint8 [H, W, 3] each."""

    prompt: str
    images: tuple[np.ndarray, ...] = ()
    reasoning: TextResult | None = None
    seed: int = 0


def draw_all(model: InternVLU, orders: list[Order], settings: Settings) -> list[np.ndarray]:
    """The pictures of the orders, uint8 [H, W, 3], in their order. Up to rounding they equal those of generate."""
    pictures: list[np.ndarray | None] = [None] * len(orders)
    width, height = settings.size
    sigmas = flow_sigmas(settings.steps, model.config.mmdit.flow_shift)
    for numbers, contexts in batches(model, orders, settings.batch):
        noise = torch.cat([model.noise(height, width, orders[i].seed) for i in numbers])
        scales = settings.scales(model.config.mmdit, orders[numbers[0]].reasoning is not None)
        latents = model.sample(stacked(contexts), noise, sigmas, *scales)
        for i, picture in zip(numbers, imaging.to_pictures(model.decode(latents)), strict=True):
            pictures[i] = np.asarray(picture)
    return pictures


def batches(model: InternVLU, orders: list[Order], most: int) -> Iterator[tuple[list[int], list[Context]]]:
    """Group orders that can share a batch of at most `most`: (their numbers, their contexts)."""
    waiting: dict[tuple, tuple[list[int], list[Context]]] = {}
    for i, order in enumerate(orders):
        images = [Image.fromarray(image) for image in order.images]
        context = model.encode(order.prompt, images, reasoning=order.reasoning)
        branches = context.full, context.partial, context.unconditional
        key = order.reasoning is not None, *map(batch_key, branches)
        numbers, contexts = waiting.setdefault(key, ([], []))
        numbers.append(i)
        contexts.append(context)
        if len(numbers) == most:
            yield waiting.pop(key)
    yield from waiting.values()


def batch_key(branch: Branch) -> tuple:
    """What branches must have in common to share a batch: length, positions of ViT tokens, sizes of references."""
    return tuple(branch.image_mask.tolist()), tuple(reference.shape for reference in branch.references)


def stacked(contexts: list[Context]) -> Context:
    """Contexts with equal keys as one context with a batch axis, as InternVLU.sample takes it."""
    full = stack([context.full for context in contexts])
    unconditional = stack([context.unconditional for context in contexts])
    if contexts[0].partial is contexts[0].unconditional:  # then sample evaluates the two as one branch
        return Context(full, unconditional, unconditional)
    return Context(full, stack([context.partial for context in contexts]), unconditional)


def stack(branches: list[Branch]) -> Branch:
    """Branches with equal keys as one: hidden [B, T, C], references [B, z, h, w]."""
    first = branches[0]
    references = [torch.cat(references) for references in zip(*(b.references for b in branches), strict=True)]
    return Branch(torch.stack([b.hidden for b in branches]), first.image_mask, first.image_grids, references)


@torch.inference_mode()
def reconstruct(model: InternVLU, picture: np.ndarray) -> np.ndarray:
    """The picture, uint8 [H, W, 3], encoded and decoded by the VAE."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()[None] / 127.5 - 1
    latents = model.vae.encode(pixels.to(model.device, model.dtype)).float()
    return np.asarray(imaging.to_pictures(model.decode(latents))[0])
