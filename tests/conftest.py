"""Fixtures that every test may use."""

import pytest
import torch
from PIL import Image

from internvlu_core import InternVLU
from support.checkpoints import CHECKPOINT, GOLDEN

# The networks of the tests are tiny: threads would spend more time waiting for each other than computing.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """The folder of the recorded runs."""
    return GOLDEN


@pytest.fixture(scope="session")
def model():
    """The recorded runs' model. Calls leave it as it is, so all tests share it."""
    return InternVLU.from_pretrained(CHECKPOINT, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def photo():
    """A wide picture."""
    return Image.open(GOLDEN / "photo.png").convert("RGB")


@pytest.fixture(scope="session")
def tall():
    """A tall picture, of another size than photo."""
    return Image.open(GOLDEN / "tall.png").convert("RGB")


@pytest.fixture
def read_ids(model, monkeypatch):
    """Rows of ids that the language model reads while the test runs."""
    rows, embed = [], model.vlm.embed

    def spy(ids, *args):
        rows.append(ids[0].tolist())
        return embed(ids, *args)

    monkeypatch.setattr(model.vlm, "embed", spy)
    return rows
