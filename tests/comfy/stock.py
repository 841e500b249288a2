"""ComfyUI's own sampling code in this process, with the core instead of our MODEL: what stock nodes should give."""

import importlib
from types import SimpleNamespace

import torch
from inprocess import load_pack
from torch import Tensor

FLOW_SHIFT = 3.0


def flow_sampling(shift: float = FLOW_SHIFT):
    """Stock model_sampling of a flow model."""
    load_pack()
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = Sampling()
    sampling.set_parameters(shift=shift, multiplier=1000)
    return sampling


class Host:
    """What stock samplers ask of a guider, answered by a function of x [B, C, 1, h, w] and σ."""

    def __init__(self, model, shift: float = FLOW_SHIFT):
        self.model, sampling = model, flow_sampling(shift)
        self.inner_model = SimpleNamespace(
            model_sampling=sampling,
            scale_latent_inpaint=lambda x, sigma, noise, latent_image: sampling.noise_scaling(
                sigma.reshape([-1] + [1] * (noise.ndim - 1)), noise, latent_image
            ),
        )
        self.inner_model.inner_model = self.inner_model
        self.model_patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        self.inner_model.current_patcher = self.model_patcher

    def __call__(self, x: Tensor, sigma: Tensor, model_options=None, seed=None) -> Tensor:
        return self.model(x, sigma[0])


@torch.inference_mode()
def stock_sample(
    model, noise, *, sampler="euler", scheduler="simple", steps=3, latent=None, mask=None, options=None, seed=7
) -> Tensor:
    """Normalised latents of a stock sampler over a function of x and σ. latent: normalised; mask: [1, 1, 1, h, w]."""
    host = Host(model)
    import comfy.samplers

    settings = comfy.samplers.KSampler.__new__(comfy.samplers.KSampler)
    settings.model, settings.sampler, settings.scheduler = host.model_patcher, sampler, scheduler
    sigmas = settings.calculate_sigmas(steps)
    latent = torch.zeros_like(noise) if latent is None else latent
    extra = {"model_options": options or {}, "seed": seed}
    return comfy.samplers.sampler_object(sampler).sample(host, sigmas, extra, None, noise, latent, mask, True)


def sigmas_of(scheduler: str, steps: int) -> Tensor:
    sampling = flow_sampling()
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)


def patched_options(module: str, class_name: str, **inputs) -> dict:
    """The model_options that a stock node puts on a MODEL."""
    load_pack()
    import comfy.model_patcher

    network = torch.nn.Module()
    network.diffusion_model = SimpleNamespace(in_channels=16)
    patcher = comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
    node = getattr(importlib.import_module(module), class_name)
    if hasattr(node, "define_schema"):
        (patched,) = node.execute(patcher, **inputs).args
    else:
        (patched,) = getattr(node(), node.FUNCTION)(patcher, **inputs)
    return patched.model_options


def with_hooks(model, options: dict, x: Tensor, sigma: Tensor, outputs: list[Tensor], scale: float, guide=None):
    """Guided x0 of branches' x0 [full, unconditional, …] under model_options' hooks, as ComfyUI documents them.

    guide(outputs) is the guidance itself, by default CFG. model: what hooks get as "model".
    """
    import comfy.samplers

    timestep = sigma.expand(len(x))
    conds = [[{}] for _ in outputs]
    common = {"input": x, "sigma": timestep, "model": model, "model_options": options}
    for hook in options.get("sampler_pre_cfg_function", ()):
        outputs = hook({"conds": conds, "conds_out": outputs, "cond_scale": scale, "timestep": timestep, **common})
    if guide is None:
        return comfy.samplers.cfg_function(
            model, *outputs[:2], scale, x, timestep, model_options=options, cond=conds[0], uncond=conds[1]
        )
    guided = guide(outputs)
    for hook in options.get("sampler_post_cfg_function", ()):
        values = {"denoised": guided, "cond": conds[0], "uncond": conds[1], "cond_scale": scale}
        guided = hook({**values, "cond_denoised": outputs[0], "uncond_denoised": outputs[1], **common})
    return guided
