"""The interface of a weight format, and the linear layer that holds weights in one."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.operations import linear

# Names of the lists of repeated transformer layers: those of the MMDiT, and those of the ViT and the language model.
_BLOCK_LISTS = ("transformer_blocks", "layers")
# Values that are quantised or dequantised at once, if rows can be apart. The VLM's head has 311 million.
CHUNK = 2**24
WORKING_BYTES = 16 * CHUNK  # that this takes beside the weights; up to twice as many for a matrix in one piece
_IN_A_BLOCK = re.compile(rf"(?:.*\.)?(?:{'|'.join(_BLOCK_LISTS)})\.\d+\..*")


def repeated_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of a network's repeated transformer layers. A VAE has none."""
    return {
        f"{name}.{index}": block
        for name, layers in network.named_modules()
        if name.rpartition(".")[2] in _BLOCK_LISTS
        for index, block in enumerate(layers)
    }


def is_block_matrix(name: str, weight: Tensor) -> bool:
    """Whether a tensor of a state dict is a matrix of a repeated layer. Layer scales, matrices of one row, are not.

    These matrices are 99% of the released MMDiT. The rest costs more precision than it saves memory: in float8 the
    time embedding alone adds more error than all of them (BENCHMARKS.md).
    """
    return weight.ndim == 2 and len(weight) > 1 and _IN_A_BLOCK.fullmatch(name) is not None


@dataclass(frozen=True)
class WeightFormat(ABC):
    """How the weight of one linear layer is stored, read and multiplied.

    name: for users and in files. torch_dtype: the dtype by which a user may ask for the format, if torch has one.
    by_rows: whether rows can be quantised apart.
    Fields of a subclass are what differs between layers, such as the number of bits: JSON values, saved by `metadata`.
    """

    name: ClassVar[str]
    torch_dtype: ClassVar[torch.dtype | None] = None
    by_rows: ClassVar[bool] = False

    def for_layer(self, name: str, weight: Tensor) -> "WeightFormat | None":
        """The format of one layer's weight [out, in]; None if it stays as it is.

        name: of the weight in the network's state dict. weight: may be on the meta device; only its shape is read.
        """
        return self if is_block_matrix(name, weight) else None

    @abstractmethod
    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors that are stored for a weight [out, in], by their names in the layer ("weight" among them)."""

    def quantise_rows(self, rows: Callable[[int, int], Tensor], shape: tuple[int, int]) -> dict[str, Tensor]:
        """As quantise, of a weight of this shape, whose rows are asked for a few at a time where they can be apart.

        rows(start, stop) → [stop - start, in].
        """
        count = max(1, CHUNK // shape[1])
        if not self.by_rows or count >= shape[0]:
            return self.quantise(rows(0, shape[0]))
        whole: dict[str, Tensor] = {}
        for start in range(0, shape[0], count):
            for name, part in self.quantise(rows(start, min(start + count, shape[0]))).items():
                if not start:
                    whole[name] = part.new_empty(shape[0], *part.shape[1:])
                whole[name][start : start + count] = part
        return whole

    @abstractmethod
    def dequantise(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in this dtype, on the device of the stored tensors."""

    def multiply(self, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """x [..., in] → x · weightᵀ + bias [..., out], in the dtype of x. A format with a kernel of its own uses it."""
        pieces = self.pieces(stored, max(1, CHUNK // x.shape[-1]))
        if len(pieces) == 1:
            return linear(x, self.dequantise(stored, x.dtype), bias)
        product = torch.cat([linear(x, self.dequantise(piece, x.dtype)) for piece in pieces], dim=-1)
        return product if bias is None else product + bias

    def pieces(self, stored: Mapping[str, Tensor], rows: int) -> list[Mapping[str, Tensor]]:
        """What is stored for each `rows` rows of a weight, in order. All in one piece if rows cannot be told apart."""
        return [stored]

    def rows(self, stored: Mapping[str, Tensor], ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the weight [rows, columns] by their indices [...] → [..., columns] in this dtype."""
        return F.embedding(ids, self.dequantise(stored, dtype))

    def metadata(self) -> dict:
        """What a file must say about the layer, besides its tensors, for the layer to be read again."""
        return {"format": self.name, **asdict(self)}


# The VLM's matrices outside of the layers: embedding of tokens, head and projector. They are a tenth of all weights.
_OUTSIDE = re.compile(r".*\b(embed_tokens|lm_head|mlp1\.\d+)\.weight")


@dataclass(frozen=True)
class FileFormat(WeightFormat):
    """A format that ComfyUI's quantised files have, under ComfyUI's name and with ComfyUI's tensors for a layer.

    outside: the format of the VLM's matrices outside of the layers; None: this one. BENCHMARKS.md has the errors that
    led to it.
    """

    outside: ClassVar["FileFormat | None"] = None

    def for_layer(self, name, weight):
        """As in WeightFormat, but also the VLM's matrices outside of the layers."""
        if weight.ndim == 2 and _OUTSIDE.fullmatch(name):
            return self.outside or self
        return self if is_block_matrix(name, weight) else None

    def rows(self, stored, ids, dtype):
        """As in WeightFormat; only the rows that are looked up are dequantised."""
        return self.dequantise(self.stored_rows(stored, ids.flatten()), dtype).unflatten(0, ids.shape)

    def pieces(self, stored, rows):
        count = len(stored["weight"])
        if not self.has_rows or count <= rows:
            return [stored]
        return [self.stored_rows(stored, slice(start, start + rows)) for start in range(0, count, rows)]

    @property
    def has_rows(self) -> bool:
        """Whether stored_rows works."""
        return type(self).stored_rows is not FileFormat.stored_rows

    def stored_rows(self, stored: Mapping[str, Tensor], ids: Tensor | slice) -> dict[str, Tensor]:
        """What is stored for some rows [n] of a weight, as for a matrix of these rows [n, in]."""
        raise NotImplementedError(f"{self.name} cannot store an embedding")

    def layouts(self, shape: tuple[int, int]) -> list[dict[str, Tensor]]:
        """What may be stored for a weight [out, in], as tensors on the meta device; the first is what is written."""
        return [self.quantise(torch.empty(shape, device="meta"))]

    def of_shape(self, shape: tuple[int, int]) -> "FileFormat":
        """The format of a layer whose weight has this shape."""
        return self


@dataclass(frozen=True)
class PaddedFormat(FileFormat):
    """A format that pads a weight. shape: [out, in] of the weight itself, which dequantise returns."""

    shape: tuple[int, int] | None = None

    def for_layer(self, name, weight):
        found = super().for_layer(name, weight)
        return found and found.of_shape(tuple(weight.shape))

    def of_shape(self, shape):
        return replace(self, shape=tuple(shape))

    def crop(self, padded: Tensor) -> Tensor:
        """The weight without its padding."""
        return padded if self.shape is None else padded[: self.shape[0], : self.shape[1]]


class QuantisedLinear(nn.Module):
    """A linear layer whose weight is stored in a weight format: its tensors are parameters under the format's names."""

    def __init__(self, weight_format: WeightFormat, stored: Mapping[str, Tensor], bias: Tensor | None):
        super().__init__()
        self.format, self.names = weight_format, tuple(stored)
        for name, tensor in stored.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors of the weight, by the format's names."""
        return {name: getattr(self, name) for name in self.names}

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        return self.format.multiply(x, self.stored, self.bias)


class QuantisedEmbedding(QuantisedLinear):
    """A table of embeddings that is stored in a weight format. dtype: of the rows that it gives."""

    def __init__(self, weight_format: WeightFormat, stored: Mapping[str, Tensor], dtype: torch.dtype):
        super().__init__(weight_format, stored, None)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] → [..., columns]."""
        return self.format.rows(self.stored, ids, self.dtype)


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight as a file stores it. It stands in a state dict in place of the matrix, until hold_quantised."""

    format: WeightFormat
    stored: dict[str, Tensor]

    def to(self, device: str | torch.device) -> "QuantisedWeight":
        """The same on a device."""
        return replace(self, stored={name: tensor.to(device) for name, tensor in self.stored.items()})


def quantise_for(
    device: torch.device, weight_format: WeightFormat, weight: Tensor, dtype: torch.dtype | None = None
) -> QuantisedWeight:
    """Quantise a weight [out, in], which may be mapped from a file, on the device that it is for.

    dtype: that it has before; None: its own. It is copied and quantised a few rows at a time where rows can be apart.
    The bits are those of a CPU: on CUDA its arithmetic is the same (exact.py). For another device (Metal may divide
    less exactly, or not know float8) the weight is quantised on the CPU, and is there.
    """
    device = device if device.type == "cuda" else torch.device("cpu")

    def rows(start: int, stop: int) -> Tensor:
        return weight[start:stop].to(device).to(dtype or weight.dtype)

    return QuantisedWeight(weight_format, weight_format.quantise_rows(rows, weight.shape))


def hold_quantised(network: nn.Module, state: dict[str, Tensor | QuantisedWeight], dtype: torch.dtype):
    """Replace the layers whose weights in the state dict are QuantisedWeights, and those by their tensors, in place.

    dtype: of the rows of embeddings. The new layers are on the meta device, for load_state_dict(state, assign=True).
    """
    for name in [name for name, weight in state.items() if isinstance(weight, QuantisedWeight)]:
        path, weight = name.removesuffix(".weight"), state.pop(name)
        replace_layer(network, path, weight.format, weight.stored, dtype)
        state |= {f"{path}.{key}": tensor for key, tensor in weight.stored.items()}


def network_formats(network: nn.Module, weight_format: WeightFormat) -> dict[str, WeightFormat]:
    """{path: its format} of the layers of a network (on any device) that are to be stored in a weight format."""
    modules, found = dict(network.named_modules()), {}
    for path, layer in modules.items():
        # Without a head the model multiplies by its embedding, which must then be a whole matrix.
        headed = f"{path.removesuffix('model.embed_tokens')}lm_head" in modules
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Embedding) and headed):
            of_layer = weight_format.for_layer(f"{path}.weight", layer.weight)
            if of_layer is not None:
                found[path] = of_layer
    return found


def replace_layer(
    network: nn.Module, path: str, weight_format: WeightFormat, stored: Mapping[str, Tensor], dtype: torch.dtype
):
    """Put a quantised layer in the place of a layer, with parameters like `stored` on the meta device.

    dtype: of an embedding's results; a linear layer's have the dtype of its inputs.
    """
    layer = network.get_submodule(path)
    stored = {name: tensor.to("meta") for name, tensor in stored.items()}
    if isinstance(layer, nn.Embedding):
        new = QuantisedEmbedding(weight_format, stored, dtype)
    else:
        new = QuantisedLinear(weight_format, stored, None if layer.bias is None else layer.bias.to("meta"))
    put_layer(network, path, new)


def put_layer(network: nn.Module, path: str, layer: nn.Module):
    """Put a layer in the place of the one at this path."""
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    if isinstance(owner, nn.ModuleDict):
        owner[name] = layer
    else:
        setattr(owner, name, layer)


def layer_formats(network: nn.Module) -> dict[str, WeightFormat]:
    """{path: format} of a network's quantised layers: with the state dict, all that is needed to save them."""
    return {path: layer.format for path, layer in network.named_modules() if isinstance(layer, QuantisedLinear)}
