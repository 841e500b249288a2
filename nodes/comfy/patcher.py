"""ComfyUI's ModelPatcher, with hooks on quantised layers (Create Hook LoRA and the like).

ComfyUI applies a hook by overwriting weights in place, and keeps the changed values for the next step. Values do not
fit into a quantised weight: its own quantised layers end in an AssertionError (0.3.75) or an AttributeError (0.33).
Here a hook changes such a weight when the layer is used, as ComfyUI does with LoRAs on layers in main memory. That
takes no memory and loses no precision, but time in each step.
"""

import comfy.lora
import comfy.model_patcher
import comfy.utils
import torch

from .quantised import is_quantised


class HookPatch:
    """Changes values of a weight, in the layer's list `weight_function`."""

    def __init__(self, key: str, patches: list):
        self.key, self.patches = key, patches

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return comfy.lora.calculate_weight(self.patches, weight, self.key, intermediate_dtype=weight.dtype)


class Patcher(comfy.model_patcher.ModelPatcher):
    """For our MODEL and VLM."""

    def quantised_layer(self, key: str) -> torch.nn.Module | None:
        """The layer whose weight has this name, if it is quantised."""
        path, _, name = key.rpartition(".")
        if name != "weight":
            return None
        layer = comfy.utils.get_attr(self.model, path)
        return layer if is_quantised(layer) else None

    def patch_hooks(self, hooks):
        super().patch_hooks(hooks)
        for layer in self.model.modules():
            _remove_hooks(layer)
        for key, patches in self.get_combined_hook_patches(hooks).items():
            layer = self.quantised_layer(key)
            if layer is not None:
                layer.weight_function = [*layer.weight_function, HookPatch(key, patches)]

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, *args, **kwargs):
        if self.quantised_layer(key) is None:
            super().patch_hook_weight_to_device(hooks, combined_patches, key, *args, **kwargs)

    def unpatch_hooks(self, *args, **kwargs):
        super().unpatch_hooks(*args, **kwargs)
        for layer in self.model.modules():
            _remove_hooks(layer)

    def model_state_dict(self, *args, **kwargs):
        """Without the parts of ComfyUI's quantised weights, which ComfyUI 0.33 then looks up in vain."""
        state_dict = super().model_state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in state_dict.items() if self._has(name)}

    def _has(self, name: str) -> bool:
        path, _, leaf = name.rpartition(".")
        return hasattr(self.model.get_submodule(path), leaf)


def _remove_hooks(layer: torch.nn.Module):
    functions = getattr(layer, "weight_function", ())
    if any(isinstance(function, HookPatch) for function in functions):
        layer.weight_function = [function for function in functions if not isinstance(function, HookPatch)]
