"""Arithmetic of quantising that gives the same bits on a CPU and on CUDA, which torch's own operators do not all do."""

import torch
from torch import Tensor


def divide(values: Tensor, number: float) -> Tensor:
    """Float32 values / number, rounded once.

    On CUDA torch multiplies by the reciprocal of a Python number, which rounds twice; it divides by a tensor.
    """
    return values / torch.full((), number, dtype=values.dtype, device=values.device)


def ceil_log2(values: Tensor) -> Tensor:
    """⌈log₂ v⌉ of each float32 number v ≥ 2⁻¹²⁶, int32. torch.log2 is rounded, by each device in its own way."""
    # The exponent's bits, after a carry from any bit of the mantissa.
    return (values.contiguous().view(torch.int32) + 0x7FFFFF >> 23) - 127


def exp2(exponents: Tensor) -> Tensor:
    """2ⁿ of each integer n from −126 to 127, int32 → float32."""
    return (exponents + 127 << 23).view(torch.float32)
