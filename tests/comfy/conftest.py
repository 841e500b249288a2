"""One real ComfyUI server with the tiny checkpoint, for all tests of this folder."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.bench import Bench
from support.checkpoints import CHECKPOINT, GOLDEN
from support.comfy_server import ComfyServer, link_folder

ROOT = Path(__file__).resolve().parents[2]
NAME = "InternVL-U"  # of the checkpoint, as the shipped workflows call it


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if not os.environ.get("COMFYUI_PATH"):
        pytest.fail("COMFYUI_PATH does not name a ComfyUI folder; `python3 scripts/dev.py test` sets it")
    base = tmp_path_factory.mktemp("comfyui")
    (base / "models" / "internvl_u").mkdir(parents=True)
    link_folder(CHECKPOINT, base / "models" / "internvl_u" / NAME)
    args, packs = ["--preview-method", "latent2rgb"], {"debug_pack": ROOT / "tests" / "support" / "debug_pack"}
    env = {"OMP_NUM_THREADS": "1"}  # the networks are tiny, as in tests/conftest.py
    with ComfyServer(os.environ["COMFYUI_PATH"], base, ROOT, args, env=env, extra_packs=packs) as server:
        for picture in (ROOT / "tests" / "pictures").glob("*.png"):
            server.upload_image(picture)
        yield server


@pytest.fixture(scope="session")
def bench(server, model, photo):
    """A workbench for graphs, on the server and on the core."""
    return Bench(server, model, photo)


@pytest.fixture(scope="session")
def recorded():
    """recorded(name) → (case, tensors) of an official run."""

    def read(name: str):
        case = json.loads((GOLDEN / "recorded" / f"{name}.json").read_text(encoding="utf-8"))
        return case, load_file(GOLDEN / "recorded" / f"{name}.safetensors")

    return read
