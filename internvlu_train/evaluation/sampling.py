"""Many pictures at once: prompts of equal length go through the MMDiT as one batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from internvlu_core import guidance, imaging
from internvlu_core.checkpoints.config import MMDiTConfig
from internvlu_core.conditioning import Branch, Context, TextResult
from internvlu_core.pipeline import InternVLU
from internvlu_core.sampling import dpmpp_2m, flow_sigmas, sigma_to_timestep


@dataclass(frozen=True)
class Settings:
    """Sampling of all pictures. size: (width, height), multiples of the model's size factor. batch: pictures at once.

    all_scale, partial_scale: guidance, None for what InternVLU.generate takes.
    """

    size: tuple[int, int]
    steps: int = 20
    batch: int = 50
    all_scale: float | None = None
    partial_scale: float | None = None

    def scales(self, config: MMDiTConfig, reasoned: bool) -> tuple[float, float]:
        return config.guidance(reasoned, self.all_scale, self.partial_scale)


@dataclass(frozen=True)
class Order:
    """One picture to make: arguments of InternVLU.generate. seed: of its noise."""

    prompt: str
    images: tuple[np.ndarray, ...] = ()
    reasoning: TextResult | None = None
    seed: int = 0


def draw_all(model: InternVLU, orders: list[Order], settings: Settings) -> list[np.ndarray]:
    """The orders' pictures, uint8 [H, W, 3], as generate draws them one by one (to rounding), in their order."""
    pictures: list[np.ndarray | None] = [None] * len(orders)
    for numbers, contexts in batches(model, orders, settings.batch):
        noise = torch.cat([model.noise(*settings.size[::-1], orders[i].seed) for i in numbers])
        scales = settings.scales(model.config.mmdit, orders[numbers[0]].reasoning is not None)
        latents = sample(model, contexts, noise, settings.steps, *scales)
        for i, picture in zip(numbers, imaging.to_pictures(model.decode(latents)), strict=True):
            pictures[i] = np.asarray(picture)
    return pictures


def batches(model: InternVLU, orders: list[Order], most: int) -> Iterator[tuple[list[int], list[Context]]]:
    """Orders that can share a batch: (their numbers, their contexts), at most `most` at once."""
    waiting: dict[tuple, tuple[list[int], list[Context]]] = {}
    for i, order in enumerate(orders):
        images = [Image.fromarray(image) for image in order.images]
        context = model.encode(order.prompt, images, reasoning=order.reasoning)
        key = (order.reasoning is not None, *(form(b) for b in (context.full, context.partial, context.unconditional)))
        numbers, contexts = waiting.setdefault(key, ([], []))
        numbers.append(i)
        contexts.append(context)
        if len(numbers) == most:
            yield waiting.pop(key)
    yield from waiting.values()


def form(branch: Branch) -> tuple:
    """What branches must have in common to share a batch."""
    return tuple(branch.image_mask.tolist()), tuple(reference.shape for reference in branch.references)


def stack(branches: list[Branch]) -> Branch:
    """Branches of one form as one, whose tensors have a batch axis: hidden [B, T, C], references [B, z, h, w]."""
    first = branches[0]
    references = [torch.cat(references) for references in zip(*(b.references for b in branches), strict=True)]
    return Branch(torch.stack([b.hidden for b in branches]), first.image_mask, first.image_grids, references)


@torch.inference_mode()
def sample(
    model: InternVLU, contexts: list[Context], noise: torch.Tensor, steps: int, all_scale: float, partial_scale: float
) -> torch.Tensor:
    """Noise [B, z, h, w] → normalised latents, each under its own context."""
    full, unconditional = (stack([getattr(c, name) for c in contexts]) for name in ("full", "unconditional"))
    drawn = contexts[0].partial is contexts[0].unconditional
    partial = unconditional if drawn else stack([context.partial for context in contexts])

    def velocity(branch: Branch, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return model.mmdit(
            x.to(model.dtype),
            timestep.to(model.device).expand(len(x)),
            model.mmdit.bound_context(branch.hidden).to(model.dtype),
            branch.image_mask,
            branch.image_grids,
            [reference.to(model.dtype) for reference in branch.references],
        ).float()

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        timestep = sigma_to_timestep(sigma)
        v_full, v_unconditional = velocity(full, x, timestep), velocity(unconditional, x, timestep)
        v_partial = v_unconditional if drawn else velocity(partial, x, timestep)
        return x - sigma * guidance.combine(
            v_full, v_partial, v_unconditional, all_scale, partial_scale, float(timestep)
        )

    sigmas = flow_sigmas(steps, model.config.mmdit.flow_shift)
    return dpmpp_2m(denoise, noise.to(model.device, torch.float32), sigmas)


@torch.inference_mode()
def reconstruct(model: InternVLU, picture: np.ndarray) -> np.ndarray:
    """The picture, uint8 [H, W, 3], after the VAE alone."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()[None] / 127.5 - 1
    latents = model.vae.encode(pixels.to(model.device, model.dtype)).float()
    return np.asarray(imaging.to_pictures(model.decode(latents))[0])
