"""Positions and rotary tables of the MMDiT's joint sequence: three axes, frame, row and column.

Source: docs/model.md, "Position encoding".
"""

import torch
from torch import Tensor

Grid = tuple[int, int, int]  # frames, rows, columns


def grid_positions(grid: Grid, scale: float = 1.0, first_frame: int = 0) -> Tensor:
    """Positions [f·h·w, 3], rows and columns centred on 0, stretched by 1 / scale. float32."""
    frames, h, w = grid
    axes = torch.arange(first_frame, first_frame + frames, dtype=torch.float32), _axis(h, scale), _axis(w, scale)
    return torch.cartesian_prod(*axes).view(-1, 3)


def _axis(count: int, scale: float) -> Tensor:
    first, last = -(count - count // 2), count // 2 - 1
    index = torch.arange(first, last + 1, dtype=torch.float32)
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
    """Positions [tokens, 3] of [generated latent | references | context].

    latent_grids: the generated grid, then one per reference, in patches. image_mask [T] marks the ViT tokens of the
    context, which come grid by grid as image_grids says; every other context token is text.
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
            parts.append(torch.arange(now, now + run, dtype=torch.float32)[:, None].expand(-1, 3))
            now += run
            index += run
    return torch.cat(parts)


def _after(block: Tensor) -> int:
    """The running number that follows a block."""
    return int(block.max().item()) + 1


def rotary_table(positions: Tensor, axes: tuple[int, int, int], theta: float = 10_000.0) -> Tensor:
    """cos and sin [tokens, head_dim / 2, 2] for positions [tokens, 3]; axis i owns axes[i] channels. float32."""
    angles = torch.cat(
        [
            torch.outer(positions[:, axis], 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
            for axis, size in enumerate(axes)
        ],
        dim=1,
    )
    return torch.stack([angles.cos(), angles.sin()], dim=-1)
