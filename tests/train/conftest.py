"""Checkpoints and pictures to train on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_train.settings import TextStage
from internvlu_train.storage import Networks, write_checkpoint
from internvlu_train.toy.fresh import write_fresh
from internvlu_train.toy.world import mixture
from support.training import TINY


@pytest.fixture(scope="session")
def fresh(tmp_path_factory) -> Path:
    """A tiny checkpoint that has learnt nothing."""
    folder = tmp_path_factory.mktemp("fresh") / "checkpoint"
    made = mixture.samples(TextStage(trained=(), tasks=(("draw", 1), ("edit", 1), ("ask", 1)), samples=300))
    write_fresh(folder, TINY, [text for sample in made for text in (sample.prompt, sample.words)])
    return folder


@pytest.fixture(scope="module")
def awake(fresh) -> Networks:
    """Its networks, with an MMDiT of which no part is zero, so that everything has an effect."""
    networks = Networks(fresh)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in networks.mmdit.named_parameters():
        if not parameter.any():
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        assert parameter.any(), name
    return networks


@pytest.fixture(scope="module")
def awake_checkpoint(fresh, awake, tmp_path_factory) -> Path:
    """The same networks as a checkpoint."""
    folder = tmp_path_factory.mktemp("awake") / "checkpoint"
    write_checkpoint(folder, fresh, awake, ("mmdit.",), torch.float32)
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two captioned pictures and an edit, of which one is larger than the model draws."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size, text in (("a", (48, 48), "a red star"), ("b", (64, 48), "a ring"), ("c", (96, 80), "make it blue")):
        chance = np.random.default_rng(len(text))
        for ending in ("", ".before")[: 1 + (name == "c")]:
            levels = chance.integers(0, 255, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(levels).resize(size).save(folder / f"{name}{ending}.png")
        (folder / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    return folder
