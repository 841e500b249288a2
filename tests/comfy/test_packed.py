"""The pack as the Registry would serve it, unpacked into an empty ComfyUI."""

import json
import os
import re
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest

from support.bench import NAME
from support.checkpoints import CHECKPOINT
from support.comfy_server import PACK_NAME, ComfyServer, link_folder
from support.pack import write_pack
from support.workflows import change, shipped


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


def test_draws_and_edits(fresh, server):
    """With the pictures that the pack itself brings along, and as the repository does."""
    for name in ("text_to_image", "edit"):
        prompt = shipped(name)
        change(prompt, steps=2)
        for node in prompt.values():
            if node["class_type"] == "InternVLUEmptyLatent":
                node["inputs"] |= {"width": 192, "height": 144}
        picture, expected = (np.asarray(image) for on in (fresh, server) for image in on.images(on.run(prompt)))
        assert np.array_equal(picture, expected) and picture.std() > 1, name
    log = fresh.log.read_text(encoding="utf-8", errors="replace")
    assert f'File "{fresh.base_dir / "custom_nodes"}' not in log, "a traceback through the pack"


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
