"""Linear layers whose weights are kept in 8 bits: the core's numbers, under ComfyUI's patches and offloading.

ComfyUI casts a float8 weight without a scale, or with one scale for the whole matrix. The core gives each row a scale
(internvlu_core/quantization/float8.py). So these layers scale the weight themselves, and patches (LoRA, merges, hooks)
always see the scaled weight. `--fast fp8_matrix_mult` has no effect on them: it has no scales for rows.
"""

import comfy.float
import comfy.ops
import torch
import torch.nn.functional as F

from ...internvlu_core.checkpoints.files import QUANT_TENSOR
from ...internvlu_core.quantization import WEIGHT_FORMATS, put_layer, quantise_for
from ...internvlu_core.quantization.float8 import DTYPE, dequantise, quantise, row_scales
from ...internvlu_core.quantization.mxfp8 import MXFP8, from_rows
from .dequantising import filed_state_dict, format_tensor, of_values

FORMAT = WEIGHT_FORMATS["fp8"]
PATCHED_DTYPE = torch.bfloat16  # a float8 value times a power of two is exact in it


class Float8Linear(comfy.ops.manual_cast.Linear):
    """A linear layer with a float8 weight [out, in] and a scale for each of its rows.

    scale is a buffer, not a parameter, and not in the state dict: to ComfyUI it is a part of the weight that no merge
    may change. own_scale is that of the weight as loaded.
    """

    def __init__(self, linear: torch.nn.Linear):
        """linear: the layer to replace; it may be on the meta device. `keep` gives the new one its weight."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta", dtype=DTYPE)
        self.bias = linear.bias
        self.weight_function, self.bias_function = [], []
        for name in ("scale", "own_scale"):
            self.register_buffer(name, torch.empty(linear.out_features, device="meta"), persistent=False)

    def keep(self, weight: torch.Tensor, device: torch.device, load_device: torch.device | None = None):
        """Store a weight of any dtype. One that is float8 already stays memory-mapped, with scales of 1.

        load_device: quantises it; by default the device where it waits.
        """
        if weight.dtype == DTYPE:
            stored = {"weight": weight, "scale": torch.ones(len(weight))}
        else:
            stored = quantise_for(torch.device(load_device or device), FORMAT, weight, torch.float32).stored
        self.keep_stored(stored["weight"], stored["scale"], device)

    def keep_stored(self, stored: torch.Tensor, scale: torch.Tensor, device: torch.device):
        """Take a weight in float8 [out, in] with its scales [out]."""
        self.weight = torch.nn.Parameter(stored.to(device), requires_grad=False)
        self.scale = self.own_scale = scale.to(device)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        # ComfyUI takes a patch off by assigning the weight from before it, to which the first scales belong.
        if name == "weight" and self._buffers.get("own_scale") is not None:
            self.scale = self.own_scale

    def forward_comfy_cast_weights(self, input):
        patches, self.weight_function = self.weight_function, []  # they come after the scales
        try:
            weight, bias, stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
        finally:
            self.weight_function = patches
        weight = dequantise(weight, self.scale.to(weight.device), input.dtype)
        for patch in patches:
            weight = of_values(patch)(weight)
        output = F.linear(input, weight, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return output

    def convert_weight(self, weight, inplace=False, **kwargs):
        """ComfyUI asks before it patches: the stored weight, of any dtype, with its scales, in float32."""
        return dequantise(weight, self.scale.to(weight.device), torch.float32)

    def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
        """ComfyUI gives the patched weight: store it. return_weight: return it instead, as it would be stored, scaled.

        In place (hooks, which also restore in place) the scales stay, and values beyond their range are clipped.
        """
        scale = self.scale.to(weight.device) if inplace_update else row_scales(weight)
        stored = comfy.float.stochastic_rounding(weight.float() / scale[:, None], DTYPE, seed=seed or 0)
        if return_weight:
            return dequantise(stored, scale, PATCHED_DTYPE)
        if inplace_update:
            self.weight.data.copy_(stored)
        else:
            self.weight = torch.nn.Parameter(stored, requires_grad=False)
            self.scale = scale


def keep_in_float8(
    network: torch.nn.Module,
    path: str,
    weight: torch.Tensor,
    device: torch.device,
    load_device: torch.device | None = None,
):
    """Replace the linear layer at this path by one in 8 bits with this weight. Devices as in Float8Linear.keep."""
    layer = Float8Linear(network.get_submodule(path))
    layer.keep(weight, device, load_device)
    put_layer(network, path, layer)


def scaled_state_dict(network: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's state dict for a file: weights of these layers become MXFP8, which holds the same numbers.

    For layers of dequantising.py: as there.
    """
    scaled = filed_state_dict(network, state_dict)
    for path, layer in network.named_modules():
        if isinstance(layer, Float8Linear) and f"{path}.weight" in scaled:
            weight = scaled[f"{path}.weight"].to("cpu")  # newer versions of ComfyUI patch it only now
            # A patched weight was rounded already, so it is in 8 bits what it is.
            stored = (weight, layer.scale.cpu()) if weight.dtype == DTYPE else quantise(weight.float())
            scaled |= {f"{path}.{name}": tensor for name, tensor in from_rows(*stored).items()}
            scaled[f"{path}.{QUANT_TENSOR}"] = format_tensor(MXFP8(shape=tuple(weight.shape)))
    return scaled
