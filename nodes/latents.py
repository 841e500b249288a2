"""Latents: InternVL-U Empty Latent, and sizes that fit the model's grid."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..internvlu_core.errors import InputError
from ..internvlu_core.pipeline import MAX_SIDE
from .schema import CATEGORY, aliases

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


class InternVLUEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUEmptyLatent",
            display_name="InternVL-U Empty Latent",
            **aliases("size", "aspect ratio", "resolution", "latent image"),
            category=CATEGORY,
            description="A blank latent to draw on.",
            inputs=[
                io.Int.Input("width", default=1024, min=GRID, max=MAX_SIDE, step=GRID, tooltip="Pixels."),
                io.Int.Input("height", default=1024, min=GRID, max=MAX_SIDE, step=GRID, tooltip="Pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures."),
            ],
            outputs=[io.Latent.Output(tooltip="For InternVL-U Sample or a stock sampler.")],
        )

    @classmethod
    def execute(cls, width, height, batch_size) -> io.NodeOutput:
        check_side("width", width)
        check_side("height", height)
        return io.NodeOutput(empty_latent(width, height, batch_size))
