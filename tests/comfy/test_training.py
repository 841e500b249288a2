"""Training an adapter by the template for this ComfyUI: from a folder of pictures and texts to a used file."""

import re

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from support.described_workflows import WORKFLOWS
from support.pack import ROOT
from support.workflows import change, is_for_this, picture_of, shipped

SMALL = {"width": 64, "height": 64, "rank": 4, "learning_rate": 0.03, "training_dtype": "fp32", "lora_dtype": "fp32"}


@pytest.fixture
def template(server) -> dict:
    """In API format, with small pictures and few steps."""
    info = server.object_info()
    (name,) = [name for name, spec in WORKFLOWS.items() if "versions" in spec and is_for_this(name, info)]
    prompt = shipped(name)
    change(prompt, **SMALL, steps=4)
    return prompt


def test_from_a_folder_of_pictures_to_a_used_adapter(server, template):
    folder = server.base_dir / "input" / "ten"
    folder.mkdir()
    for number, size in enumerate(((80, 64), (64, 90), (100, 100))):
        Image.new("RGB", size, (80 * number, 40, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a photo of zorbl {number}", encoding="utf-8")
    change(template, folder="ten")
    result = server.run(template)
    without, taught = (np.array(picture_of(server, result, node), int) for node in ("18", "6"))
    assert without.shape == taught.shape == (64, 64, 3)
    assert np.abs(without - taught).max() > 2
    assert picture_of(server, result, "16").width > 500  # the plot of the losses
    (file,) = (server.base_dir / "output" / "loras").glob("internvl_u_4_steps_*.safetensors")
    # The saved file, by the loader that a person uses.
    target = server.base_dir / "models" / "loras" / "zorbl.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.read_bytes())
    with safe_open(target, "pt") as stored:
        assert len(stored.keys()) > 10
    loaded = {key: template[key] for key in ("1", "12", "13", "4", "5", "6")}
    values = {"model": ["1", 0], "lora_name": target.name, "strength_model": 1.0}
    loaded["14"] = {"class_type": "LoraLoaderModelOnly", "inputs": values}
    again = np.array(picture_of(server, server.run(loaded), "6"), int)
    assert np.abs(again - taught).max() <= 1


def test_nodes_have_the_names_that_the_document_says(server):
    """Of stock nodes, in every ComfyUI."""
    shown = {node["display_name"] for node in server.object_info().values()}
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    text = text.split("### In ComfyUI")[1].split("\n## ")[0]
    ours = {"Encode", "Run", "Load", "Empty Latent", "InternVL-U-toy"}  # and templates, which have numbers
    stock = {name for name in re.findall(r"\*([^*\n]+)\*", text) if not name[0].isdigit()} - ours
    assert len(stock) > 4 and stock <= shown
    page = (ROOT / "js" / "docs" / "InternVLUAsk.md").read_text(encoding="utf-8")
    named = re.search(r"as \*(Load [^*]+)\* gives it \(in older ComfyUIs \*(Load [^*]+)\*\)", page)
    assert shown & set(named.groups())
