"""NVFP4: 4-bit floats, with a float8 scale for each 16 values of a row and one float32 scale for all; 4.5 bits a value.

GPUs since Blackwell multiply it as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .exact import divide
from .formats import PaddedFormat
from .int8 import Int8
from .packing import from_tiles, pack_nibbles, pad, to_tiles, unpack_nibbles

BLOCK = 16
SCALE_DTYPE = torch.float8_e4m3fn
# The values of the codes 0 to 7: one bit of mantissa. Codes 8 to 15 are the same with a minus.
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class NVFP4(PaddedFormat):
    """`weight`, two values a byte, `weight_scale`, float8 [blocks, in tiles], and `weight_scale_2`, float32.

    Both sides of the weight are padded with zeros to multiples of 16.
    """

    name = "nvfp4"
    outside = Int8()

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        values = pad(weight.float(), (BLOCK, BLOCK)).unflatten(1, (-1, BLOCK))
        limit = torch.finfo(SCALE_DTYPE).max
        largest = values.abs().amax(dim=2)
        overall = divide(largest.amax(), limit * VALUES[-1]).clamp(min=torch.finfo(torch.float32).tiny)
        scale = (divide(largest, VALUES[-1]) / overall).clamp(max=limit).to(SCALE_DTYPE)
        factor = (overall * scale.float())[..., None]
        scaled = torch.where(factor == 0, 0, values / torch.where(factor == 0, 1, factor))
        codes = _round(scaled.flatten(1))
        return {
            "weight": pack_nibbles(codes, high_first=True),
            "weight_scale": to_tiles(scale),
            "weight_scale_2": overall,
        }

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        codes = unpack_nibbles(stored["weight"], high_first=True).unflatten(1, (-1, BLOCK))
        # The bits of a code, in their places in a float8, are 1/64 of its value, zero and subnormals included.
        values = ((codes & 8) << 4 | (codes & 7) << 2).view(torch.float8_e4m3fn).float()
        scale = from_tiles(stored["weight_scale"].view(SCALE_DTYPE), *values.shape[:2]).float()
        blocks = values * (64 * stored["weight_scale_2"].float() * scale)[..., None]
        return self.crop(blocks.flatten(1)).to(dtype)

    def layouts(self, shape):
        ours = super().layouts(shape)[0]
        return [ours, ours | {"weight_scale": ours["weight_scale"].view(torch.uint8)}]


def _round(values: Tensor) -> Tensor:
    """The codes of the nearest of VALUES; of two that are equally near, the even code."""
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(VALUES)])
    middles[1::2] = torch.nextafter(middles[1::2], torch.tensor(0.0))  # here the even code is the upper one
    codes = torch.bucketize(values.abs(), middles.to(values.device), out_int32=True).to(torch.uint8)
    return codes | torch.signbit(values).to(torch.uint8) << 3
