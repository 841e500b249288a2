"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the two conventions that the model uses.

The language model has one axis and pairs channel i with channel i + D/2 (`rope_table_1d`, `rotate_half`). The MMDiT has
three axes, frame, row and column, and pairs channel 2i with channel 2i + 1 (`rope_table_3d`, `rotate_pairs`).

Source: docs/model.md, "Language model" and "Position encoding".
"""

import torch
from torch import Tensor

Grid = tuple[int, int, int]  # frames, rows, columns


def grid_positions(grid: Grid, scale: float = 1.0, first_frame: int = 0) -> Tensor:
    """Positions [f·h·w, 3] of a grid, float32. Rows and columns are centred on 0 and stretched by 1 / scale."""
    frames, h, w = grid
    times = torch.arange(first_frame, first_frame + frames, dtype=torch.float32, device="cpu")
    return torch.cartesian_prod(times, _axis(h, scale), _axis(w, scale)).view(-1, 3)


def _axis(count: int, scale: float) -> Tensor:
    first, last = -(count - count // 2), count // 2 - 1
    index = torch.arange(first, last + 1, dtype=torch.float32, device="cpu")
    if scale == 1.0 or count == 1:
        return index
    new_first, new_last = -int(-first / scale), int((last + 1) / scale) - 1
    return new_first + (index - first) * (new_last - new_first) / (last - first)


def joint_positions(
    latent_grids: list[Grid],
    image_mask: Tensor,
    image_grids: list[Grid],
    latent_scale: float,
    vit_scale: float,
) -> Tensor:
    """Positions [tokens, 3] of the sequence [generated latent | references | context], float32.

    latent_grids: that of the generated latent, then one for each reference, in patches; the index is the frame.
    image_mask [T]: which context tokens are ViT tokens; the others are text. image_grids: the grids of the ViT tokens,
    in order. latent_scale, vit_scale: see grid_positions.
    """
    latents = torch.cat([grid_positions(grid, latent_scale, frame) for frame, grid in enumerate(latent_grids)])
    parts, now = [latents], _after(latents)
    mask, grids = image_mask.tolist(), iter(image_grids)
    index = 0
    while index < len(mask):
        if mask[index]:
            grid = next(grids)
            block = grid_positions(grid, vit_scale)
            block[:, 0] += now
            parts.append(block)
            now = _after(block)
            index += len(block)
        else:
            run = mask.index(True, index) - index if True in mask[index:] else len(mask) - index
            parts.append(torch.arange(now, now + run, dtype=torch.float32, device="cpu")[:, None].expand(-1, 3))
            now += run
            index += run
    return torch.cat(parts)


def _after(block: Tensor) -> int:
    """The first number behind all positions of a block."""
    return int(block.max().item()) + 1


def rope_table_1d(length: int, head_dim: int, theta: float, dtype: torch.dtype, device) -> tuple[Tensor, Tensor]:
    """The table of rotate_half for positions 0 … length − 1: cos and signed sin, each [length, 1, head_dim], in dtype.

    The angles are computed in float32. The first half of sin has its sign changed, which rotate_half relies on.
    """
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None, None] * (1.0 / theta ** (channels / head_dim))
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate_half(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, T, heads, D] by a table of rope_table_1d with T rows. Channel i is paired with channel i + D/2."""
    cos, sin = table
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rope_table_3d(positions: Tensor, axes: tuple[int, int, int], theta: float = 10_000.0) -> Tensor:
    """The table of rotate_pairs: cos and sin [tokens, head_dim / 2, 2] for positions [tokens, 3]. float32.

    axes: how many channels of a head belong to frame, row and column. Their sum is head_dim.
    """
    angles = []
    for axis, size in enumerate(axes):
        channels = torch.arange(0, size, 2, dtype=torch.float32, device="cpu")
        angles.append(torch.outer(positions[:, axis], 1.0 / theta ** (channels / size)))
    angles = torch.cat(angles, dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Rotate x [B, T, heads, D] by the first T rows of a table of rope_table_3d. Channel 2i is paired with 2i + 1.

    Computed in float32. Returns the dtype of x.
    """
    pairs, table = x.float().unflatten(-1, (-1, 2)), table[: x.shape[1], None]
    # A complex product takes a quarter of the time. But compilers only fuse real arithmetic, and DirectML and older
    # versions of MPS have no complex numbers.
    if torch.compiler.is_compiling() or x.device.type in ("privateuseone", "mps"):
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return rotated.flatten(-2).to(x.dtype)
