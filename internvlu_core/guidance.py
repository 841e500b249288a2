"""Dual classifier-free guidance over three branches (model.md section 8)."""

from torch import Tensor

# Defaults of the official pipeline: plain, and after reasoning.
ALL_SCALE, PARTIAL_SCALE = 4.5, 2.0
ALL_SCALE_REASONED, PARTIAL_SCALE_REASONED = 3.5, 1.5

EARLY_TIMESTEP = 930  # above it, large differences are damped
DAMPING = 0.4


def combine(
    full: Tensor,
    partial: Tensor,
    unconditional: Tensor,
    all_scale: float,
    partial_scale: float,
    timestep: float,
) -> Tensor:
    """v = v_u + p·(v_p − v_u)/D + a·(v_f − v_p)/D, for velocities [B, C, …] of one step.

    D is 1 up to timestep 930; above, per pixel, ‖difference‖₂ over the channels to the power 0.4 where that norm
    exceeds 1. Where partial is the very tensor unconditional, its term vanishes.
    """
    early = timestep > EARLY_TIMESTEP
    guided = unconditional + all_scale * _damped(full - partial, early)
    if partial is not unconditional:
        guided = guided + partial_scale * _damped(partial - unconditional, early)
    return guided


def strengths(
    full: Tensor, partial: Tensor, unconditional: Tensor, all_scale: float, partial_scale: float, timestep: float
) -> tuple[float, float]:
    """Root mean squares of combine's two terms, that of the prompt and that of the pictures, scales included."""
    early = timestep > EARLY_TIMESTEP
    terms = all_scale * _damped(full - partial, early), partial_scale * _damped(partial - unconditional, early)
    return tuple(float(term.square().mean().sqrt()) for term in terms)


def _damped(difference: Tensor, early: bool) -> Tensor:
    if not early:
        return difference
    norm = difference.norm(dim=1, keepdim=True)
    return difference / norm.clamp(min=1) ** DAMPING
