"""Layers whose weights stay packed in blocks of a GGUF type, under ComfyUI's patches, offloading and saving.

To ComfyUI the weight is bytes [out, bytes of a row]: it moves and counts those. They become values when the layer is
used, and patches (LoRA, merges) see these values. A weight that a patch changes is stored in Q8_0, whatever type it
had: a small change would vanish in fewer bits.
"""

import copy

import comfy.ops
import torch
import torch.nn.functional as F

from ...internvlu_core.checkpoints.gguf import nbytes
from ...internvlu_core.errors import InputError
from ...internvlu_core.quantization import Gguf, QuantisedWeight, put_layer
from ...internvlu_core.quantization.gguf_blocks import quantise_q8_0

SAVED_DTYPE = torch.bfloat16
PATCHED_TYPE = "Q8_0"


class _PackedLayer:
    """What the linear layer and the embedding share. columns: of the matrix that the weight stands for."""

    columns: int

    def keep(self, weight: QuantisedWeight, device: torch.device):
        """Take a weight as a file stores it; on the CPU it stays memory-mapped."""
        self.formats = {nbytes(kind, (self.columns,)): Gguf(kind) for kind in (PATCHED_TYPE, weight.format.type)}
        self.weight = torch.nn.Parameter(weight.stored["weight"].to(device), requires_grad=False)
        self.weight_function, self.bias_function = [], []

    @property
    def matrix_shape(self) -> torch.Size:
        return torch.Size((len(self.weight), self.columns))

    def format_of(self, weight: torch.Tensor) -> Gguf | None:
        """The format of a weight, by the length of its rows: as loaded, or patched. None: it is values already."""
        return None if weight.shape[1] == self.columns else self.formats[weight.shape[1]]

    def unpack(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        weight_format = self.format_of(weight)
        if weight_format is None:
            return weight.to(dtype)
        return weight_format.dequantise({"weight": weight.to(torch.uint8)}, dtype)

    def cast(self, device: torch.device, dtype: torch.dtype):
        """(weight on the device: packed bytes, or values if there are patches; bias; ComfyUI's stream)"""
        patches, self.weight_function = self.weight_function, []  # they come after unpacking
        try:
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, dtype=torch.uint8, device=device, bias_dtype=dtype, offloadable=True
            )
        finally:
            self.weight_function = patches
        if patches:
            weight = self.unpack(weight, dtype)
        for patch in patches:
            weight = _of_values(patch)(weight)
        return weight, bias, stream

    def convert_weight(self, weight, inplace=False, **kwargs):
        """ComfyUI asks before it patches: the weight's values, in float32. weight: its bytes, in any dtype."""
        return self.unpack(weight, torch.float32)

    def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
        """ComfyUI gives the patched values: store them. return_weight: return them instead, for a file."""
        if return_weight:
            return weight.to(SAVED_DTYPE)
        if inplace_update:
            raise InputError(
                "hooks overwrite weights in place, which the packed weights of a GGUF file do not allow; use a stock "
                "LoRA loader in place of the hook, or load the model from a safetensors file"
            )
        self.weight = torch.nn.Parameter(quantise_q8_0(weight), requires_grad=False)


class GgufLinear(_PackedLayer, comfy.ops.manual_cast.Linear):
    """A linear layer whose weight is packed: uint8 [out, bytes of a row]."""

    def __init__(self, linear: torch.nn.Linear):
        """linear: the layer to replace; it may be on the meta device. `keep` gives the new one its weight."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.bias, self.columns = linear.bias, linear.in_features

    def forward_comfy_cast_weights(self, input):
        weight, bias, stream = self.cast(input.device, input.dtype)
        weight_format = self.format_of(weight)
        if weight_format is None:
            output = F.linear(input, weight, bias)
        else:
            output = weight_format.multiply(input, {"weight": weight}, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return output


class GgufEmbedding(_PackedLayer, comfy.ops.manual_cast.Embedding):
    """A table of embeddings that is packed: uint8 [rows, bytes of a row]. dtype: of the embeddings that it gives."""

    bias = None

    def __init__(self, embedding: torch.nn.Embedding, dtype: torch.dtype):
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.columns, self.dtype = embedding.embedding_dim, dtype

    def forward_comfy_cast_weights(self, input, out_dtype=None):
        dtype = out_dtype or self.dtype
        weight, bias, stream = self.cast(input.device, dtype)
        output = self.unpack(F.embedding(input, weight).flatten(0, -2), dtype).unflatten(0, input.shape)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return output


def _of_values(patch):
    """A patch of an offloaded layer, for values. In ComfyUI 0.3 it unpacks them itself and rounds the result."""
    if getattr(patch, "convert_func", None) is None and getattr(patch, "set_func", None) is None:
        return patch
    patch = copy.copy(patch)
    patch.convert_func = patch.set_func = None
    return patch


def keep_packed(network: torch.nn.Module, path: str, weight: QuantisedWeight, device: torch.device, dtype: torch.dtype):
    """Replace the layer at this path by one with this packed weight. dtype: of the rows of an embedding."""
    layer = network.get_submodule(path)
    new = GgufEmbedding(layer, dtype) if isinstance(layer, torch.nn.Embedding) else GgufLinear(layer)
    new.keep(weight, device)
    put_layer(network, path, new)


def packed_layers(network: torch.nn.Module) -> dict[str, _PackedLayer]:
    """{path: layer} of a network's packed layers."""
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, _PackedLayer)}


def matrix_shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    """{name of a packed weight: shape of the matrix that it stands for}"""
    return {f"{path}.weight": layer.matrix_shape for path, layer in packed_layers(network).items()}


def unpacked_state_dict(network: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's state dict for a safetensors file: packed weights become their values, in SAVED_DTYPE."""
    unpacked = dict(state_dict)
    for path, layer in packed_layers(network).items():
        if f"{path}.weight" in unpacked:
            weight = unpacked[f"{path}.weight"].to("cpu")  # newer versions of ComfyUI patch it only now
            unpacked[f"{path}.weight"] = layer.unpack(weight, SAVED_DTYPE)
    return unpacked
