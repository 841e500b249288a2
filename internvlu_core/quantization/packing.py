"""How ComfyUI's formats arrange their values: scales in tiles, two 4-bit values a byte, rotated columns."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128, 4  # rows and columns of scales that a tensor core reads together


def round_up(length: int, multiple: int) -> int:
    """The least multiple that is not below the length."""
    return -(-length // multiple) * multiple


def pad(matrix: Tensor, multiples: tuple[int, int]) -> Tensor:
    """A matrix with zeros below and at its right, so that its sides are multiples of these."""
    rows, columns = (round_up(side, of) for side, of in zip(matrix.shape, multiples, strict=True))
    return F.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def to_tiles(scales: Tensor) -> Tensor:
    """Scales of blocks [rows, columns], one byte each, in the order in which cuBLAS reads them.

    The result is a matrix of the padded size, a multiple of TILE. Source: "1D Block Scaling Factors Layout" in the
    documentation of cuBLAS: in a tile of 128 × 4, row 32·a + b has its four scales at 16·b + 4·a.
    """
    padded = pad(scales.view(torch.uint8), TILE)
    rows, columns = padded.shape
    tiles = padded.view(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(rows, columns).view(scales.dtype)


def from_tiles(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """The reverse of to_tiles: the scales [rows, columns] without padding."""
    height, width = round_up(rows, 128), round_up(columns, 4)
    plain = tiles.view(torch.uint8).reshape(height // 128, width // 4, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return plain.reshape(height, width)[:rows, :columns].view(tiles.dtype)


def pack_nibbles(codes: Tensor, *, high_first: bool) -> Tensor:
    """Codes below 16, uint8 [..., n] → bytes [..., n / 2]. high_first: the first of two is in the upper half."""
    first, second = codes[..., 0::2], codes[..., 1::2]
    return first << 4 | second if high_first else second << 4 | first


def unpack_nibbles(packed: Tensor, *, high_first: bool) -> Tensor:
    """The reverse of pack_nibbles. packed: uint8."""
    halves = (packed >> 4, packed & 15) if high_first else (packed & 15, packed >> 4)
    return torch.stack(halves, dim=-1).flatten(-2)


def rotate(matrix: Tensor, size: int) -> Tensor:
    """Each `size` columns of a matrix times a Hadamard matrix. It is its own inverse, so this also rotates back.

    It spreads large values over their neighbours, which leaves less to round. size: a power of 4 that divides the
    number of columns.
    """
    hadamard = _hadamard(size, matrix.device).to(matrix.dtype)
    return (matrix.unflatten(1, (-1, size)) @ hadamard).flatten(1)


@lru_cache
@torch.inference_mode(False)
def _hadamard(size: int, device: torch.device) -> Tensor:
    """The symmetric, orthogonal matrix [size, size] of ±1/√size whose rows all have the same sum, float32."""
    base = 1 - 2 * torch.eye(4).flip(1)
    matrix = base
    while len(matrix) < size:
        matrix = torch.kron(matrix, base)
    return (matrix / size**0.5).to(device)
