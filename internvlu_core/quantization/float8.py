"""Weights in 8 bits: half of bfloat16's memory. They are cast where they are used, so a GPU need not know float8.

float8_e4m3fn has 3 bits of mantissa from 2⁻⁶ up to 448, and ever fewer below. Usual weights, near 0.02, lie where it is
coarse, so each row of a matrix is scaled to end near its top (BENCHMARKS.md has the errors of the schemes). The scales
are powers of two: as exact as any, since the precision is relative, and without rounding of their own in any dtype.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .exact import ceil_log2, divide, exp2
from .formats import WeightFormat

DTYPE = torch.float8_e4m3fn


@dataclass(frozen=True)
class Float8(WeightFormat):
    """A weight in float8_e4m3fn with a scale for each of its rows: `weight` [out, in] and `scale` [out]."""

    name = "fp8"
    torch_dtype = DTYPE
    by_rows = True

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        return dict(zip(("weight", "scale"), quantise(weight), strict=True))

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        # The weight is scaled, not the product, which would be cheaper: sums of values up to 448 leave float16's range.
        return dequantise(stored["weight"], stored["scale"], dtype)


def row_scales(weight: Tensor) -> Tensor:
    """The scale [out] of each row of a matrix [out, in], float32: a power of two that fills float8's range."""
    largest = weight.float().abs().amax(dim=1).clamp(min=2**-15)  # of zeros too; the scale is then float16's least
    return exp2(ceil_log2(divide(largest, torch.finfo(DTYPE).max)))


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] → (float8 [out, in], scales [out] in its own dtype): weight ≈ float8 · scale, row by row."""
    scale = row_scales(weight)
    return (weight.float() / scale[:, None]).to(DTYPE), scale.to(weight.dtype)


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(float8 [out, in], scales [out]) → the matrix [out, in] in this dtype."""
    return weight.to(dtype) * scale.to(dtype)[:, None]
