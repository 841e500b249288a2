"""Latents in ComfyUI: sizes that fit the model's grid, and blank ones."""

import comfy.model_management
import torch

from ...internvlu_core.errors import InputError

GRID = 16  # pixels: 8 of the VAE × 2 of a patch
CHANNELS = 16


def check_side(name: str, side: int):
    """Raises InputError naming the nearest two sizes."""
    if side % GRID:
        below = side // GRID * GRID
        nearest = f"{below} or {below + GRID}" if below else str(GRID)
        raise InputError(f"{name} {side} is not a multiple of {GRID}; the nearest are {nearest}")


def check_size(samples: torch.Tensor):
    """samples: [B, C, (T,) h, w]."""
    for name, side in zip(("height", "width"), samples.shape[-2:], strict=True):
        check_side(name, side * 8)


def empty_latent(width: int, height: int, batch_size: int = 1) -> dict:
    """A LATENT for pictures of this size in pixels."""
    shape = (batch_size, CHANNELS, height // 8, width // 8)
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}
