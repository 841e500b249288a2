"""The pack as the Registry would serve it, unpacked into an empty ComfyUI."""

import json
import os
import re
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from support.bench import NAME
from support.checkpoints import CHECKPOINT
from support.comfy_server import PACK_NAME, ComfyServer, link_folder
from support.pack import write_pack
from support.workflows import assert_close_pictures, change, shipped


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A server that has nothing but the unpacked zip file and a checkpoint."""
    folder = tmp_path_factory.mktemp("packed")
    write_pack(folder / "node.zip")
    with zipfile.ZipFile(folder / "node.zip") as pack:
        pack.extractall(folder / "unpacked")
    (folder / "base" / "models" / "internvl_u").mkdir(parents=True)
    link_folder(CHECKPOINT, folder / "base" / "models" / "internvl_u" / NAME)
    environment = {"OMP_NUM_THREADS": "1"}
    with ComfyServer(os.environ["COMFYUI_PATH"], folder / "base", folder / "unpacked", env=environment) as server:
        yield server


def packed(server) -> list[str]:
    """Paths with slashes, of what was unpacked; Python has cached some since."""
    files = (path.relative_to(server.pack_dir).as_posix() for path in server.pack_dir.rglob("*") if path.is_file())
    return [file for file in files if "__pycache__" not in file]


def test_draws_and_edits(fresh, model):
    """What the core draws from the same prompt and seed, with the picture that the pack itself brings along."""
    landscape = Image.open(fresh.pack_dir / "workflows" / "input" / "internvlu_landscape.png").convert("RGB")
    for name, images in {"text_to_image": None, "edit": [landscape]}.items():
        prompt = shipped(name)
        change(prompt, steps=2)
        size = {} if images else {"width": 192, "height": 144}
        for node in prompt.values():
            if node["class_type"] == "InternVLUEmptyLatent":
                node["inputs"] |= size
        (picture,) = fresh.images(fresh.run(prompt))
        seed, words = prompt["4"]["inputs"]["seed"], prompt["2"]["inputs"]["prompt"]
        (expected,) = model.generate(words, images, steps=2, seed=seed, **size).images
        if images:  # an edit is drawn at the model's size and brought back to the picture's
            assert expected.size != landscape.size
            expected = enlarged(expected, landscape.size)
        assert_close_pictures(picture, np.asarray(expected))
    log = fresh.log.read_text(encoding="utf-8", errors="replace")
    assert f'File "{fresh.base_dir / "custom_nodes"}' not in log, "a traceback through the pack"


def enlarged(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As InternVL-U Restore Size does it."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size[::-1], mode="bicubic", antialias=True).clamp(0, 255).round()
    return Image.fromarray(pixels[0].permute(1, 2, 0).to(torch.uint8).numpy())


def test_everything_for_the_browser_is_served(fresh):
    def get(path):
        response = fresh.http.get(f"{fresh.url}{path}", timeout=60)
        assert response.ok, path
        return response

    files = packed(fresh)
    scripts = [file.removeprefix("js/") for file in files if file.startswith("js/")]
    assert scripts
    for file in scripts:
        assert get(f"/extensions/{PACK_NAME}/{file}").content

    graphs = {PurePosixPath(file).stem for file in files if re.fullmatch(r"workflows/[^/]+\.json", file)}
    assert set(get("/workflow_templates").json()[PACK_NAME]) == graphs

    blueprints = {PurePosixPath(file).stem for file in files if file.startswith("subgraphs/")}
    assert blueprints and {entry["name"] for entry in get("/global_subgraphs").json().values()} >= blueprints

    translated = get("/i18n").json()
    locales = [PurePosixPath(file) for file in files if file.startswith("locales/")]
    assert locales
    for file in locales:
        texts = json.loads((fresh.pack_dir / file).read_text(encoding="utf-8"))
        served = translated[file.parts[1]]
        assert (served if file.stem == "main" else served[file.stem]).keys() >= texts.keys()


def test_every_node_of_the_shipped_files_is_there(fresh):
    known = fresh.object_info().keys()
    prompts = [file for file in packed(fresh) if file.startswith("workflows/api/")]
    assert prompts
    for file in prompts:
        prompt = json.loads((fresh.pack_dir / file).read_text(encoding="utf-8"))
        assert {node["class_type"] for node in prompt.values()} <= known, file
