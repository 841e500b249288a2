"""Dual classifier-free guidance over three branches (docs/model.md, "Guidance")."""

import torch
from torch import Tensor

# Those of the released checkpoint, (all_scale, partial_scale): plain, and after reasoning. What a checkpoint has, and
# which of them count, MMDiTConfig.guidance says.
SCALES, SCALES_REASONED = (4.5, 2.0), (3.5, 1.5)
MAX_SCALE = 1e6  # the useful ones are below 20

EARLY_TIMESTEP = 930  # above it, large differences are damped
DAMPING = 0.4


def combine(
    full: Tensor,
    partial: Tensor,
    unconditional: Tensor,
    all_scale: float,
    partial_scale: float,
    timestep: float | Tensor,
) -> Tensor:
    """v = v_u + p·(v_p − v_u)/D + a·(v_f − v_p)/D, for velocities [B, C, …] of one step.

    D is 1 up to timestep 930; above, per pixel, ‖difference‖₂ over the channels to the power 0.4 where that norm
    exceeds 1. Where partial is the very tensor unconditional, its term vanishes. A timestep that is a tensor is on the
    velocities' device, and stays there.
    """
    power = DAMPING * (timestep > EARLY_TIMESTEP)  # the branch is in the exponent: a tensor need not be waited for
    guided = unconditional + all_scale * _damped(full - partial, power)
    if partial is not unconditional:
        guided = guided + partial_scale * _damped(partial - unconditional, power)
    return guided


def strengths(
    full: Tensor,
    partial: Tensor,
    unconditional: Tensor,
    all_scale: float,
    partial_scale: float,
    timestep: float | Tensor,
) -> Tensor:
    """Root mean squares [2] of combine's two terms, that of the prompt and that of the pictures, scales included."""
    power = DAMPING * (timestep > EARLY_TIMESTEP)
    terms = all_scale * _damped(full - partial, power), partial_scale * _damped(partial - unconditional, power)
    return torch.stack([term.square().mean().sqrt() for term in terms])


def _damped(difference: Tensor, power: float | Tensor) -> Tensor:
    norm = difference.norm(dim=1, keepdim=True)
    return difference / norm.clamp(min=1) ** power
