"""Layers that keep their weights as a file stores them and dequantise them when they are used.

They hold GGUF's block types and the formats of ComfyUI's files that the ComfyUI at hand lacks, under its patches,
offloading and saving. To ComfyUI the weight is bytes [rows, bytes of a row]: it moves and counts those. The scales are
buffers. Patches (LoRA, merges, hooks) see the dequantised values. A weight that a patch changes is stored in Q8_0,
whatever format it had: a small change would vanish in fewer bits.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass

import comfy.ops
import torch
import torch.nn.functional as F

from ...internvlu_core.checkpoints.files import QUANT_TENSOR
from ...internvlu_core.checkpoints.gguf import BLOCKS
from ...internvlu_core.errors import InputError
from ...internvlu_core.quantization import FileFormat, Gguf, QuantisedWeight, WeightFormat, put_layer
from ...internvlu_core.quantization.gguf_blocks import quantise_q8_0

SAVED_DTYPE = torch.bfloat16
PATCHED_TYPE = "Q8_0"


@dataclass(frozen=True)
class _Patched(Gguf):
    """The format of a patched weight: PATCHED_TYPE, with zeros after rows of `columns` that end inside a block."""

    columns: int

    def quantise(self, weight):
        block = BLOCKS[self.type][0]
        return {"weight": quantise_q8_0(F.pad(weight, (0, -self.columns % block)))}

    def dequantise(self, stored, dtype):
        return super().dequantise(stored, dtype)[..., : self.columns]


class DequantisingLayer:
    """What the linear layer and the embedding share."""

    matrix_shape: torch.Size  # of the weight that the bytes stand for

    def keep(self, weight: QuantisedWeight, device: torch.device):
        """Take a weight as a file stores it; on the CPU it stays memory-mapped."""
        matrix = weight.stored["weight"]
        self.format, self.stored_dtype, self.row_bytes = weight.format, matrix.dtype, matrix.shape[1]
        self.patched_format = _Patched(PATCHED_TYPE, self.matrix_shape[1])
        self.part_names = tuple(name for name in weight.stored if name != "weight")
        for name in self.part_names:
            self.register_buffer(name, weight.stored[name].to(device))
        self.weight = torch.nn.Parameter(matrix.view(torch.uint8).to(device), requires_grad=False)
        self.weight_function, self.bias_function = [], []

    def as_loaded(self, weight: torch.Tensor) -> bool:
        """Whether bytes are those of the file. Those of a patched weight have longer rows."""
        return weight.shape[1] == self.row_bytes

    def stored(self, weight: torch.Tensor) -> tuple[WeightFormat, Mapping[str, torch.Tensor]]:
        """(format of a weight, its tensors by the format's names). weight: its bytes, in any dtype."""
        weight = weight.to(torch.uint8)
        # In Q8_0 every block has a scale beside its values, so that no row is as short as a file's in 8 bits or less.
        if not self.as_loaded(weight):
            return self.patched_format, {"weight": weight}
        parts = {name: getattr(self, name).to(weight.device) for name in self.part_names}
        return self.format, {"weight": weight.view(self.stored_dtype), **parts}

    def dequantise(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Bytes, in any dtype → the values of the matrix in this dtype."""
        weight_format, stored = self.stored(weight)
        return weight_format.dequantise(stored, dtype)

    def cast(self, device: torch.device, dtype: torch.dtype):
        """(weight on the device: its bytes, or with patches its values; bias; ComfyUI's stream)"""
        patches, self.weight_function = self.weight_function, []  # they come after dequantising
        try:
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, dtype=torch.uint8, device=device, bias_dtype=dtype, offloadable=True
            )
        finally:
            self.weight_function = patches
        if patches:
            weight = self.dequantise(weight, dtype)
        for patch in patches:
            weight = of_values(patch)(weight)
        return weight, bias, stream

    def convert_weight(self, weight, inplace=False, **kwargs):
        """ComfyUI asks before it patches: the weight's values, in float32. weight: its bytes, in any dtype."""
        return self.dequantise(weight, torch.float32)

    def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
        """ComfyUI gives the patched values: store them. return_weight: return them instead, for a file."""
        if return_weight:
            return weight.to(SAVED_DTYPE)
        if inplace_update:
            raise InputError(
                "a node overwrites weights in place, which quantised weights do not allow; load the model with "
                "weight_dtype bf16, and not from a GGUF file"
            )
        self.weight = torch.nn.Parameter(self.patched_format.quantise(weight)["weight"], requires_grad=False)

    def for_file(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a safetensors file stores for a weight, on the CPU, by names in the layer.

        weight: its bytes, or its patched values. A weight as it was read keeps its bits, except that GGUF's types are
        no format of such files.
        """
        weight = weight.to("cpu")  # newer versions of ComfyUI patch it only now
        if weight.is_floating_point():
            return {"weight": weight.to(SAVED_DTYPE)}
        if not (isinstance(self.format, FileFormat) and self.as_loaded(weight)):
            return {"weight": self.dequantise(weight, SAVED_DTYPE)}
        stored = {name: tensor.cpu() for name, tensor in self.stored(weight)[1].items()}
        return {**stored, QUANT_TENSOR: format_tensor(self.format)}


def format_tensor(layer_format: FileFormat | Mapping) -> torch.Tensor:
    """The tensor of bytes by which a file says a layer's format."""
    metadata = layer_format if isinstance(layer_format, Mapping) else layer_format.metadata()
    return torch.tensor(list(json.dumps(metadata).encode()), dtype=torch.uint8)


class DequantisingLinear(DequantisingLayer, comfy.ops.manual_cast.Linear):
    """A linear layer whose weight is bytes, uint8 [rows, bytes of a row]."""

    def __init__(self, linear: torch.nn.Linear):
        """linear: the layer to replace; it may be on the meta device. `keep` gives the new one its weight."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.bias, self.matrix_shape = linear.bias, torch.Size((linear.out_features, linear.in_features))

    def forward_comfy_cast_weights(self, input):
        weight, bias, stream = self.cast(input.device, input.dtype)
        if weight.is_floating_point():
            output = F.linear(input, weight, bias)
        else:
            weight_format, stored = self.stored(weight)
            output = weight_format.multiply(input, stored, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return output


class DequantisingEmbedding(DequantisingLayer, comfy.ops.manual_cast.Embedding):
    """A table of embeddings that is bytes, uint8 [rows, bytes of a row]. dtype: of the embeddings that it gives."""

    bias = None

    def __init__(self, embedding: torch.nn.Embedding, dtype: torch.dtype):
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.matrix_shape = torch.Size((embedding.num_embeddings, embedding.embedding_dim))
        self.dtype = dtype

    def forward_comfy_cast_weights(self, input, out_dtype=None):
        dtype = out_dtype or self.dtype
        weight, bias, stream = self.cast(input.device, dtype)
        if weight.is_floating_point():
            output = F.embedding(input, weight)
        else:
            weight_format, stored = self.stored(weight)
            output = weight_format.rows(stored, input, dtype)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return output


def of_values(patch):
    """A patch of an offloaded layer, for values. In ComfyUI 0.3 it dequantises them itself and rounds the result."""
    if getattr(patch, "convert_func", None) is None and getattr(patch, "set_func", None) is None:
        return patch
    patch = copy.copy(patch)
    patch.convert_func = patch.set_func = None
    return patch


def keep_stored(network: torch.nn.Module, path: str, weight: QuantisedWeight, device: torch.device, dtype: torch.dtype):
    """Replace the layer at this path by one with this stored weight. dtype: of the rows of an embedding."""
    layer = network.get_submodule(path)
    new = DequantisingEmbedding(layer, dtype) if isinstance(layer, torch.nn.Embedding) else DequantisingLinear(layer)
    new.keep(weight, device)
    put_layer(network, path, new)


def dequantising_layers(network: torch.nn.Module) -> dict[str, DequantisingLayer]:
    """{path: layer} of a network's layers of this kind."""
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, DequantisingLayer)}


def matrix_shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    """{name of a weight that is bytes: shape of the matrix that it stands for}"""
    return {f"{path}.weight": layer.matrix_shape for path, layer in dequantising_layers(network).items()}


def filed_state_dict(network: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's state dict for a safetensors file: bytes become what such a file stores for them."""
    filed = dict(state_dict)
    for path, layer in dequantising_layers(network).items():
        if f"{path}.weight" in filed:
            weight = filed.pop(f"{path}.weight")
            for name in layer.part_names:
                filed.pop(f"{path}.{name}", None)
            filed |= {f"{path}.{name}": tensor for name, tensor in layer.for_file(weight).items()}
    return filed
