"""GGUF's block types in torch: packed bytes → the values that they stand for, in float32.

A row of a matrix is cut into blocks of 32 to 256 values, and a block is a few scales and the values' bits. The layouts
are those of ggml (`ggml-common.h`). Results are equal to those of the Python package `gguf`, bit for bit
(tests/core/test_gguf.py). Nothing is copied to the device but the tables of the IQ types, once.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..checkpoints.gguf import BLOCKS, package
from .exact import divide
from .formats import CHUNK


def dequantise(blocks: Tensor, block_type: str, dtype: torch.dtype) -> Tensor:
    """Packed rows [..., bytes of a row], uint8 → values [..., columns] in this dtype. block_type: such as "Q4_0"."""
    values, size = BLOCKS[block_type]
    flat = blocks.reshape(-1, size)
    shape = *blocks.shape[:-1], blocks.shape[-1] // size * values
    if flat.numel() == 0:
        return torch.empty(shape, dtype=dtype, device=blocks.device)
    pieces = flat.split(CHUNK // values)
    unpack = UNPACK[block_type]
    return torch.cat([unpack(piece).to(dtype) for piece in pieces]).view(shape)


def quantise_q8_0(weight: Tensor) -> Tensor:
    """A matrix [out, in] → its rows in Q8_0 [out, bytes of a row], on its device; equal to the package's result."""
    values, size = BLOCKS["Q8_0"]
    blocks = weight.float().reshape(-1, values)
    scale = divide(blocks.abs().amax(dim=1, keepdim=True), 127)
    scaled = blocks * torch.where(scale == 0, 0, 1 / scale)
    whole = scaled.abs().floor()
    whole = whole + (2 * (scaled.abs() - whole)).floor()  # halves are rounded away from zero
    rounded = (scaled.sign() * whole).to(torch.int8).view(torch.uint8)
    packed = torch.cat([scale.to(torch.float16).view(torch.uint8), rounded], dim=1)
    return packed.view(len(weight), weight.shape[1] // values * size)


# Bits and numbers. All take and give [blocks, n].


def _half(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.float16).float()


def _signed(data: Tensor) -> Tensor:
    return data.view(torch.int8).float()


def _uint16(data: Tensor) -> Tensor:
    return data[:, 0::2].int() | (data[:, 1::2].int() << 8)


def _uint32(data: Tensor) -> Tensor:
    low, high = _uint16(data).long().unflatten(1, (-1, 2)).unbind(2)
    return low | (high << 16)


def _fields(data: Tensor, bits: int, width: int, count: int | None = None) -> Tensor:
    """Numbers of so many bits, the lowest first: of the first `width` entries the lowest bits, then the next bits, …"""
    count = count or 8 // bits
    shifts = torch.arange(0, count * bits, bits, dtype=data.dtype, device=data.device)  # made there, not copied
    return ((data.view(len(data), -1, 1, width) >> shifts[:, None]) & (2**bits - 1)).flatten(1)


def _bits(data: Tensor) -> Tensor:
    """The bits of each byte, lowest first."""
    return _fields(data, 1, 1)


def _scaled(scales: Tensor, values: Tensor) -> Tensor:
    """Each scale [n, s] times its share of the values [n, …]."""
    return (scales[:, :, None] * values.reshape(*scales.shape, -1)).flatten(1)


# 32 values with a scale


def _q4_0(block: Tensor) -> Tensor:
    return _half(block[:, :2]) * (_fields(block[:, 2:], 4, 16).float() - 8)


def _q4_1(block: Tensor) -> Tensor:
    return _half(block[:, :2]) * _fields(block[:, 4:], 4, 16).float() + _half(block[:, 2:4])


def _q5_0(block: Tensor) -> Tensor:
    values = _fields(block[:, 6:], 4, 16) | (_bits(block[:, 2:6]) << 4)
    return _half(block[:, :2]) * (values.float() - 16)


def _q5_1(block: Tensor) -> Tensor:
    values = _fields(block[:, 8:], 4, 16) | (_bits(block[:, 4:8]) << 4)
    return _half(block[:, :2]) * values.float() + _half(block[:, 2:4])


def _q8_0(block: Tensor) -> Tensor:
    return _signed(block[:, 2:]) * _half(block[:, :2])


def _e2m1(codes: Tensor) -> Tensor:
    """4-bit floats, twice their value: 0, 1, 2, 3, 4, 6, 8, 12, and the same below zero."""
    exponent, mantissa = (codes >> 1) & 3, codes & 1
    value = torch.where(exponent == 0, mantissa, (mantissa + 2) << (exponent.clamp(min=1) - 1)).float()
    return torch.where(codes >= 8, 0 - value, value)  # the package's zeros have no sign


def _mxfp4(block: Tensor) -> Tensor:
    exponent = block[:, :1].int()
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=2), (exponent - 1).clamp(min=0) << 23)
    return bits.int().view(torch.float32) * _e2m1(_fields(block[:, 1:], 4, 16))


def _nvfp4(block: Tensor) -> Tensor:
    exponent, mantissa = ((block[:, :4] >> 3) & 15).float(), (block[:, :4] & 7).float()
    scale = torch.where(exponent == 0, mantissa * 2**-9, (1 + mantissa / 8) * torch.exp2(exponent - 7)) * 0.5
    scale = torch.where((block[:, :4] == 0) | (block[:, :4] == 0x7F), torch.zeros_like(scale), scale)
    return _scaled(scale, _e2m1(_fields(block[:, 4:], 4, 8)))


# 256 values in groups with scales of their own


def _q2_k(block: Tensor) -> Tensor:
    scales, values = block[:, :16], _fields(block[:, 16:80], 2, 32).float()
    scale, least = _half(block[:, 80:82]) * (scales & 15).float(), _half(block[:, 82:84]) * (scales >> 4).float()
    return (_scaled(scale, values).view(len(block), 16, -1) - least[:, :, None]).flatten(1)


def _q3_k(block: Tensor) -> Tensor:
    low, high = _fields(block[:, 96:104], 4, 8), _fields(block[:, 104:108], 2, 4)
    scales = (low | (high << 4)).float() - 32
    missing = _fields(block[:, :32], 1, 32) ^ 1  # the bit that is not set subtracts 4
    values = _fields(block[:, 32:96], 2, 32).float() - (missing << 2).float()
    return _scaled(_half(block[:, 108:]) * scales, values)


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes → 8 scales and 8 minima of 6 bits."""
    first, second, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (both & 15) | ((first >> 2) & 48)], dim=1)
    return scales.float(), torch.cat([second & 63, (both >> 4) | ((second >> 2) & 48)], dim=1).float()


def _q4_or_5_k(block: Tensor, values: Tensor) -> Tensor:
    scales, minima = _k_scales(block[:, 4:16])
    scale, least = _half(block[:, :2]) * scales, _half(block[:, 2:4]) * minima
    return (_scaled(scale, values.float()).view(len(block), 8, -1) - least[:, :, None]).flatten(1)


def _q4_k(block: Tensor) -> Tensor:
    return _q4_or_5_k(block, _fields(block[:, 16:], 4, 32))


def _q5_k(block: Tensor) -> Tensor:
    return _q4_or_5_k(block, _fields(block[:, 48:], 4, 32) | (_fields(block[:, 16:48], 1, 32) << 4))


def _q6_k(block: Tensor) -> Tensor:
    values = _fields(block[:, :128], 4, 64) | (_fields(block[:, 128:192], 2, 32) << 4)
    return _scaled(_half(block[:, 208:]) * _signed(block[:, 192:208]), values.float() - 32)


def _powers_of_3(data: Tensor, width: int, count: int) -> Tensor:
    """Each byte times 1, 3, 9, …, modulo 256: in groups of `width`, all times 1 first."""
    factors = 3 ** torch.arange(count, dtype=torch.int32, device=data.device)
    return ((data.int().view(len(data), -1, 1, width) * factors[:, None]) & 255).flatten(1)


def _tq1_0(block: Tensor) -> Tensor:
    parts = (
        _powers_of_3(block[:, :32], 32, 5),
        _powers_of_3(block[:, 32:48], 16, 5),
        _powers_of_3(block[:, 48:52], 4, 4),
    )
    return _half(block[:, 52:]) * (((torch.cat(parts, dim=1) * 3) >> 8).float() - 1)


def _tq2_0(block: Tensor) -> Tensor:
    return _half(block[:, 64:]) * (_fields(block[:, :64], 2, 32).float() - 1)


# The IQ types: indices into tables of groups of values, and signs


@lru_cache
def _table(block_type: str, device: torch.device) -> Tensor:
    """The values [entries, values of an entry] that a type's indices mean, from the package's own data."""
    quants = package().quants
    with torch.inference_mode(False):
        if block_type == "IQ4_NL":
            return torch.tensor(quants.IQ4_NL.kvalues, dtype=torch.float32, device=device)
        owner = getattr(quants, block_type)
        owner.init_grid()
        return torch.from_numpy(owner.grid[0, 0].copy()).to(device)


def _grid(block_type: str, indices: Tensor) -> Tensor:
    """Indices [n, i] → values [n, i · values of an entry]."""
    return _table(block_type, indices.device)[indices.long()].flatten(1)


def _flip(values: Tensor, signs: Tensor) -> Tensor:
    """Values [n, v], negative where a bit of the bytes [n, v / 8] is set."""
    return values * (1 - 2 * _bits(signs).float())


def _with_parity(signs: Tensor) -> Tensor:
    """7 bits of signs → 8: an even number of them is set."""
    parity = signs ^ (signs >> 4)
    parity = parity ^ (parity >> 2)
    return signs | (((parity ^ (parity >> 1)) & 1) << 7)


def _iq2_xxs(block: Tensor) -> Tensor:
    words = block[:, 2:].reshape(len(block), 8, 8)
    rest = _uint32(words[:, :, 4:].flatten(1))
    scale = _half(block[:, :2]) * (0.5 + (rest >> 28).float()) * 0.25
    values = _scaled(scale, _grid("IQ2_XXS", words[:, :, :4].flatten(1)))
    return _flip(values, _with_parity(_fields(rest, 7, 1, count=4)))


def _iq2_scales(block: Tensor, packed: Tensor) -> Tensor:
    return _half(block[:, :2]) * (0.5 + _fields(packed, 4, 1).float()) * 0.25


def _iq2_xs(block: Tensor) -> Tensor:
    words = _uint16(block[:, 2:66])
    values = _scaled(_iq2_scales(block, block[:, 66:]), _grid("IQ2_XS", words & 511))
    return _flip(values, _with_parity(words >> 9))


def _iq2_s(block: Tensor) -> Tensor:
    indices = block[:, 2:34].int() | (_fields(block[:, 66:74], 2, 1).int() << 8)
    return _flip(_scaled(_iq2_scales(block, block[:, 74:]), _grid("IQ2_S", indices)), block[:, 34:66])


def _iq3_xxs(block: Tensor) -> Tensor:
    rest = _uint32(block[:, 66:])
    scale = _half(block[:, :2]) * (0.5 + (rest >> 28).float()) * 0.5
    values = _scaled(scale, _grid("IQ3_XXS", block[:, 2:66]))
    return _flip(values, _with_parity(_fields(rest, 7, 1, count=4)))


def _iq3_s(block: Tensor) -> Tensor:
    indices = block[:, 2:66].int() | (_bits(block[:, 66:74]).int() << 8)
    scale = _half(block[:, :2]) * (1 + 2 * _fields(block[:, 106:], 4, 1)).float()
    return _flip(_scaled(scale, _grid("IQ3_S", indices)), block[:, 74:106])


DELTA = 0.125  # what the IQ1 types add to a group or take from it


def _iq1(scale: Tensor, indices: Tensor, down: Tensor) -> Tensor:
    """scale [n, s]. indices [n, 32] into the grid. down [n, d]: whether DELTA is taken from a share of the values."""
    values = _grid("IQ1_S", indices)
    delta = DELTA - 2 * DELTA * down.float()
    values = (values.view(*down.shape, -1) + delta[:, :, None]).flatten(1)
    return _scaled(scale, values)


def _iq1_s(block: Tensor) -> Tensor:
    high = _uint16(block[:, 34:])
    scale = _half(block[:, :2]) * (2 * ((high >> 12) & 7) + 1).float()
    return _iq1(scale, block[:, 2:34].int() | (_fields(high, 3, 1, count=4) << 8), high >> 15)


def _iq1_m(block: Tensor) -> Tensor:
    words, high = _uint16(block[:, 48:]), _fields(block[:, 32:48], 4, 1)
    nibbles = words >> 12  # of the scale in float16, the lowest first
    factor = nibbles[:, 0] | (nibbles[:, 1] << 4) | (nibbles[:, 2] << 8) | (nibbles[:, 3] << 12)
    factor = torch.stack([factor & 255, factor >> 8], dim=1).to(torch.uint8)
    scale = _half(factor) * (2 * _fields(words, 3, 1, count=4) + 1).float()
    return _iq1(scale, block[:, :32].int() | ((high & 7).int() << 8), high >> 3)


def _iq4_nl(block: Tensor) -> Tensor:
    return _half(block[:, :2]) * _grid("IQ4_NL", _fields(block[:, 2:], 4, 16))


def _iq4_xs(block: Tensor) -> Tensor:
    scales = _fields(block[:, 4:8], 4, 1).int() | (_fields(_uint16(block[:, 2:4]), 2, 1, count=8) << 4)
    return _scaled(_half(block[:, :2]) * (scales - 32).float(), _grid("IQ4_NL", _fields(block[:, 8:], 4, 16)))


UNPACK: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
