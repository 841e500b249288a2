"""Low-rank adapters (LoRA, arXiv 2106.09685) for linear layers, and the file that ComfyUI's LoraLoader reads."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from internvlu_core.errors import InputError

from .settings import LoraStage
from .storage import Networks, replaced

# The names of a network's layers begin so in ComfyUI's LoRA files: for its MODEL, and for its CLIP.
COMFYUI_PREFIXES = {"mmdit.": "diffusion_model.", "vlm.": "text_encoders."}
UP, DOWN = "lora_up.weight", "lora_down.weight"


def add_adapters(networks: Networks, stage: LoraStage) -> dict[str, nn.Parameter]:
    """Freeze the networks, and add alpha / rank · up(down(input)) to the output of each chosen layer.

    up is 0 at first, so that the adapters change nothing yet. Returns the adapters' weights by the names of the layer
    and the weight. Raises InputError if no layer is chosen.
    """
    networks.requires_grad_(False)
    weights, generator = {}, torch.Generator().manual_seed(stage.seed)
    for name, layer in networks.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith(stage.trained) and any(p in name for p in stage.layers):
            noise = torch.randn(stage.rank, layer.in_features, generator=generator) * layer.in_features**-0.5
            down = nn.Parameter(noise.to(layer.weight.device))
            up = nn.Parameter(noise.new_zeros(layer.out_features, stage.rank).to(layer.weight.device))
            layer.register_forward_hook(partial(_add_adapter, down, up, stage.alpha / stage.rank))
            weights |= {f"{name}.{DOWN}": down, f"{name}.{UP}": up}
    if not weights:
        raise InputError(f"no layer of {', '.join(stage.trained)} has any of {', '.join(stage.layers)} in its name")
    return weights


def _add_adapter(
    down: Tensor, up: Tensor, scale: float, layer: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    """A forward hook; the first three arguments are bound."""
    (x,) = inputs
    return output + scale * F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)).to(output.dtype)


def write_lora(file: Path, weights: dict[str, Tensor], alpha: float, dtype: torch.dtype):
    """Write the weights that add_adapters returned as a safetensors file, under names in the style of kohya-ss."""
    tensors = {}
    for name, tensor in weights.items():
        network = next(prefix for prefix in COMFYUI_PREFIXES if name.startswith(prefix))
        name = COMFYUI_PREFIXES[network] + name.removeprefix(network)
        tensors[name] = tensor.detach().to("cpu", dtype).contiguous()
        if name.endswith(UP):
            tensors[name.removesuffix(UP) + "alpha"] = torch.tensor(float(alpha))
    with replaced(file) as new:
        save_file(tensors, new, {"format": "pt"})
