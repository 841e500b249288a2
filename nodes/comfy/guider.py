"""Three-branch guidance in ComfyUI: as a guider of its own, and as a patch for stock samplers and guiders."""

import logging
import math
from dataclasses import dataclass
from functools import cache

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond

from ...internvlu_core.errors import InputError
from ...internvlu_core.guidance import by_name, distinct, guided_velocity, is_guided, strengths
from ...internvlu_core.sampling import sigma_to_timestep
from .model import InternVLUModel

AUTOMATIC = -1.0  # what a widget says for the checkpoint's own scale; so does every other negative value
GUIDANCE = "internvl_u"  # the name of patch_model's wrapper

# Names in a guider's conds of the branches that the core's `distinct` gives, in its order: the first two are the pair
# that stock guiders have, and that hooks expect as cond and uncond.
BRANCHES = ("positive", "negative", "partial")


@dataclass(frozen=True)
class Guidance:
    """What a sampling run guides with. trace: if a list, each step appends the strengths of its two terms."""

    all_scale: float
    partial_scale: float
    trace: list[torch.Tensor] | None = None


class DualGuider(comfy.samplers.CFGGuider):
    """The core's guidance over ComfyUI's evaluation of conditionings. Raises InputError for another model's MODEL."""

    def __init__(self, model: comfy.model_patcher.ModelPatcher):
        super().__init__(model)
        check_model(model)

    def set_conds(self, full, partial, unconditional, all_scale: float, partial_scale: float, trace=None):
        """Scales below 0 are automatic. trace: see Guidance."""
        check_wiring(*([values for _, values in conds] for conds in (full, partial, unconditional)))
        scales = scales_for(self.model_patcher, [values for _, values in full], all_scale, partial_scale)
        self.guidance = Guidance(*scales, trace)
        branches = distinct(full, partial, unconditional, same_conditioning)
        self.inner_set_conds(dict(zip(BRANCHES, branches, strict=False)))

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Denoised x0 for x at σ = timestep [B]."""
        return predict(self, x, timestep, model_options or {}, self.guidance)


@cache
def _warn_of_cfg_function():
    logging.warning("InternVL-U: a CFG function on the model (RescaleCFG, say) is without effect on three branches")


def check_model(model: comfy.model_patcher.ModelPatcher):
    if not isinstance(model.model, InternVLUModel):
        raise InputError(f"this guidance is for InternVL-U; the MODEL is a {type(model.model).__name__}")


def scales_for(
    model: comfy.model_patcher.ModelPatcher, full: list[dict], all_scale: float, partial_scale: float
) -> tuple[float, float]:
    """(all_scale, partial_scale) as a node has them; a negative one is automatic.

    full: the values of the conditioning, which say whether it came from reasoning.
    """
    given = (None if scale < 0 else scale for scale in (all_scale, partial_scale))
    reasoned = any(values.get("reasoned") for values in full)
    return model.model.diffusion_model.config.guidance(reasoned, *given)


def check_wiring(full: list[dict], partial: list[dict], unconditional: list[dict]):
    """Raises InputError where a branch sees pictures that the branch before it does not: then wires are crossed."""
    sees = [any(any(values.get("image_mask", ())) for values in conds) for conds in (full, partial, unconditional)]
    if sees[1] and not sees[0]:
        raise InputError(
            "“images only” (partial) sees pictures, “positive” (full) none; connect all three from one InternVL-U "
            "Encode (is one of another Encode without pictures, or are the wires swapped?)"
        )
    if sees[2] and not sees[1]:
        raise InputError(
            "“negative” (unconditional) sees pictures, “images only” (partial) none; are these two wires swapped?"
        )


def same_conditioning(a: list, b: list) -> bool:
    """Whether two CONDITIONINGs are one and the same, so that evaluating one of them is enough: told by identity."""
    return len(a) == len(b) and all(
        x[0] is y[0] and x[1].keys() == y[1].keys() and all(x[1][key] is y[1][key] for key in x[1])
        for x, y in zip(a, b, strict=True)
    )


def predict(guider, x, timestep, model_options: dict, guidance: Guidance) -> torch.Tensor:
    """Guided x0 for x at σ = timestep [B], with the hooks that ComfyUI's own sampling_function offers."""
    if "sampler_cfg_function" in model_options:
        _warn_of_cfg_function()
    common = {"input": x, "sigma": timestep, "model": guider.inner_model, "model_options": model_options}
    conds = [guider.conds[name] for name in BRANCHES if name in guider.conds]
    outputs = _evaluate(conds, common)
    for hook in model_options.get("sampler_pre_cfg_function", ()):
        args = {"conds": conds, "conds_out": outputs, "cond_scale": guidance.all_scale, "timestep": timestep, **common}
        changed = hook(args)
        outputs = [*changed, *outputs[len(changed) :]]  # a hook may know of two only
    guided = _guided(x, timestep, outputs, guidance)
    for hook in model_options.get("sampler_post_cfg_function", ()):
        args = {"denoised": guided, "cond": conds[0], "uncond": conds[1], "cond_scale": guidance.all_scale}
        guided = hook(args | {"cond_denoised": outputs[0], "uncond_denoised": outputs[1], **common})
    return guided


def _evaluate(conds: list, common: dict) -> list[torch.Tensor]:
    """The denoised x0 of each branch. common: what every hook is told."""
    args = common["input"], common["sigma"], common["model_options"]
    hook = common["model_options"].get("sampler_calc_cond_batch_function")
    if hook is None:
        return comfy.samplers.calc_cond_batch(common["model"], conds, *args)
    # Such hooks (SkipLayerGuidanceDiTSimple, for example) expect a pair; the partial branch is evaluated without them.
    pair = hook({"conds": conds[:2], **common})
    return [*pair, *comfy.samplers.calc_cond_batch(common["model"], conds[2:], *args)]


def _guided(x: torch.Tensor, timestep: torch.Tensor, outputs: list[torch.Tensor], guidance: Guidance) -> torch.Tensor:
    """x0 by the core's guidance, which combines velocities. outputs: x0 of the branches, in the order of BRANCHES."""
    sigma = timestep.view(-1, *[1] * (x.ndim - 1))
    velocities = [(x - denoised) / sigma for denoised in outputs]
    scales = guidance.all_scale, guidance.partial_scale
    step = sigma_to_timestep(timestep[0])
    if guidance.trace is not None:
        guidance.trace.append(strengths(*by_name(velocities), *scales, step))
    return x - sigma * guided_velocity(velocities, *scales, step)


def patch_model(model: comfy.model_patcher.ModelPatcher, partial: list, partial_scale: float):
    """A clone of MODEL under which any sampler with a positive and a negative conditioning guides by three branches.

    The sampler's cfg becomes all_scale. A partial_scale below 0 is automatic.
    """
    check_model(model)
    scales_for(model, [], AUTOMATIC, partial_scale)  # an error now rather than in the sampler
    if any("hooks" in values for _, values in partial):
        # ComfyUI registers the hooks of a sampler's own conditionings before anything here is asked.
        raise InputError("InternVL-U Guidance cannot follow hooks on partial; InternVL-U Guider can")

    def guide_by_three(executor, *args, **kwargs):
        guider = executor.class_obj
        if guider.conds.keys() != {"positive", "negative"} or isinstance(guider, DualGuider):
            raise InputError(
                f"InternVL-U Guidance works with a KSampler or a CFGGuider, not with a {type(guider).__name__}"
            )
        check_wiring(guider.conds["positive"], [values for _, values in partial], guider.conds["negative"])
        full, unconditional = guider.conds["positive"], guider.conds["negative"]
        if len(distinct(full, partial, unconditional, alias)) > 2:
            guider.conds["partial"] = convert_cond(partial)
        guidance = Guidance(guider.cfg, scales_for(model, full, AUTOMATIC, partial_scale)[1])

        def predict_noise(x, timestep, model_options=None, seed=None):
            return predict(guider, x, timestep, model_options or {}, guidance)

        # On the guider itself, not as a wrapper around its method: wrappers of other nodes then go around this one,
        # in whatever order the nodes stand.
        guider.predict_noise = predict_noise
        try:
            return executor(*args, **kwargs)
        finally:
            del guider.predict_noise

    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, GUIDANCE)  # of several such nodes the last counts
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, GUIDANCE, guide_by_three)
    return patched


def limit_guidance(model: comfy.model_patcher.ModelPatcher, start: float, end: float):
    """A clone of MODEL that is guided only in the steps from start to end, fractions of the noise schedule.

    In the others every guider evaluates the positive conditioning alone, as ComfyUI does at cfg 1.
    """
    check_model(model)
    if start > end:
        raise InputError(f"start_percent is {start}, end_percent {end}; the start must not be behind the end")

    unguided: dict[str, bool] = {}  # "last": whether the last step was not guided

    def guide_in_range(executor, x, timestep, model_options=None, seed=None):
        guider, options = executor.class_obj, model_options or {}
        sampling = guider.model_patcher.get_model_object("model_sampling")
        # σ is on the device, which this waits for, as ComfyUI's own ranges do.
        if is_guided(float(timestep[0]), *map(sampling.percent_to_sigma, (start, end))):
            if unguided.pop("last", False):
                evaluate_next(options)
            return executor(x, timestep, options, seed)
        unguided["last"] = True
        guidance = getattr(guider, "guidance", None)
        if guidance is not None and guidance.trace is not None:
            guidance.trace.append(torch.zeros(2))
        options = {key: value for key, value in options.items() if key != "sampler_cfg_function"}
        conds = guider.conds.get("negative"), guider.conds["positive"]
        return comfy.samplers.sampling_function(guider.inner_model, x, timestep, *conds, 1.0, options, seed)

    limited = model.clone()
    limited.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "internvl_u_range", guide_in_range)
    return limited


def evaluate_next(model_options: dict):
    """Let EasyCache evaluate the coming step: to leave it out, it would need branches that were not evaluated yet.

    ComfyUI 0.3.75 ends in a KeyError there; newer versions evaluate those branches alone.
    """
    cache = model_options.get("transformer_options", {}).get("easycache")
    # LazyCache has no such attribute: it keeps the step's result, whatever branches that is of. Empty: a run begins.
    if getattr(cache, "uuid_cache_diffs", None):
        cache.cumulative_change_rate = math.inf


def alias(conditioning: list, conds: list[dict]) -> bool:
    """same_conditioning, where one side has already become a sampler's dicts."""
    added = {"cross_attn", "model_conds", "uuid"}
    return len(conds) == len(conditioning) and all(
        cond.get("cross_attn") is hidden
        and cond.keys() - added == values.keys()
        and all(cond[key] is values[key] for key in values)
        for cond, (hidden, values) in zip(conds, conditioning, strict=True)
    )
