"""GGUF's block types as a weight format: 2 to 8 bits a value, with scales for each 32 to 256 values of a row.

Any program's GGUF types are read (gguf_blocks.py). TYPES are written, with the quantisers of the Python package `gguf`,
an extra. The K and IQ types are not: their only quantisers are those of ggml, in C.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.gguf import BLOCKS, package
from . import gguf_blocks
from .formats import WeightFormat, is_block_matrix

TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4")  # that can be written
# The embedding and the head of the language model: 1.2 GB in 16 bits. BENCHMARKS.md says why not in fewer bits.
TABLES = re.compile(r"language_model\.(model\.embed_tokens|lm_head)\.weight")
TABLE_TYPE = "Q8_0"


@dataclass(frozen=True)
class Gguf(WeightFormat):
    """A weight in blocks of a GGUF type, such as "Q4_0": `weight` [out, bytes of a row], uint8."""

    type: str
    name = "gguf"

    def for_layer(self, name: str, weight: Tensor) -> "Gguf | None":
        if TABLES.fullmatch(name):
            of_layer = Gguf(TABLE_TYPE)
        elif is_block_matrix(name, weight):
            of_layer = self
        else:
            return None
        return of_layer if weight.shape[1] % BLOCKS[of_layer.type][0] == 0 else None

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """Raises InputError if the package `gguf` is not installed."""
        gguf = package()
        values = weight.detach().float().cpu().contiguous().numpy()
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[self.type])
        return {"weight": torch.from_numpy(packed).to(weight.device)}

    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        return gguf_blocks.dequantise(stored["weight"], self.type, dtype)

    def pieces(self, stored, rows):
        return [{"weight": part} for part in stored["weight"].split(rows)]

    def rows(self, stored: Mapping[str, Tensor], ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.dequantise({"weight": F.embedding(ids, stored["weight"])}, dtype)
