"""Which dtype each weight of a network is kept in, and which one the network computes in."""

from types import MappingProxyType

import comfy.model_management
import comfy.utils
import torch

from ...internvlu_core.checkpoints.quantised import INPUT_SCALE
from ...internvlu_core.quantization import QuantisedWeight, find_format
from ...internvlu_core.quantization.float8 import DTYPE as FLOAT8
from ...internvlu_core.quantization.formats import WORKING_BYTES
from .dequantising import keep_stored
from .float8 import keep_in_float8
from .quantised import Formats, operations, part_names, place_layers, plain_tensors

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


def as_floats(state_dict: dict, formats: Formats, dtype: torch.dtype | None) -> Formats:
    """Turn layers in fewer bits into floats if the user chose a dtype of floats. Returns those that stay."""
    if dtype is None or dtype.itemsize == 1:
        return formats
    for path, layer_format in formats.items():
        parts = {name: state_dict.pop(f"{path}.{name}") for name in part_names(state_dict, path)}
        parts.pop(INPUT_SCALE, None)
        state_dict[f"{path}.weight"] = layer_format.dequantise(parts, dtype)
    return {}


def choose_dtypes(
    state_dict: dict, dtype: torch.dtype | None, device: torch.device, formats: Formats = MappingProxyType({})
) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of the weights, dtype that they are cast to for computing; None if that is the same).

    formats: of layers in fewer bits, which do not count; nor do weights that a GGUF file stores packed.
    """
    plain = plain_tensors(state_dict, formats)
    state_dict = {name: tensor for name, tensor in plain.items() if not isinstance(tensor, QuantisedWeight)}
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
    *,
    formats: Formats = MappingProxyType({}),
    load_device: torch.device | None = None,
    exact: bool = False,
):
    """Give a network on the meta device its weights; those that need no conversion stay memory-mapped.

    In 8 bits, the core says which layers are kept so; the rest has the dtype that is computed in, or its own. formats:
    of layers that are in fewer bits already, which they stay, as do weights that a file stores packed (GGUF).
    load_device, exact: as in quantised.operations; weights are also quantised on load_device.
    """
    weight_format = find_format(dtype)
    if weight_format is not None and load_device is not None and load_device.type != "cpu":
        comfy.model_management.free_memory(WORKING_BYTES, load_device)  # which other models may fill
    rest = dtype if weight_format is None else compute_dtype
    if formats:
        ops = operations(formats, compute_dtype or dtype, load_device, exact=exact)
        place_layers(network, state_dict, formats, ops, rest or torch.bfloat16, device)
    while state_dict:
        name, tensor = state_dict.popitem()
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        if not hasattr(module, leaf):  # strictness was checked while reading; this is a guard against renamed modules
            raise AttributeError(f"the network has no parameter {name}")
        if isinstance(tensor, QuantisedWeight):
            keep_stored(network, path, tensor, device, compute_dtype or dtype)
        elif weight_format is not None and weight_format.for_layer(name, tensor):
            keep_in_float8(network, path, tensor, device, load_device)
        else:
            kept = tensor.to(device=device, dtype=rest)
            setattr(module, leaf, torch.nn.Parameter(kept, requires_grad=False))
    network.eval()
