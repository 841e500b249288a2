"""Weights as files: split, single, saved by ComfyUI, found in extra places, and downloaded, all through the queue."""

import importlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from internvlu_core import InternVLU
from internvlu_core.checkpoints.convert import convert
from internvlu_core.checkpoints.files import SPLIT_FILES
from support.checkpoints import CHECKPOINT, native_checkpoint
from support.comfy_server import ComfyError, ComfyInterrupted, ComfyServer, link_folder
from support.fake_hub import FakeHub
from support.inprocess import PACK, load_pack
from support.workflows import assert_close_pictures, workflow

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"width": 64, "height": 48, "steps": 2}
DOWNLOAD = "download: InternVL-U (8.5 GB)"
TOY = "InternVL-U-toy"  # the pack's own
MMDIT, VLM, VAE = (Path(SPLIT_FILES[name]).name for name in ("generation_decoder", "vlm", "vae"))


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    return native_checkpoint(tmp_path_factory.mktemp("native") / "checkpoint")


@pytest.fixture(scope="module")
def core(native):
    return InternVLU.from_pretrained(native, dtype=torch.float32)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "repository"
    shutil.copytree(CHECKPOINT, folder)
    with FakeHub(folder) as hub:
        yield hub


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, native, hub):
    """A ComfyUI without the released checkpoint, but with another one in every form and place."""
    base = tmp_path_factory.mktemp("comfyui")
    models, extra = base / "models", base / "extra"
    for folder in ("internvl_u/group", "checkpoints", "diffusion_models", "text_encoders", "vae"):
        (models / folder).mkdir(parents=True)
    link_folder(native, models / "internvl_u" / "native")
    convert(native, models / "internvl_u" / "group" / "one.safetensors", "single")
    convert(native, models, "split")
    convert(native, extra / "diffusers" / "elsewhere", "folder")
    convert(native, extra, "split")
    (extra / SPLIT_FILES["generation_decoder"]).rename(extra / "diffusion_models" / "elsewhere.safetensors")

    # What is not ours, not whole, or not where it belongs.
    convert(CHECKPOINT, base / "golden", "split")
    shutil.copy(base / "golden" / SPLIT_FILES["vae"], models / "vae" / "golden.safetensors")
    shutil.copy(models / SPLIT_FILES["vlm"], models / "diffusion_models" / "vlm.safetensors")
    qwen = {"txt_norm.weight": torch.ones(8), "img_in.weight": torch.ones(8, 64), "img_in.bias": torch.ones(8)}
    for folder in ("diffusion_models", "text_encoders", "internvl_u"):
        save_file(qwen, models / folder / "qwen.safetensors")
    (models / "diffusion_models" / "pickle.ckpt").write_bytes(b"pickle")
    content = (models / "internvl_u/group/one.safetensors").read_bytes()
    (models / "internvl_u" / "cut.safetensors").write_bytes(content[:-1])
    (models / "checkpoints" / "one.safetensors").write_bytes(content)
    shutil.copytree(CHECKPOINT, models / "internvl_u" / "Other.partial")

    places = base / "extra.yaml"
    places.write_text(
        f"elsewhere:\n  base_path: {extra}\n  internvl_u: diffusers\n  diffusion_models: diffusion_models\n",
        encoding="utf-8",
    )
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    arguments = ["--extra-model-paths-config", str(places)]
    with ComfyServer(os.environ["COMFYUI_PATH"], base, ROOT, arguments, environment) as server:
        for picture in (ROOT / "tests" / "pictures").glob("*.png"):
            server.upload_image(picture)
        yield server


def choices(comfy, node: str, name: str) -> list[str]:
    kind, *options = comfy.object_info(node)["input"]["required"][name]
    return kind if isinstance(kind, list) else options[0]["options"]


def loaded(prompt: dict, model=("1", 0), vlm=("1", 1), vae=("1", 2), **nodes) -> dict:
    """A workflow with other loaders. nodes: {id: node}, in place of node 1 if they do not need it."""
    sources = {("1", 0): model, ("1", 1): vlm, ("1", 2): vae}
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = list(sources.get(tuple(value), value))
    return prompt | nodes


def loader(class_type: str, name: str, **inputs) -> dict:
    key = {"UNETLoader": "unet_name", "VAELoader": "vae_name", "CheckpointLoaderSimple": "ckpt_name"}.get(class_type)
    key = key or ("checkpoint" if class_type == "InternVLULoader" else "file")
    extra = {"weight_dtype": "default"} if class_type == "UNETLoader" else {}
    extra = {"weight_dtype": "auto"} if class_type.startswith("InternVLU") else extra
    return {"class_type": class_type, "inputs": {key: name, **extra, **inputs}}


SPLIT = {
    "model": ("m", 0), "vlm": ("v", 0), "vae": ("a", 0),
    "m": loader("InternVLUModelLoader", MMDIT),
    "v": loader("InternVLUVLMLoader", VLM),
    "a": loader("VAELoader", VAE),
}  # fmt: skip
ROUTES = {
    "folder": {"1": loader("InternVLULoader", "native")},
    "single": {"1": loader("InternVLULoader", "group/one.safetensors")},
    "split": SPLIT,
    "elsewhere": SPLIT | {"m": loader("InternVLUModelLoader", "elsewhere.safetensors")},
    "folder elsewhere": {"1": loader("InternVLULoader", "elsewhere")},
}


def picture(comfy, prompt: dict):
    (image,) = comfy.images(comfy.run(prompt))
    return image.convert("RGB")


def test_what_is_listed(comfy, hub):
    """Checkpoints in all forms and places; neither parts of them nor what is foreign or not whole yet."""
    names = choices(comfy, "InternVLULoader", "checkpoint")
    assert set(names) == {"elsewhere", "native", "cut.safetensors", "group/one.safetensors", TOY, DOWNLOAD}
    assert names[-1] == DOWNLOAD
    files = choices(comfy, "InternVLUModelLoader", "file")
    assert {MMDIT, "elsewhere.safetensors"} < set(files)
    assert "pickle.ckpt" not in files
    assert VLM in choices(comfy, "InternVLUVLMLoader", "file")
    assert VAE in choices(comfy, "VAELoader", "vae_name")
    assert not hub.requests, "nothing is asked of the hub before a user chooses the download"


@pytest.mark.parametrize("route", ROUTES)
def test_the_same_picture(comfy, core, route):
    prompt = loaded(workflow("text_to_image", **SMALL, prompt="a red cat"), **ROUTES[route])
    prompt["6"]["inputs"]["filename_prefix"] = route
    expected = core.generate("a red cat", width=64, height=48, steps=2, seed=42).images[0]
    assert_close_pictures(picture(comfy, prompt), np.asarray(expected))


def test_edit_with_three_files(comfy, photo, tmp_path):
    """The VAE of the stock loader reads the picture too."""
    photo.resize((96, 64)).save(tmp_path / "small.png")
    comfy.upload_image(tmp_path / "small.png")
    pictures = []
    for route in ("split", "folder"):
        prompt = loaded(workflow("edit", steps=2, prompt="make it red"), **ROUTES[route])
        for node in prompt.values():
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = "small.png"
        pictures.append(picture(comfy, prompt))
    assert_close_pictures(pictures[0], np.asarray(pictures[1]))


# What ComfyUI saves


@pytest.fixture(scope="module")
def saved(comfy) -> dict[str, Path]:
    """Files that ComfyUI's save nodes wrote."""
    prompt = {
        "1": loader("InternVLULoader", "native"),
        "2": loader("InternVLULoader", "native", weight_dtype="bf16"),
        "3": {"class_type": "InternVLUCLIP", "inputs": {"vlm": ["1", 1]}},
        "4": {"class_type": "ModelSave", "inputs": {"model": ["1", 0], "filename_prefix": "diffusion_models/saved"}},
        "5": {"class_type": "ModelSave", "inputs": {"model": ["2", 0], "filename_prefix": "diffusion_models/small"}},
        "6": {
            "class_type": "CheckpointSave",
            "inputs": {"model": ["1", 0], "clip": ["3", 0], "vae": ["1", 2], "filename_prefix": "internvl_u/whole"},
        },
    }
    comfy.run(prompt)
    output = comfy.base_dir / "output"
    names = {"saved": "diffusion_models", "small": "diffusion_models", "whole": "internvl_u"}
    return {name: output / folder / f"{name}_00001_.safetensors" for name, folder in names.items()}


def test_saved_model(comfy, core, saved, native):
    tensors = load_file(saved["saved"])
    config = tensors.pop("model.diffusion_model.internvlu_files")
    assert config.dtype == torch.uint8
    assert len(config) < 10_000, "the tokenizer has no place in it"
    stored = load_file(native / "generation_decoder/model.safetensors")
    del stored["encoder_padding_token"]  # never read
    assert {key.removeprefix("model.diffusion_model.") for key in tensors} == stored.keys()
    assert all(torch.equal(tensors[f"model.diffusion_model.{key}"], stored[key]) for key in stored)

    prompt = loaded(workflow("text_to_image", **SMALL, prompt="a red cat"), model=("m", 0), **ROUTES["folder"])
    prompt["m"] = loader("InternVLUModelLoader", saved["saved"].name)
    expected = core.generate("a red cat", width=64, height=48, steps=2, seed=42).images[0]
    assert_close_pictures(picture(comfy, prompt), np.asarray(expected))


def test_saved_in_another_dtype(comfy, saved):
    tensors = load_file(saved["small"])
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16, torch.uint8}
    prompt = loaded(workflow("text_to_image", **SMALL), model=("m", 0), **ROUTES["folder"])
    prompt["m"] = loader("InternVLUModelLoader", saved["small"].name)
    reference = loaded(workflow("text_to_image", **SMALL), model=("m", 0), **ROUTES["folder"])
    reference["m"] = loader("InternVLULoader", "native", weight_dtype="bf16")
    reference["6"]["inputs"]["filename_prefix"] = "small"
    assert picture(comfy, prompt).tobytes() == picture(comfy, reference).tobytes()


def test_saved_checkpoint(comfy, core, saved):
    """All three parts and the tokenizer are in it."""
    assert saved["whole"].name in choices(comfy, "InternVLULoader", "checkpoint")
    prompt = loaded(workflow("text_to_image", **SMALL, prompt="a red cat"))
    prompt["1"] = loader("InternVLULoader", saved["whole"].name)
    expected = core.generate("a red cat", width=64, height=48, steps=2, seed=42).images[0]
    assert_close_pictures(picture(comfy, prompt), np.asarray(expected))
    # The converter reads it as well.
    convert(saved["whole"], saved["whole"].parent / "split", "split")
    again = InternVLU.from_pretrained(saved["whole"].parent / "split", dtype=torch.float32)
    assert torch.equal(again.vae.decoder.conv_in.weight, core.vae.decoder.conv_in.weight)


def test_saved_vae(comfy, core):
    """VAESave of our VAE → the stock VAELoader."""
    save = {"class_type": "VAESave", "inputs": {"vae": ["1", 2], "filename_prefix": "vae/saved"}}
    comfy.run({"1": loader("InternVLULoader", "native"), "2": save})
    prompt = loaded(workflow("text_to_image", **SMALL, prompt="a red cat"), vae=("a", 0), **ROUTES["folder"])
    prompt["a"] = loader("VAELoader", "saved_00001_.safetensors")
    prompt["6"]["inputs"]["filename_prefix"] = "saved_vae"
    expected = core.generate("a red cat", width=64, height=48, steps=2, seed=42).images[0]
    assert_close_pictures(picture(comfy, prompt), np.asarray(expected))


# Files at the wrong loader


def refused(comfy, node: dict, *said: str):
    sink = {"class_type": "ModelSave", "inputs": {"model": ["1", 0], "filename_prefix": "never"}}
    if node["class_type"] == "InternVLUVLMLoader":
        sink = workflow("ask")["8"]
    if node["class_type"] == "VAELoader":
        sink = {"class_type": "VAESave", "inputs": {"vae": ["1", 0], "filename_prefix": "never"}}
    sink["inputs"] = {key: ["1", 0] if isinstance(value, list) else value for key, value in sink["inputs"].items()}
    with pytest.raises(ComfyError) as error:
        comfy.run({"1": node, "2": sink})
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("class_type", "name", "said"),
    [
        ("InternVLUModelLoader", "qwen.safetensors", ["qwen.safetensors is no InternVL-U file", "convert"]),
        ("InternVLUModelLoader", "vlm.safetensors", ["vlm.safetensors holds no generation_decoder, but vlm"]),
        ("InternVLUModelLoader", "pickle.ckpt", ["'pickle.ckpt' is not in", "diffusion_models"]),
        ("InternVLUModelLoader", "../vae/golden.safetensors", ["'../vae/golden.safetensors' is not in"]),
        ("InternVLUVLMLoader", "qwen.safetensors", ["is no InternVL-U file"]),
        ("InternVLULoader", "qwen.safetensors", ["'qwen.safetensors' is not in", "'native'"]),
        ("InternVLULoader", "Other.partial", ["'Other.partial' is not in"]),
        ("InternVLULoader", "cut.safetensors", ["cut.safetensors is not a whole safetensors file", "cut off"]),
        ("VAELoader", "golden.safetensors", ["VAE is invalid"]),
    ],
)
def test_wrong_files(comfy, class_type, name, said):
    refused(comfy, loader(class_type, name), *said)


def test_stock_loaders_take_ours_for_no_other_model(comfy, saved):
    """Not for Qwen-Image, above all, whose blocks have the same names."""
    for name in ("saved", "whole"):
        shutil.copy(saved[name], comfy.base_dir / "models" / "checkpoints" / saved[name].name)
    for name in (MMDIT, saved["saved"].name):
        refused(comfy, loader("UNETLoader", name), "Could not detect model type")
    for name in ("one.safetensors", saved["saved"].name, saved["whole"].name):
        refused(comfy, loader("CheckpointLoaderSimple", name), "Could not detect model type")


def test_replaced_file_is_loaded_anew(comfy, native):
    """Under the same name, other weights: another picture without restarting anything."""
    file = comfy.base_dir / "models" / "diffusion_models" / "changing.safetensors"
    shutil.copy(comfy.base_dir / "models" / SPLIT_FILES["generation_decoder"], file)
    prompt = loaded(workflow("text_to_image", **SMALL), model=("m", 0), **ROUTES["folder"])
    prompt["m"] = loader("InternVLUModelLoader", file.name)
    first = picture(comfy, prompt)
    prompt["6"]["inputs"]["filename_prefix"] = "again"
    assert "m" in comfy.run(prompt).cached
    other = native.parent / "other"
    shutil.copytree(native, other)
    tensors = load_file(native / "generation_decoder/model.safetensors")
    save_file({k: t + 0.05 for k, t in tensors.items()}, other / "generation_decoder/model.safetensors")
    convert(other, native.parent / "converted", "split")
    os.replace(native.parent / "converted" / SPLIT_FILES["generation_decoder"], file)
    assert picture(comfy, prompt).tobytes() != first.tobytes()


def test_nothing_to_load(monkeypatch):
    """A new node comes with the toy, not with the download; a workflow that names a checkpoint says how to get it."""
    load_pack()
    download = importlib.import_module(f"{PACK}.nodes.comfy.download")
    monkeypatch.setattr(download.folders.folder_paths, "get_folder_paths", lambda name: ["models/internvl_u"])
    assert download.choices() == [TOY, DOWNLOAD]
    assert download.resolve(DOWNLOAD) is None
    with pytest.raises(ValueError, match=rf"found there: '{TOY}'; press .*button.* '{re.escape(DOWNLOAD)}'"):
        download.resolve("InternVL-U")


# The download; these tests follow each other


def test_download_of_a_wrong_file(comfy, hub):
    hub.published["vlm/model.safetensors"] = "0" * 64
    prompt = workflow("text_to_image", **SMALL, checkpoint=DOWNLOAD)
    with pytest.raises(ComfyError, match=r"vlm/model\.safetensors arrived, but is not the published file"):
        comfy.run(prompt)
    hub.published.clear()
    assert "InternVL-U" not in choices(comfy, "InternVLULoader", "checkpoint")


def test_download_refused_by_the_hub(comfy, hub):
    hub.status = 403
    with pytest.raises(ComfyError, match=r"refuses access.*By hand: .*models/internvl_u|refuses access.*extra"):
        comfy.run(workflow("text_to_image", **SMALL, checkpoint=DOWNLOAD))
    hub.status = None


def test_download_cancelled(comfy, hub):
    def cancel(kind, data):
        if kind == "progress" and data["node"] == "1" and data["value"] > 0.1 * data["max"]:
            comfy.interrupt()

    # From the start: what an earlier test left would be there at once, and newer servers report only now and then.
    for partial in comfy.base_dir.parent.rglob("*.partial"):
        shutil.rmtree(partial)
    hub.delay = 0.6  # the cancel has to arrive before the rest of the download
    with pytest.raises(ComfyInterrupted):
        comfy.run(workflow("text_to_image", **SMALL, checkpoint=DOWNLOAD), on_event=cancel)
    hub.delay = 0
    assert DOWNLOAD in choices(comfy, "InternVLULoader", "checkpoint")


def test_download_goes_on_and_loads(comfy, hub, model):
    """Only what was missing is fetched; the node shows its progress; the choice then means what is there."""
    hub.sent.clear()
    prompt = workflow("text_to_image", **SMALL, checkpoint=DOWNLOAD, prompt="a red cat")
    result = comfy.run(prompt)
    (image,) = comfy.images(result)
    expected = model.generate("a red cat", width=64, height=48, steps=2, seed=42).images[0]
    assert_close_pictures(image, np.asarray(expected))

    total = sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file())
    progress = [(value, most) for node, value, most in result.progress if node == "1"]
    assert progress[-1] == (total, total)
    assert 0 < sum(hub.sent.values()) < total
    assert {authorization for *_, authorization in hub.requests} == {None, "Bearer hf_secret"}

    names = choices(comfy, "InternVLULoader", "checkpoint")
    assert "InternVL-U" in names
    assert DOWNLOAD not in names
    hub.requests.clear()
    prompt["6"]["inputs"]["filename_prefix"] = "again"
    prompt["4"]["inputs"]["seed"] = 1
    picture(comfy, prompt)
    prompt["1"]["inputs"]["checkpoint"] = "InternVL-U"
    picture(comfy, prompt)
    assert not hub.requests
