"""MXFP8: 8-bit floats with a power of two for each 32 values of a row, a format of the Open Compute Project.

GPUs since Blackwell multiply it as it is. The core's Float8 has a power of two for each row, so it is a case of this:
what is kept in 8 bits in memory goes into a file as MXFP8 without any loss (from_rows) and comes back (to_rows).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .exact import ceil_log2, divide, exp2
from .formats import PaddedFormat
from .int8 import Int8
from .packing import from_tiles, pad, to_tiles

BLOCK = 32
BIAS = 127  # of the exponents of two, which are stored as bytes; 0 marks a block of zeros
DTYPE = torch.float8_e4m3fn


@dataclass(frozen=True)
class MXFP8(PaddedFormat):
    """`weight` in float8_e4m3fn and `weight_scale`, bytes: an exponent of two for each 32 values, in tiles.

    Both sides of the weight are padded with zeros to multiples of 32.
    """

    name = "mxfp8"
    outside = Int8()

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        values = pad(weight.float(), (BLOCK, BLOCK)).unflatten(1, (-1, BLOCK))
        largest = values.abs().amax(dim=2)
        limit = torch.finfo(DTYPE).max
        exponent = ceil_log2(divide(largest, limit).clamp(min=2.0**-126)).clamp(max=254 - BIAS)
        scale = exp2(exponent)
        stored = (values / scale[..., None]).clamp(-limit, limit).flatten(1).to(DTYPE)
        exponents = torch.where(largest == 0, 0, exponent + BIAS).to(torch.uint8)
        return {"weight": stored, "weight_scale": to_tiles(exponents)}

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        weight = stored["weight"]
        blocks = weight.float().unflatten(1, (-1, BLOCK)) * _scales(stored)[..., None]
        return self.crop(blocks.flatten(1)).to(dtype)

    def layouts(self, shape):
        ours = super().layouts(shape)[0]
        if not hasattr(torch, "float8_e8m0fnu"):  # torch before 2.7
            return [ours]
        return [ours, ours | {"weight_scale": ours["weight_scale"].view(torch.float8_e8m0fnu)}]


def _scales(stored: Mapping[str, Tensor]) -> Tensor:
    """The scales of the blocks [rows, blocks], float32."""
    rows, columns = stored["weight"].shape
    exponents = from_tiles(stored["weight_scale"].view(torch.uint8), rows, columns // BLOCK)
    return (exponents.int() << 23).view(torch.float32)  # the exponent bits of float32, which has the same bias


def from_rows(weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """What MXFP8 stores for float8 [out, in] with a power of two for each row [out]: the same numbers."""
    stored = pad(weight.view(torch.uint8), (BLOCK, BLOCK)).view(DTYPE)
    exponents = torch.zeros(len(stored), 1, dtype=torch.uint8, device=weight.device)
    exponents[: len(weight), 0] = (ceil_log2(scale.float()) + BIAS).to(torch.uint8)
    return {"weight": stored, "weight_scale": to_tiles(exponents.expand(-1, stored.shape[1] // BLOCK).contiguous())}


def to_rows(stored: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """(float8 [out, in], scales [out]) of a weight of this shape, the reverse of from_rows; None if blocks differ."""
    scales = _scales(stored)[: shape[0]]
    if not torch.equal(scales, scales[:, :1].expand_as(scales)):
        return None
    return stored["weight"][: shape[0], : shape[1]].contiguous(), scales[:, 0].contiguous()
