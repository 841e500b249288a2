"""Which layers of a checkpoint are stored in fewer bits, and how: ComfyUI's three ways to say so, read alike.

1. A tensor `<layer>.comfy_quant` of bytes, JSON such as {"format": "nvfp4"} (ComfyUI since 2026).
2. "_quantization_metadata" in the file's metadata, JSON: {"layers": {"<layer>": {"format": "float8_e4m3fn"}}}
   (ComfyUI of late 2025). Newer versions read it too.
3. A tensor `scaled_fp8`, and `<layer>.scale_weight` beside each `<layer>.weight` in float8 ("scaled fp8", before both).

convert writes the first two, so that one file serves all versions that know its formats.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..errors import CheckpointError
from ..quantization import FileFormat, file_format
from .files import QUANT_TENSOR, Source, Stored, open_file

OLD_MARK = "scaled_fp8"
OLD_PARTS = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
INPUT_SCALE = "input_scale"  # how ComfyUI may round a layer's inputs; the core does not round them
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


@dataclass(frozen=True)
class StoredLayer:
    """A layer in fewer bits. parts: {name in the layer, such as "weight_scale": where it is stored}."""

    format: FileFormat
    parts: dict[str, Stored]


def split_layers(source: Source, component: str) -> tuple[dict[str, Stored], dict[str, StoredLayer]]:
    """({released name: tensor as it is}, {released name of a layer: how it is stored}) of a component.

    Raises CheckpointError for a layer in a format that is unknown, with the names of both, and for what cannot be read.
    """
    stored = source.tensors(component)
    configs = source.quantisation(component)
    for name, tensor in stored.items():
        path, _, leaf = name.rpartition(".")
        if leaf == QUANT_TENSOR:
            configs[path] = _read_config(tensor, name)
        elif leaf in ("scale_weight", "weight_scale") and f"{path}.{QUANT_TENSOR}" not in stored:
            weight = stored.get(f"{path}.weight")
            if weight is not None and weight.dtype in FLOAT8:
                configs.setdefault(path, {"format": FLOAT8[weight.dtype]})
    plain, parts = {}, {path: {} for path in configs}
    for name, tensor in stored.items():
        path, _, leaf = name.rpartition(".")
        leaf = OLD_PARTS.get(leaf, leaf)
        if path in parts and (leaf.startswith("weight") or leaf in (INPUT_SCALE, "pre_quant_scale")):
            parts[path][leaf] = tensor
        elif leaf not in (QUANT_TENSOR, OLD_MARK):
            plain[name] = tensor
    place = source.place(component)
    return plain, {path: _layer(place, path, config, parts[path]) for path, config in configs.items()}


def _read_config(tensor: Stored, name: str) -> dict:
    with open_file(tensor.file) as file:
        file.seek(tensor.offset)
        try:
            config = json.loads(file.read(min(tensor.nbytes, 10_000)))
            if isinstance(config, dict):
                return config
        except (ValueError, RecursionError):
            pass
    raise CheckpointError(f"{tensor.file}: the tensor {name} does not say a layer's format")


def _layer(place, path: str, config: dict, parts: dict[str, Stored]) -> StoredLayer:
    if "pre_quant_scale" in parts:
        raise CheckpointError(f"{place}: the layer {path} scales its inputs (pre_quant_scale), which is not supported")
    try:
        return StoredLayer(file_format(config), parts)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{place}: the layer {path} cannot be read: {error}") from error


def fits(layer: StoredLayer, shape: Iterable[int], on_meta: dict[str, torch.Tensor]) -> bool:
    """Whether a layer's parts, given on the meta device, are those of a weight [out, in] of this shape."""
    if len(shape) != 2:
        return False
    found = {name: tensor for name, tensor in on_meta.items() if name != INPUT_SCALE}
    return any(
        found.keys() == layout.keys() and all(_alike(found[name], tensor) for name, tensor in layout.items())
        for layout in layer.format.layouts(tuple(shape))
    )


def _alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """One number may have any shape, and a scale of floats any of their dtypes but those of 8 bits."""
    same_shape = found.shape == wanted.shape or found.numel() == wanted.numel() == 1
    wide = all(tensor.is_floating_point() and tensor.dtype.itemsize > 1 for tensor in (found, wanted))
    return same_shape and (wide or found.dtype == wanted.dtype)
