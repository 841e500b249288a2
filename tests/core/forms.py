"""A checkpoint whose VAE has the released shape, which the recorded one's has not."""

from pathlib import Path

import torch
from checkpoints import WEIGHTS, random_checkpoint
from safetensors.torch import load_file, save_file


def native_checkpoint(folder: Path) -> Path:
    """Random weights, with all that the released VAE stores: 194 tensors, some of them for videos only."""
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
