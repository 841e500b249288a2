"""What is looked at while a stage is trained: the loss on what is held out, drawings of it, and a tracker."""

import math
from pathlib import Path

import torch
from PIL import Image

from internvlu_core import InternVLU
from internvlu_core.errors import InputError

from .storage import Networks, replaced

SHEET_SIDE = 256  # pixels of a drawing on a contact sheet
DRAWING_STEPS = 20
TRACKERS = ("", "tensorboard")


def check_tracker(name: str):
    """Raises InputError for an unknown tracker, or one that is not installed."""
    if name not in TRACKERS:
        raise InputError(f"tracker is {name!r}; there are {', '.join(map(repr, TRACKERS))}")
    if name == "tensorboard":
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise InputError("the tracker tensorboard is not installed: pip install tensorboard") from error


@torch.no_grad()
def drawings(networks: Networks, prompts: list[tuple[str, list, tuple[int, int]]]) -> list[Image.Image]:
    """A drawing or an edit of each prompt, with the same noise each time. Leaves the networks in training mode."""
    model = InternVLU(networks.config, networks.conditioner.tokenizer, networks.vlm, networks.mmdit, networks.vae)
    made = []
    try:
        for prompt, images, (height, width) in prompts:
            size = {} if images else {"height": height, "width": width}
            made += model.generate(prompt, images, steps=DRAWING_STEPS, seed=0, **size).images
    finally:
        networks.train()
    return made


def write_sheet(file: Path, pictures: list[Image.Image]):
    """The pictures side by side, in a JPEG."""
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    rows = max(1, math.ceil(len(pictures) / columns))
    sheet = Image.new("RGB", (columns * SHEET_SIDE, rows * SHEET_SIDE), "white")
    for number, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((SHEET_SIDE, SHEET_SIDE))
        sheet.paste(small, (number % columns * SHEET_SIDE, number // columns * SHEET_SIDE))
    with replaced(file) as new:
        sheet.save(new, "JPEG", quality=90)
