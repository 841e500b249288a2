"""Flow-matching time steps and the DPM-Solver++(2M) sampler, as pure functions.

Source: docs/model.md, "Flow matching sampler".
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from . import guidance
from .errors import MAX_SEED, check_integer

TIMESTEPS = 1000
MAX_STEPS = 10**6  # far more than is useful, and still fast to compute


def flow_sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """Noise levels σ [steps + 1] of the shifted flow schedule, float32, the last 0.

    Raises InputError unless steps is an integer from 1 to MAX_STEPS.
    """
    check_integer("steps", steps, 1, MAX_STEPS)
    # The arithmetic and its order are those of diffusers' DPMSolverMultistepScheduler. Time steps are truncated, so
    # another rounding can change one by a whole step.
    exact = np.flip(_shifted(1.0 - np.linspace(1, 1 / TIMESTEPS, steps + 1), shift))[:-1]
    sigmas = exact.astype(np.float32)
    # Rounding to float32 moves a few σ across a whole time step (in 15 of the schedules up to 1000 steps).
    wanted = np.trunc(exact * TIMESTEPS)
    while (crossed := sigma_to_timestep(torch.from_numpy(sigmas)).numpy() - wanted).any():
        sigmas = np.where(crossed, np.nextafter(sigmas, np.where(crossed > 0, 0, 1).astype(np.float32)), sigmas)
    return torch.cat([torch.from_numpy(sigmas), torch.zeros(1, dtype=torch.float32, device="cpu")])


def sigma_at(fraction: float, shift: float) -> float:
    """The noise level after this fraction of the steps of a shifted flow schedule: 1 at 0, and 0 at 1."""
    return _shifted(1 - fraction, shift)


def _shifted(sigma, shift: float):
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_to_timestep(sigma: Tensor) -> Tensor:
    """t = trunc(1000 σ), in the dtype of σ."""
    return (sigma * TIMESTEPS).trunc()


def initial_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise of this shape, float32, drawn on the CPU: the same on every device, to the bit.

    No global random state is read or changed. Raises InputError unless seed is an integer from 0 to MAX_SEED.
    """
    check_integer("seed", seed, 0, MAX_SEED)
    generator = torch.Generator("cpu").manual_seed(int(seed))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


OnStep = Callable[[int, int, Tensor], None]  # (step from 0, steps, denoised latents [n, z, h, w])


def sample(
    velocities: Callable[[Sequence[Tensor], float, bool], Sequence[Sequence[Tensor]]],
    noises: Sequence[Tensor],
    sigmas: Tensor,
    scales: Sequence[tuple[float, float]],
    callback: Callable[[int, int, Tensor], None] | None = None,
    guided: tuple[float, float] = guidance.ALWAYS,
) -> Tensor:
    """The noises [n, z, h, w] of N requests → their normalised latents [N, n, z, h, w], float32, on the noises' device.

    velocities(latents of each request, timestep, guided): those of the branches that guidance.distinct gives for each
    request, in its order; of the full branch alone where the step is not guided. sigmas: on the CPU, as flow_sigmas
    gives them. scales: (all_scale, partial_scale) of each request. callback(step, steps, denoised latents
    [N, n, z, h, w]) may raise to cancel. guided: of all requests, see guidance.is_guided. Requests do not mix.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        timestep = float(sigma_to_timestep(sigma))  # σ is on the CPU, so no step waits for the device
        found = velocities(list(x), timestep, guidance.is_guided(float(sigma), *guided))
        combined = [guidance.guided_velocity(v, *scale, timestep) for v, scale in zip(found, scales, strict=True)]
        return x - sigma * torch.stack(combined)

    return dpmpp_2m(denoise, torch.stack(list(noises)).float(), sigmas, callback)


def check_sampled(latents: Tensor) -> Tensor:
    """Return the latents. Raises FloatingPointError if they are not finite."""
    if not latents.isfinite().all():
        raise FloatingPointError("the sampled latents are not finite; try smaller scales, bfloat16 or float32")
    return latents


@torch.inference_mode()
def dpmpp_2m(
    model: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor, callback: OnStep | None = None
) -> Tensor:
    """DPM-Solver++(2M), midpoint, on the flow path x = (1 − σ)·x0 + σ·noise (arXiv 2211.01095, algorithm 2).

    model(x, sigma) returns the denoised x0. callback(step, steps, x0) is called after each evaluation and may raise
    to cancel. The first step, and one that ends at σ = 0, are of first order.
    """
    steps = len(sigmas) - 1
    log_snr = torch.log1p(-sigmas) - torch.log(sigmas)
    ends_clean = steps > 0 and not sigmas[-1] > 0  # once, since reading a value waits for the device
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
