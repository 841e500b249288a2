"""Recorded runs of the official pipeline: the cases that are recorded, and one recorded run with all of its values.

A folder of them has cases.json, the pictures that it names, `recorded/` with NAME.json and NAME.safetensors of each
case in float32, and perhaps `recorded-bfloat16/` (record_official.py, with --replay). tests/golden is such a folder.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ..conditioning import Branch, Context
from ..decoding import TextResult
from ..errors import InputError
from ..imaging import open_image
from ..pipeline import InternVLU
from ..prompt import Prompt
from ..sampling import flow_sigmas

BRANCHES = "full", "partial", "unconditional"
FLOAT32, BFLOAT16 = "recorded", "recorded-bfloat16"  # folders
FREQUENCIES = f"{FLOAT32}/frequencies.json"  # of the time embedding, where they were recorded


def frequencies(folder: Path) -> Tensor | None:
    """Those of the time embedding on the machine that recorded a folder; None if it does not say."""
    file = folder / FREQUENCIES
    if not file.is_file():
        return None
    return torch.tensor(json.loads(file.read_text(encoding="utf-8")), dtype=torch.float32, device="cpu")


class Recording:
    """One recorded run: its case, its record (JSON), its tensors, and the core's values that they stand for."""

    def __init__(self, folder: Path, case: dict, recorded: str = FLOAT32):
        """recorded: the folder inside of `folder`. Raises InputError if a file is missing or damaged."""
        self.name, self.settings = case["name"], case
        file = folder / recorded / self.name
        try:
            self.record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            self.tensors = load_file(file.with_suffix(".safetensors"))
        except Exception as error:  # safetensors has errors of its own
            raise InputError(f"the recorded run {file} cannot be read: {error}") from error
        self.prompt, self.system = case["prompt"], case.get("system_prompt")
        self.images = [open_image(folder / name) for name in case.get("images", [])]
        self.draws, self.writes = case["mode"] != "text", case["mode"] != "image"
        self.reasons = self.draws and self.writes

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The generated token ids."""
        return tuple(self.record["output_ids"][0])

    @property
    def reasoning(self) -> TextResult | None:
        """The recorded reasoning, of runs that reason before they draw."""
        return TextResult(self.record["output_text"][0], self.tokens) if self.reasons else None

    @property
    def features(self) -> list[Tensor]:
        """The image features [tokens, hidden] of each picture."""
        return list(self["vit.features"]) if self.images else []

    @property
    def references(self) -> list[Tensor]:
        """The normalised latents [1, z, h, w] of each picture to edit."""
        return [self["reference.latents.0"]] if self.images else []

    def scales(self, model: InternVLU) -> tuple[float, float]:
        """(all_scale, partial_scale)"""
        given = self.settings.get("all_cfg"), self.settings.get("part_cfg")
        return model.config.mmdit.guidance(self.reasons, *given)

    def sigmas(self, model: InternVLU) -> Tensor:
        """The noise levels of the run."""
        return flow_sigmas(self.settings["steps"], model.config.mmdit.flow_shift)

    def text_prompt(self, model: InternVLU) -> Prompt:
        """What text generation starts from."""
        prompts = model.conditioner.prompts
        if self.reasons:
            return prompts.full(self.prompt, len(self.images), self.system)
        return prompts.chat(self.prompt, [1] * len(self.images), self.system)

    def branch(self, model: InternVLU, index: int) -> Branch:
        """The recorded conditioning of one of BRANCHES."""
        mask = self[f"context.image_mask.{index}"]
        grids = [model.config.tile_grid] if mask.any() else []
        return Branch(self[f"context.hidden.{index}"], mask, grids, self.references if grids else [])

    def context(self, model: InternVLU) -> Context:
        """The recorded conditioning."""
        full, partial, unconditional = (self.branch(model, index) for index in range(3))
        return Context(full, partial if self.images else unconditional, unconditional)


def read_cases(folder: Path) -> list[dict]:
    """The cases of a folder of recorded runs. Raises InputError."""
    try:
        return json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'cases.json'} cannot be read: {error}") from error


def write_cases(folder: Path, side: int, steps: int, tokens: int):
    """Write cases.json and its picture, for record_official.py: a run of each task that the official code can do.

    side: of the pictures, in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sample_picture(side).save(folder / "picture.png")
    seen, drawn = {"images": ["picture.png"]}, {"height": side, "width": side, "steps": steps, "seed": 42}
    written = {"max_new_tokens": tokens}
    cases = [
        {"name": "answer", "mode": "text", "prompt": "What is a cat?", **written},
        {"name": "see", "mode": "text", "prompt": "What is in the picture?", "keep_pixels": True, **seen, **written},
        {"name": "draw", "mode": "image", "prompt": "a photo of a red boat on a lake", **drawn},
        {"name": "edit", "mode": "image", "prompt": "Make it night.", **seen, **drawn},
        {"name": "reason_draw", "mode": "text_image", "prompt": "a picture of hope", **drawn, **written},
        {"name": "reason_edit", "mode": "text_image", "prompt": "make it winter", **seen, **drawn, **written},
    ]
    (folder / "cases.json").write_text(json.dumps(cases, indent=1), encoding="utf-8")


def sample_picture(side: int, phase: float = 0.0) -> Image.Image:
    """A smooth picture with some structure, RGB. phase: another one gives another picture."""
    y, x = np.mgrid[:side, :side] * (6.283 / side) + phase
    channels = [np.sin(a * x + b * y) + np.cos(b * x - a * y) for a, b in ((1, 2), (3, 1), (5, 7))]
    return Image.fromarray(((np.stack(channels, -1) + 2) * 63.75).astype(np.uint8))
