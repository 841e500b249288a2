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

import torch

from .float8 import Float8
from .formats import (
    QuantisedLinear,
    QuantisedWeight,
    WeightFormat,
    hold_quantised,
    layer_formats,
    quantise_network,
    repeated_blocks,
)
from .gguf import Gguf

WEIGHT_FORMATS: dict[str, WeightFormat] = {weight_format.name: weight_format for weight_format in (Float8(),)}

__all__ = [
    "WEIGHT_FORMATS",
    "Gguf",
    "QuantisedLinear",
    "QuantisedWeight",
    "WeightFormat",
    "find_format",
    "hold_quantised",
    "layer_formats",
    "quantise_network",
    "repeated_blocks",
]


def find_format(dtype: torch.dtype | str) -> WeightFormat | None:
    """The weight format that a user names: by its name, such as "fp8", or by torch's dtype; None if it is neither."""
    return next((found for found in WEIGHT_FORMATS.values() if dtype in (found.name, found.torch_dtype)), None)
