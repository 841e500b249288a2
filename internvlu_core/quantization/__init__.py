"""Weight formats with fewer than 16 bits a value, a file each, behind one interface (formats.WeightFormat).

To add a weight format:
1. Write quantization/NAME.py with a subclass of WeightFormat. It is a frozen dataclass: its fields describe one layer.
2. `quantise` turns a matrix [out, in] into the tensors that are stored instead of it, by their names in the layer.
3. `dequantise` turns these tensors back into the matrix, whenever the layer is used. `multiply` may do without.
4. `for_layer` says which layers are stored in the format, and in which variant of it. The others stay in 16 bits.
5. Add an instance to WEIGHT_FORMATS below: the loader, `--dtype` and tests/core/test_quantization.py find it there.

A format that only files have (gguf.py) is not in WEIGHT_FORMATS. checkpoints/load.py gives its weights as
QuantisedWeights, which keep their form in memory.
"""

from dataclasses import fields

import torch

from .float8 import Float8
from .formats import (
    FileFormat,
    QuantisedEmbedding,
    QuantisedLinear,
    QuantisedWeight,
    WeightFormat,
    hold_quantised,
    layer_formats,
    network_formats,
    put_layer,
    quantise_for,
    repeated_blocks,
    replace_layer,
)
from .gguf import Gguf
from .int8 import Int8
from .mxfp8 import MXFP8
from .nvfp4 import NVFP4
from .rotated4 import Grouped4, Rotated4
from .scaled_float8 import ScaledFloat8, ScaledFloat8Range

_WRITTEN = (Float8(), ScaledFloat8(), Int8(), MXFP8(), NVFP4())
WEIGHT_FORMATS: dict[str, WeightFormat] = {weight_format.name: weight_format for weight_format in _WRITTEN}
# Those of ComfyUI's files, by ComfyUI's names. The last three are read but not offered to write.
_READ = (ScaledFloat8(), Int8(), MXFP8(), NVFP4(), ScaledFloat8Range(), Rotated4(), Grouped4())
FILE_FORMATS: dict[str, FileFormat] = {weight_format.name: weight_format for weight_format in _READ}
# What a user calls those to write.
QUANTS: dict[str, FileFormat] = {"fp8": ScaledFloat8(), "int8": Int8(), "mxfp8": MXFP8(), "nvfp4": NVFP4()}

__all__ = [
    "FILE_FORMATS",
    "QUANTS",
    "WEIGHT_FORMATS",
    "FileFormat",
    "Gguf",
    "QuantisedEmbedding",
    "QuantisedLinear",
    "QuantisedWeight",
    "WeightFormat",
    "file_format",
    "find_format",
    "hold_quantised",
    "layer_formats",
    "network_formats",
    "put_layer",
    "quantise_for",
    "repeated_blocks",
    "replace_layer",
]


def find_format(dtype: torch.dtype | str | WeightFormat | None) -> WeightFormat | None:
    """The weight format that a user means: itself, its name, such as "fp8", or torch's dtype; None if it is none."""
    if isinstance(dtype, WeightFormat):
        return dtype
    if dtype is None:
        return None
    return next((found for found in WEIGHT_FORMATS.values() if dtype in (found.name, found.torch_dtype)), None)


def file_format(metadata: dict) -> FileFormat:
    """The format of a layer by what a file says of it. Raises ValueError with the name of a format that is unknown."""
    name = metadata.get("format")
    if name not in FILE_FORMATS:
        raise ValueError(f"the format {name!r} is unknown; known are {', '.join(FILE_FORMATS)}")
    values = metadata | (metadata["params"] if isinstance(metadata.get("params"), dict) else {})
    known = type(FILE_FORMATS[name])
    return known(**{field.name: values[field.name] for field in fields(known) if field.name in values})
