"""Layers that a file stores in fewer bits: ComfyUI's own layers, and its kernels, where ComfyUI knows the format.

Layers in a format that it lacks are those of dequantising.py; MXFP8 with one scale a row becomes that of float8.py.
"""

from collections.abc import Mapping
from types import SimpleNamespace

import comfy.ops
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from ...internvlu_core.checkpoints.files import QUANT_TENSOR
from ...internvlu_core.checkpoints.quantised import INPUT_SCALE
from ...internvlu_core.quantization import FileFormat, QuantisedWeight, put_layer
from ...internvlu_core.quantization.mxfp8 import MXFP8, to_rows
from .dequantising import DequantisingLayer, format_tensor, keep_stored
from .float8 import Float8Linear
from .notice import notify

Formats = Mapping[str, FileFormat]  # {path of a layer in the network: its format}


def operations(formats: Formats, compute_dtype: torch.dtype, device: torch.device, *, exact: bool):
    """ComfyUI's classes of layers for these formats. exact: inputs are not rounded, as in ComfyUI's text encoders."""
    config = {path: layer.metadata() for path, layer in formats.items()}
    if exact:
        return comfy.ops.mixed_precision_ops(config, compute_dtype, full_precision_mm=True)
    asked = SimpleNamespace(quant_config=config, layer_quant_config=config)  # newer versions, and 0.3
    return comfy.ops.pick_operations(None, compute_dtype, load_device=device, model_config=asked)


def place_layers(
    network: torch.nn.Module,
    state_dict: dict[str, torch.Tensor],
    formats: Formats,
    ops,
    dtype: torch.dtype,
    device: torch.device,
):
    """Replace the layers of a network on the meta device by layers in their formats, with their weights.

    state_dict: loses what they take. dtype: of the rows of embeddings. An embedding whose format has no rows to look up
    leaves its weight in the state dict, in this dtype. device: where the weights wait.
    """
    lost = {}
    for path, layer_format in formats.items():
        layer = network.get_submodule(path)
        parts = {name: state_dict.pop(f"{path}.{name}") for name in part_names(state_dict, path)}
        if knows(layer_format, layer, ops):
            bias = state_dict.pop(f"{path}.bias", None)
            put_layer(network, path, _native(layer, ops, path, layer_format, parts, bias, device))
            continue
        rows = to_rows(parts, layer_format.shape) if isinstance(layer_format, MXFP8) else None
        if rows is not None:
            kept = Float8Linear(layer)
            kept.keep_stored(*rows, device)
            put_layer(network, path, kept)
            continue
        parts.pop(INPUT_SCALE, None)
        if layer_format.has_rows or not isinstance(layer, torch.nn.Embedding):
            keep_stored(network, path, QuantisedWeight(layer_format, parts), device, dtype)
            continue
        state_dict[f"{path}.weight"] = layer_format.dequantise(parts, dtype)
        lost.setdefault(layer_format.name, []).append(path)
    if lost:
        paths = [path for of_format in lost.values() for path in of_format]
        values = {"formats": ", ".join(lost), "layers": len(paths), "first": paths[0]}
        message = (
            "this ComfyUI does not know {formats} for {layers} layers, the first of which is {first}; they take the "
            "memory of floats"
        )
        notify(message.format(**values), "lost_formats", **values)


def part_names(state_dict: Mapping[str, torch.Tensor], path: str) -> list[str]:
    """The names in the layer of what its format stores, all but its bias."""
    names = [name.removeprefix(f"{path}.") for name in state_dict if name.startswith(f"{path}.")]
    return [name for name in names if name != "bias"]


def knows(layer_format: FileFormat, layer: torch.nn.Module, ops) -> bool:
    """Whether ComfyUI's layers can hold the format."""
    if isinstance(layer, torch.nn.Embedding):
        return layer_format.name in QUANT_ALGOS and "_load_from_state_dict" in vars(ops.Embedding)
    return layer_format.name in QUANT_ALGOS


def _native(layer, ops, path, layer_format, parts, bias, device) -> torch.nn.Module:
    """ComfyUI's layer, which reads its weight as from a file."""
    if isinstance(layer, torch.nn.Embedding):
        new = ops.Embedding(layer.num_embeddings, layer.embedding_dim, device="meta")
    else:
        new = ops.Linear(layer.in_features, layer.out_features, bias is not None, device=device)
    more = ((QUANT_TENSOR, format_tensor(layer_format)), ("bias", bias))
    stored = {f"{path}.{name}": tensor for name, tensor in (*parts.items(), *more)}
    errors: list[str] = []
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    new._load_from_state_dict(stored, f"{path}.", {}, False, [], [], errors)
    if errors:
        raise ValueError("; ".join(errors))
    return new.requires_grad_(False)


def is_quantised(layer: torch.nn.Module) -> bool:
    """Whether a layer's weight is stored in another form than the values that it stands for."""
    ours = isinstance(layer, DequantisingLayer | Float8Linear)
    return ours or isinstance(getattr(layer, "weight", None), QuantizedTensor)


def plain_tensors(state_dict: Mapping[str, torch.Tensor], formats: Formats) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that no layer in fewer bits has."""
    taken = {f"{path}.{name}" for path in formats for name in part_names(state_dict, path)}
    return {name: tensor for name, tensor in state_dict.items() if name not in taken}


def stored_tensors(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict for a file, without tensors of ComfyUI's class: newer versions take these apart themselves."""
    stored = {}
    for name, tensor in state_dict.items():
        if isinstance(tensor, QuantizedTensor) and hasattr(tensor, "_layout_params"):
            described = {"format": str(tensor._qdata.dtype).removeprefix("torch.")}
            stored[name] = tensor._qdata
            stored[f"{name}_scale"] = tensor._layout_params["scale"]
            stored[name.removesuffix("weight") + QUANT_TENSOR] = format_tensor(described)
        else:
            stored[name] = tensor
    return stored
