"""Three-branch guidance as a ComfyUI guider."""

import comfy.samplers
import torch

from ..internvlu_core.guidance import combine
from ..internvlu_core.sampler import TIMESTEPS


class DualGuider(comfy.samplers.CFGGuider):
    """The core's combine over ComfyUI's batched evaluation of conditionings."""

    def set_conds(self, full, partial, unconditional):
        conds = {"positive": full, "negative": unconditional}
        # By identity: the same tensor is the same branch and is evaluated once.
        if partial[0][0] is not unconditional[0][0]:
            conds["partial"] = partial
        self.inner_set_conds(conds)

    def set_scales(self, all_scale: float, partial_scale: float):
        self.all_scale, self.partial_scale = all_scale, partial_scale

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Denoised x0 for x at σ = timestep [B]."""
        conds = [self.conds["positive"], self.conds["negative"]]
        if "partial" in self.conds:
            conds.append(self.conds["partial"])
        outputs = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})
        sigma = timestep.view(-1, *[1] * (x.ndim - 1))
        velocities = [(x - denoised) / sigma for denoised in outputs]
        full, unconditional = velocities[:2]
        partial = velocities[2] if len(velocities) > 2 else unconditional
        step = float(torch.trunc(timestep[0] * TIMESTEPS))
        return x - sigma * combine(full, partial, unconditional, self.all_scale, self.partial_scale, step)
