"""Which dtype each weight is kept in, and which one a network computes in."""

import re

import comfy.model_management
import comfy.utils
import torch

# What the loaders offer. None: what ComfyUI prefers for the device and the stored weights.
DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
# To compute in, best first. float16 is for GPUs without bfloat16, on which float32 is slow (core: models/float16.py).
COMPUTE_DTYPES = [torch.bfloat16, torch.float16, torch.float32]

_REPEATED = re.compile(r"\b(transformer_blocks|layers)\.\d+\..*\.weight")


def choose_dtypes(
    state_dict: dict, dtype: torch.dtype | None, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of the weights, dtype that they are cast to for computing; None if that is the same)."""
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            device=device,
            model_params=comfy.utils.calculate_parameters(state_dict),
            supported_dtypes=COMPUTE_DTYPES,
            weight_dtype=comfy.utils.weight_dtype(state_dict),
        )
    return dtype, comfy.model_management.unet_manual_cast(dtype, device, COMPUTE_DTYPES)


def kept_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype, compute_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of one weight. In 8 bits only the matrices of the repeated layers are kept, the rest as computed with.

    Those matrices are 99% of the released MMDiT and 75% of its VLM (whose head and token table are most of the rest).
    The first velocity is then off by 0.9% (recorded checkpoint) or 2.2% (random, 8 blocks of width 768). Keeping the
    few other values in 8 bits too makes that 9% and 5%: the time embedding alone costs 6% and 2%, proj_out and img_in
    3% each, norm_out up to 4%, biases 0.8%. For the VLM's hidden states 8% become 13%, and 11% become 16%.
    """
    if dtype.itemsize > 1:
        return dtype
    # Layer scales are matrices of one row.
    matrix = tensor.ndim == 2 and len(tensor) > 1 and _REPEATED.search(name)
    # Beyond its range float8_e4m3fn has no infinity, but NaN.
    fits = matrix and (tensor.dtype == dtype or tensor.float().abs().max() <= torch.finfo(dtype).max)
    return dtype if fits else compute_dtype or tensor.dtype
