"""Flow-matching time steps and the DPM-Solver++(2M) sampler, as pure functions.

Source: docs/model.md, "Flow matching sampler".
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .errors import check_integer

TIMESTEPS = 1000
MAX_STEPS = 10**6  # more than any schedule has use for, few enough to make one


def flow_sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """Noise levels σ [steps + 1] of the shifted flow schedule, float32, the last 0.

    Raises InputError unless steps is an integer from 1 to MAX_STEPS.
    """
    check_integer("steps", steps, 1, MAX_STEPS)
    # The arithmetic of diffusers' DPMSolverMultistepScheduler, in its order: its time steps are truncated, and a
    # rounding more or less can be a whole step.
    exact = 1.0 - np.linspace(1, 1 / TIMESTEPS, steps + 1)
    exact = np.flip(shift * exact / (1 + (shift - 1) * exact))[:-1]
    sigmas = exact.astype(np.float32)
    # float32 carries a few σ next to a whole step across it (15 of the schedules up to 1000 steps have one).
    wanted = np.trunc(exact * TIMESTEPS)
    while (crossed := sigma_to_timestep(torch.from_numpy(sigmas)).numpy() - wanted).any():
        sigmas = np.where(crossed, np.nextafter(sigmas, np.where(crossed > 0, 0, 1).astype(np.float32)), sigmas)
    return torch.cat([torch.from_numpy(sigmas), torch.zeros(1)])


def sigma_to_timestep(sigma: Tensor) -> Tensor:
    """t = trunc(1000 σ), in the dtype of σ."""
    return (sigma * TIMESTEPS).trunc()


Callback = Callable[[int, int, Tensor], None]


@torch.inference_mode()
def dpmpp_2m(
    model: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M), midpoint, on the flow path x = (1 − σ)·x0 + σ·noise (arXiv 2211.01095, algorithm 2).

    model(x, sigma) returns the denoised x0. callback(step, steps, x0) is called after each evaluation and may raise
    to cancel. The first step, and one that ends at σ = 0, are of first order.
    """
    steps = len(sigmas) - 1
    log_snr = torch.log1p(-sigmas) - torch.log(sigmas)
    ends_clean = steps > 0 and not sigmas[-1] > 0  # asked once: on a device, asking is waiting
    previous = None
    for i in range(steps):
        denoised = model(x, sigmas[i])
        if callback:
            callback(i, steps, denoised)
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        h = log_snr[i + 1] - log_snr[i]
        target = denoised
        if previous is not None and not (i == steps - 1 and ends_clean):
            h_previous = log_snr[i] - log_snr[i - 1]
            target = denoised + (denoised - previous) * (0.5 * h / h_previous)
        x = sigma_next / sigma * x - (1 - sigma_next) * torch.expm1(-h) * target
        previous = denoised
    return x
