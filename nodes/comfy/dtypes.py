"""Which dtype each weight of a network is kept in, and which one the network computes in."""

import comfy.model_management
import comfy.utils
import torch

from ...internvlu_core.quantization import QuantisedWeight, find_format
from ...internvlu_core.quantization.float8 import DTYPE as FLOAT8
from .float8 import keep_in_float8
from .gguf import keep_packed

# What the loaders offer. None: what ComfyUI prefers for the device and the stored weights.
DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": FLOAT8,
}
# To compute in, best first. float16 is for GPUs without bfloat16, on which float32 is slow (core: models/float16.py).
COMPUTE_DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def choose_dtypes(
    state_dict: dict, dtype: torch.dtype | None, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of the weights, dtype that they are cast to for computing; None if that is the same).

    Weights that a file stores packed stay so, and are no part of this.
    """
    state_dict = {name: tensor for name, tensor in state_dict.items() if not isinstance(tensor, QuantisedWeight)}
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            device=device,
            model_params=comfy.utils.calculate_parameters(state_dict),
            supported_dtypes=COMPUTE_DTYPES,
            weight_dtype=comfy.utils.weight_dtype(state_dict),
        )
    if dtype.itemsize == 1:
        dtype = FLOAT8  # also for a file in another format of 8 bits
    return dtype, comfy.model_management.unet_manual_cast(dtype, device, COMPUTE_DTYPES)


def assign(
    network: torch.nn.Module,
    state_dict: dict,
    dtype: torch.dtype,
    device: torch.device,
    compute_dtype: torch.dtype | None = None,
):
    """Give a network on the meta device its weights; those that need no conversion stay memory-mapped.

    In 8 bits, the core says which layers are kept so; the rest has the dtype that is computed in, or its own. Weights
    that a file stores packed (GGUF) stay packed, whatever the dtype.
    """
    weight_format = find_format(dtype)
    rest = dtype if weight_format is None else compute_dtype
    while state_dict:
        name, tensor = state_dict.popitem()
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        if not hasattr(module, leaf):  # strictness was checked while reading; this is a guard against renamed modules
            raise AttributeError(f"the network has no parameter {name}")
        if isinstance(tensor, QuantisedWeight):
            keep_packed(network, path, tensor, device, compute_dtype or dtype)
        elif weight_format is not None and weight_format.for_layer(name, tensor):
            keep_in_float8(network, path, tensor, device)
        else:
            kept = tensor.to(device=device, dtype=rest)
            setattr(module, leaf, torch.nn.Parameter(kept, requires_grad=False))
    network.eval()
