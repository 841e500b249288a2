"""Two 4-bit formats of ComfyUI whose columns are rotated before rounding (see packing.rotate).

They are read here, for files of others. ComfyUI also rounds what such weights are multiplied with, to 4 or 8 bits; the
core does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .formats import FileFormat
from .int8 import Int8
from .packing import pack_nibbles, rotate, unpack_nibbles


@dataclass(frozen=True)
class Rotated4(FileFormat):
    """`weight` [out, in / 2], two signed values a byte as int8, and `weight_scale` [out], float32."""

    name = "convrot_w4a4"
    outside = Int8()
    by_rows = True

    convrot_groupsize: int = 256
    linear_dtype: str = "int4"  # how ComfyUI multiplies

    def for_layer(self, name, weight):
        return None if weight.shape[-1] % self.convrot_groupsize else super().for_layer(name, weight)

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        values = rotate(weight.float(), self.convrot_groupsize)
        scale = values.abs().amax(dim=1).clamp(min=1e-10) / 7
        codes = (values / scale[:, None]).round().clamp(-7, 7).to(torch.int8).view(torch.uint8) & 15
        return {"weight": pack_nibbles(codes, high_first=False).view(torch.int8), "weight_scale": scale}

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        codes = unpack_nibbles(stored["weight"].view(torch.uint8), high_first=False).to(torch.int8)
        values = torch.where(codes >= 8, codes - 16, codes).float() * stored["weight_scale"].float()[:, None]
        return rotate(values, self.convrot_groupsize).to(dtype)


@dataclass(frozen=True)
class Grouped4(FileFormat):
    """Codes of 4 bits in `weight` [out, in / 2], with scales of groups and of rows, and a table of the codes' values.

    weight_s_rel [out, in / group_size] in float8_e4m3fn, weight_s_channel [out], float32, and weight_codebook [16],
    float32, which may be missing: then codes are integers from −8. A group's values are rounded to 8-bit integers.
    """

    name = "asym_w4a8_int8"
    outside = Int8()

    group_size: int = 16
    convrot_groupsize: int = 256

    def for_layer(self, name, weight):
        return None if weight.shape[-1] % self.convrot_groupsize else super().for_layer(name, weight)

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """Raises NotImplementedError: this format is only read."""
        raise NotImplementedError(f"{self.name} is only read")

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        codes = unpack_nibbles(stored["weight"].view(torch.uint8), high_first=False).unflatten(1, (-1, self.group_size))
        scale = stored["weight_s_rel"].view(torch.float8_e4m3fn).float()[..., None]
        codebook = stored.get("weight_codebook")
        values = codes.float() - 8 if codebook is None else codebook.float()[codes.int()]
        rounded = (values * scale).round().clamp(-127, 127).flatten(1)
        return rotate(rounded * stored["weight_s_channel"].float()[:, None], self.convrot_groupsize).to(dtype)

    def layouts(self, shape):
        def tensor(dtype, *shape):
            return torch.empty(shape, dtype=dtype, device="meta")

        rows, columns = shape
        groups = rows, columns // self.group_size
        stored = {
            "weight": tensor(torch.int8, rows, columns // 2),
            "weight_s_rel": tensor(torch.float8_e4m3fn, *groups),
            "weight_s_channel": tensor(torch.float32, rows),
        }
        table = {"weight_codebook": tensor(torch.float32, 16)}
        return [stored, stored | table, stored | table | {"weight_s_rel": tensor(torch.uint8, *groups)}]
