"""ComfyUI's own sampling code in this process, with the core instead of our MODEL: what stock nodes should give."""

import importlib
from types import SimpleNamespace

import torch
from torch import Tensor

from .inprocess import load_pack

FLOW_SHIFT = 3.0


def stock_guider(model, shift: float = FLOW_SHIFT):
    """ComfyUI's own guider and flow model, with a function of x [B, C, 1, h, w] and σ in place of a network."""
    load_pack()
    import comfy.model_base
    import comfy.model_patcher
    import comfy.samplers
    import comfy.supported_models_base

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
            return model(x, timestep[0])

    config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
    config.sampling_settings = {"shift": shift, "multiplier": 1000}
    network = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW)
    guider = Guider(comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu")))
    guider.inner_model, network.current_patcher = network, guider.model_patcher
    return guider


def flow_sampling(shift: float = FLOW_SHIFT):
    """Stock model_sampling of a flow model."""
    return stock_guider(None, shift).inner_model.model_sampling


@torch.inference_mode()
def stock_sample(
    model, noise, *, sampler="euler", scheduler="simple", steps=3, latent=None, mask=None, options=None, seed=7
) -> Tensor:
    """Normalised latents of a stock sampler over a function of x and σ. latent: normalised; mask: [1, 1, 1, h, w]."""
    guider = stock_guider(model)
    import comfy.samplers

    settings = comfy.samplers.KSampler.__new__(comfy.samplers.KSampler)
    settings.model, settings.sampler, settings.scheduler = guider.model_patcher, sampler, scheduler
    sigmas = settings.calculate_sigmas(steps)
    latent = torch.zeros_like(noise) if latent is None else latent
    extra = {"model_options": options or {}, "seed": seed}
    return comfy.samplers.sampler_object(sampler).sample(guider, sigmas, extra, None, noise, latent, mask, True)


def sigmas_of(scheduler: str, steps: int) -> Tensor:
    sampling = flow_sampling()
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)


def patched_options(module: str, class_name: str, **inputs) -> dict:
    """The model_options that a stock node puts on a MODEL."""
    patcher = stock_guider(None).model_patcher
    patcher.model.diffusion_model = SimpleNamespace(in_channels=16)
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
