"""The toy checkpoint in the core: the same in every form of a checkpoint, small, in half precision."""

from pathlib import Path

import pytest
import torch

from internvlu_core import InternVLU
from internvlu_core.checkpoints.convert import convert

TOY = Path(__file__).resolve().parents[2] / "demo" / "InternVL-U-toy"
DRAW = {"prompt": "draw a red heart in the top left", "steps": 4}


@pytest.fixture(scope="module")
def model():
    return InternVLU.from_pretrained(TOY, dtype=torch.float32)


@pytest.mark.parametrize("form", ["split", "single"])
def test_it_is_the_same_in_every_form(model, tmp_path, form):
    files = convert(TOY, tmp_path, form)
    other = InternVLU.from_pretrained(files[0] if form == "single" else tmp_path, dtype=torch.float32)
    assert other.config == model.config
    assert torch.equal(other.generate(**DRAW).latents, model.generate(**DRAW).latents)


def test_it_is_stored_in_half_precision_and_small():
    assert sum(file.stat().st_size for file in TOY.rglob("*")) < 20e6
    assert InternVLU.from_pretrained(TOY).dtype == torch.bfloat16
