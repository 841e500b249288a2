"""ComfyUI's scaled float8: 8-bit floats with one scale for a matrix, which GPUs since Ada multiply as they are.

The core's own Float8 has a scale for each row, which is more exact where rows differ in size. ComfyUI's kernels take
one scale only, so this is the form in files that both of ComfyUI's generations read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .exact import divide
from .formats import FileFormat
from .int8 import Int8


@dataclass(frozen=True)
class ScaledFloat8(FileFormat):
    """`weight` [out, in] in float8_e4m3fn, and `weight_scale`, float32: a number by which all are multiplied."""

    name = "float8_e4m3fn"
    outside = Int8()
    dtype: ClassVar[torch.dtype] = torch.float8_e4m3fn

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        largest = torch.finfo(self.dtype).max
        values = weight.float()
        scale = divide(values.abs().amax(), largest).clamp(min=torch.finfo(torch.float32).tiny)
        return {"weight": (values * (1 / scale)).clamp(-largest, largest).to(self.dtype), "weight_scale": scale}

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return (stored["weight"].float() * stored["weight_scale"].float()).to(dtype)

    def stored_rows(self, stored, ids):
        return {"weight": stored["weight"].view(torch.uint8)[ids].view(self.dtype), **_without_weight(stored)}


@dataclass(frozen=True)
class ScaledFloat8Range(ScaledFloat8):
    """The same in float8_e5m2, which has more range and less precision. For files of others."""

    name = "float8_e5m2"
    dtype = torch.float8_e5m2


def _without_weight(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stored.items() if name != "weight"}
