"""ComfyUI's int8_tensorwise: 8-bit integers with a scale for each row, or one for all."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .exact import divide
from .formats import FileFormat
from .packing import rotate


@dataclass(frozen=True)
class Int8(FileFormat):
    """`weight` [out, in], int8, and `weight_scale`, float32: [out, 1] or a single number.

    convrot: the columns are rotated in groups of convrot_groupsize before rounding (see packing.rotate).
    """

    name = "int8_tensorwise"
    by_rows = True

    convrot: bool = False
    convrot_groupsize: int = 256

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        values = weight.float()
        if self.convrot:
            values = rotate(values, self.convrot_groupsize)
        scale = divide(values.abs().amax(dim=1, keepdim=True), 127).clamp(min=1e-30)
        return {"weight": (values / scale).round().clamp(-128, 127).to(torch.int8), "weight_scale": scale}

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        values = stored["weight"].float() * stored["weight_scale"].float()
        return (rotate(values, self.convrot_groupsize) if self.convrot else values).to(dtype)

    def stored_rows(self, stored, ids):
        scale = stored["weight_scale"]
        return {"weight": stored["weight"][ids], "weight_scale": scale[ids] if scale.ndim == 2 else scale}

    def layouts(self, shape):
        per_row = super().layouts(shape)[0]
        return [per_row, per_row | {"weight_scale": torch.empty((), device="meta")}]

    def metadata(self):
        rotation = {"convrot": True, "convrot_groupsize": self.convrot_groupsize} if self.convrot else {}
        return {"format": self.name, **rotation}
