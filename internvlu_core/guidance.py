"""Dual classifier-free guidance over three branches.

The full branch has the prompt and the pictures, the partial branch only the pictures, the unconditional branch neither.
Without pictures the last two are one. This file decides which branches are evaluated (`distinct`, and `is_guided`: in
which steps) and how their velocities are combined (`guided_velocity`); every sampler calls it. The default scales are
in checkpoints/config.py.

Source: docs/model.md, "Guidance"; official code, commit 018a59c,
`internvlu/diffusion/pipeline_internvlu_generation_decoder.py`.
"""

from collections.abc import Callable, Sequence
from operator import is_
from typing import TypeVar

import torch
from torch import Tensor

EARLY_TIMESTEP = 930  # above it, large differences are damped
DAMPING = 0.4
ALWAYS = (1.0, 0.0)  # the noise levels between which is_guided holds for every step

T = TypeVar("T")


def distinct(full: T, partial: T, unconditional: T, same: Callable[[T, T], bool] = is_) -> list[T]:
    """The branches that have to be evaluated: [full, unconditional], and partial if it is another one.

    same: whether two branches are one, so that evaluating one of them is enough; by default, the same object.
    """
    return [full, unconditional] if same(partial, unconditional) else [full, unconditional, partial]


def by_name(values: Sequence[T]) -> tuple[T, T, T]:
    """(full, partial, unconditional) from one value for each branch that `distinct` gives, in its order."""
    full, unconditional, *others = values
    return full, others[0] if others else unconditional, unconditional


def is_guided(sigma: float, start: float, end: float) -> bool:
    """Whether the step at noise level σ is guided, of those from start down to end, without end itself.

    Of other steps only the full branch is evaluated, which is to guide with scale 1 (arXiv 2404.07724).
    """
    rounding = 1 + 1e-6  # a scheduler may mean start or end and miss it by that
    return end * rounding < sigma <= start * rounding


def guided_velocity(
    velocities: Sequence[Tensor], all_scale: float, partial_scale: float, timestep: float | Tensor
) -> Tensor:
    """combine, for the velocities of the branches that `distinct` gives, in its order.

    The full branch's alone, of a step that is not guided, is returned as it is.
    """
    if len(velocities) == 1:
        return velocities[0]
    return combine(*by_name(velocities), all_scale, partial_scale, timestep)


def combine(
    full: Tensor,
    partial: Tensor,
    unconditional: Tensor,
    all_scale: float,
    partial_scale: float,
    timestep: float | Tensor,
) -> Tensor:
    """v = v_u + p·(v_p − v_u)/D + a·(v_f − v_p)/D, for the velocities [B, C, …] of one sampling step.

    a: all_scale. p: partial_scale. D is 1 up to timestep 930; above it, for each pixel, the norm of the difference over
    the channels to the power 0.4, where that norm exceeds 1. Where partial is the very tensor unconditional, its term
    vanishes. timestep: 0…1000; a tensor must be on the device of the velocities, and is not waited for.
    """
    power = DAMPING * (timestep > EARLY_TIMESTEP)  # the case is in the exponent, so a tensor need not be waited for
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
    """Root mean squares [2] of combine's two terms, scales included: of the prompt, and of the pictures."""
    power = DAMPING * (timestep > EARLY_TIMESTEP)
    terms = all_scale * _damped(full - partial, power), partial_scale * _damped(partial - unconditional, power)
    return torch.stack([term.square().mean().sqrt() for term in terms])


def _damped(difference: Tensor, power: float | Tensor) -> Tensor:
    norm = difference.norm(dim=1, keepdim=True)
    return difference / norm.clamp(min=1) ** power
