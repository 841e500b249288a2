"""The core's sampler and noise levels as a SAMPLER and SIGMAS of ComfyUI."""

import inspect
import math
from itertools import count

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from tqdm.auto import trange

from ...internvlu_core.errors import InputError
from ...internvlu_core.sampling import MAX_STEPS, dpmpp_2m, flow_sigmas

# What a LATENT says, in newer versions of ComfyUI, of an empty one that was made for another model.
RATIOS = {"downscale_ratio_spacial", "downscale_ratio_temporal"}


def sample_dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The core's DPM-Solver++(2M) in k-diffusion's calling convention."""
    step, bar = count(), trange(len(sigmas) - 1, disable=disable)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        denoised = model(x, sigma.expand(len(x)), **(extra_args or {}))
        if callback:
            callback({"x": x, "i": next(step), "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        bar.update()
        return denoised

    with bar:
        return dpmpp_2m(denoise, x, sigmas)


def sample_latent(guider: comfy.samplers.CFGGuider, latent: dict, sigmas: torch.Tensor, seed: int) -> dict:
    """A LATENT drawn with the core's sampler, from noise as ComfyUI's samplers draw it."""
    # Newer versions of ComfyUI bring an empty latent of another model to this one's size by its ratios.
    ratios = RATIOS & inspect.signature(comfy.sample.fix_empty_latent_channels).parameters.keys()
    samples = comfy.sample.fix_empty_latent_channels(
        guider.model_patcher, latent["samples"], **{name: latent.get(name) for name in ratios}
    )
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    result = guider.sample(
        noise,
        samples,
        comfy.samplers.KSAMPLER(sample_dpmpp_2m),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    rest = {name: value for name, value in latent.items() if name not in RATIOS}
    return {**rest, "samples": result.to(comfy.model_management.intermediate_device())}


def shift_of(model_sampling) -> float:
    """The shift of the noise levels that a MODEL has now; model sampling nodes change it."""
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingFlux):
        return math.exp(model_sampling.shift)
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
        return model_sampling.shift
    kind = type(model_sampling).__bases__[0].__name__
    raise InputError(f"a node has changed the model's sampling to {kind}, which is not that of a flow model")


def denoise_sigmas(steps: int, shift: float, denoise: float) -> torch.Tensor:
    """The last `steps` steps of a schedule that is 1 / denoise as long, as KSampler does it."""
    if not 0 <= denoise <= 1:
        raise InputError(f"denoise is {denoise}; it must be from 0 to 1")
    if steps > denoise * MAX_STEPS:
        return torch.empty(0)  # nothing to change
    return flow_sigmas(max(steps, int(steps / denoise)), shift)[-(steps + 1) :]
