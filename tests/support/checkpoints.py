"""Checkpoint folders for tests: variants of the recorded one, and random ones of any size."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from internvlu_core.checkpoints import load as weights
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import COMPONENTS

from .networks import randomise

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CHECKPOINT = GOLDEN / "checkpoint"
WEIGHTS = {
    "vlm": "model.safetensors",
    "generation_decoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}

Tensors = dict[str, Tensor]


def copy_checkpoint(
    folder: Path, changes: dict | None = None, tensors: dict[str, Callable[[Tensors], None]] | None = None
) -> Path:
    """Copy the recorded checkpoint to folder.

    changes: {file such as "vlm/config.json": values to merge into it; None removes a key}. tensors: {component: a
    function that changes its {stored name: tensor} in place}.
    """
    shutil.copytree(CHECKPOINT, folder)
    change_json(folder, changes or {})
    for component, change in (tensors or {}).items():
        stored = load_file(folder / component / WEIGHTS[component])
        change(stored)
        _save(stored, folder / component)
    return folder


def random_checkpoint(folder: Path, changes: dict | None = None, seed: int = 0) -> Path:
    """Write a checkpoint with random weights whose JSON is the recorded one's with changes (see copy_checkpoint)."""
    copy_json(folder, changes or {})
    config = Config.read(folder)
    for component in COMPONENTS:
        network = randomise(weights.build_on_meta(config, component).to_empty(device="cpu"), seed)
        names = weights.tensor_names(config, component)
        stored = {names.file_name(name): tensor for name, tensor in network.state_dict().items()}
        if component == "vae":
            stored = {name: _with_earlier_taps(name, tensor) for name, tensor in stored.items()}
        elif component == "generation_decoder":
            stored["encoder_padding_token"] = torch.randn(config.mmdit.joint_size)
        _save(stored, folder / component)
    return folder


def native_checkpoint(folder: Path) -> Path:
    """Random weights, with a VAE of the released shape and all that it stores: 194 tensors, some for videos only."""
    random_checkpoint(folder, {"vae/config.json": {"num_res_blocks": 2}})
    file = folder / "vae" / WEIGHTS["vae"]
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith(".gamma") and "attentions" not in name:
            tensors[name] = tensor[..., None]
    for place, factor in {
        "encoder.down_blocks.5": 1,
        "encoder.down_blocks.8": 1,
        "decoder.up_blocks.0.upsamplers.0": 2,
        "decoder.up_blocks.1.upsamplers.0": 2,
    }.items():
        size = tensors[f"{place}.resample.1.weight"].shape[1]
        tensors[f"{place}.time_conv.weight"] = torch.randn(factor * size, size, 3, 1, 1)
        tensors[f"{place}.time_conv.bias"] = torch.randn(factor * size)
    save_file(tensors, file)
    return folder


def copy_json(folder: Path, changes: dict):
    """Copy all but the weights of the recorded checkpoint to folder, with changes (see copy_checkpoint)."""
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    change_json(folder, changes)


def change_json(folder: Path, changes: dict):
    for name, values in changes.items():
        file = folder / name
        merged = merge_json(json.loads(file.read_text(encoding="utf-8")), values)
        file.write_text(json.dumps(merged), encoding="utf-8")


def _save(stored: Tensors, folder: Path):
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / WEIGHTS[folder.name])


def merge_json(old: dict, new: dict) -> dict:
    """old with the values of new, at every depth; None removes a key."""
    merged = dict(old)
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_json(old.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def _with_earlier_taps(name: str, tensor: Tensor) -> Tensor:
    """A 2-D kernel as the released VAE stores it: 3-D, with earlier taps in time that a picture never meets."""
    if tensor.ndim != 4 or "resample" in name or "attentions" in name:
        return tensor
    return torch.stack([torch.randn_like(tensor)] * (tensor.shape[-1] - 1) + [tensor], dim=2)
