"""Writing a checkpoint's tensors into a GGUF file, in block types or as they are (see files.py for what is in it)."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import InputError
from ..quantization import Gguf
from ..quantization.gguf import TYPES
from ..quantization.gguf_blocks import dequantise
from . import gguf
from . import load as weights
from .config import Config
from .files import DTYPES, Stored, open_file

PIECE = 2**24  # bytes that are read at once; a whole number of blocks of any plain type's values
ROW = 2**14  # values that are quantised at once
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Packed:
    """A tensor to write: where it is stored, and its type (of gguf.BLOCKS or gguf.PLAIN) and shape in the new file."""

    stored: Stored
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the new file."""
        return gguf.nbytes(self.type, self.shape)


def plan(
    config: Config, components: Mapping[str, Mapping[str, Stored]], quant: str | None, dtype: torch.dtype | None
) -> dict[str, dict[str, Packed]]:
    """{component: {released name: tensor to write}}. quant: one of TYPES, or None to quantise nothing.

    dtype: of the tensors that are not quantised; None keeps the dtype of each. Raises InputError for another quant.
    """
    if quant is not None and quant not in TYPES:
        raise InputError(f"quant is {quant!r}; in a GGUF file it must be {', '.join(TYPES)}")
    if quant is not None:
        gguf.package()  # raises before any work if it is missing
    weight_format, planned = Gguf(quant) if quant else None, {}
    for component, tensors in components.items():
        names, network = weights.tensor_names(config, component), weights.build_on_meta(config, component)
        parameters = {names.file_name(name): name for name in network.state_dict()}
        # What a VAE has for videos only is of five dimensions, which GGUF does not have.
        planned[component] = {
            name: _planned(names, network, parameters.get(name), name, stored, weight_format, dtype)
            for name, stored in tensors.items()
            if name in parameters or component != "vae"
        }
    return planned


def _planned(names, network, parameter, name, stored, weight_format, dtype) -> Packed:
    """One tensor. parameter: its name in the network, None for one that inference does not read."""
    shape, of_layer = stored.shape, None
    if parameter is not None:
        values = network.get_parameter(parameter)
        owner = network.get_submodule(parameter.rpartition(".")[0])
        if len(shape) > gguf.MAX_DIMS:
            shape = tuple(values.shape)
        if weight_format and shape == values.shape and isinstance(owner, names.packed):
            of_layer = weight_format.for_layer(parameter, values)
    if of_layer is not None:
        return Packed(stored, of_layer.type, shape)
    kind = stored.dtype
    if kind.startswith("F8"):
        kind = "BF16"
    if dtype is not None and kind in DTYPES and DTYPES[kind].is_floating_point:
        kind = NAMES[dtype]
    if kind not in gguf.NUMBERS:
        raise InputError(f"{stored.file}: the tensor {name} is of the type {kind}, which GGUF does not have")
    return Packed(stored, kind, shape)


def write(path: Path, tensors: Mapping[str, Packed], metadata: Mapping[str, str], advance: Callable[[int], None]):
    """Write a GGUF file. tensors: by their names in it. advance: called with the bytes that were written."""
    order = sorted(tensors)
    described = {key: (tensors[key].type, tensors[key].shape) for key in order}
    with path.open("wb") as file, ExitStack() as inputs:
        file.write(gguf.header({**metadata, "general.name": "InternVL-U"}, described))
        opened: dict[Path, BinaryIO] = {}
        for key in order:
            tensor = tensors[key]
            source = tensor.stored.file
            if source not in opened:
                opened[source] = inputs.enter_context(open_file(source))
            whole = tensor.shape != tensor.stored.shape
            piece = tensor.stored.nbytes if whole else piece_of(tensor.stored, PIECE)
            copy(opened[source], file, tensor.stored, _change(tensor), advance, piece)
            file.write(gguf.padding(tensor.nbytes))
        file.flush()
        os.fsync(file.fileno())  # some file systems report only now that the disk is full


def _change(tensor: Packed) -> Callable[[bytes], bytes] | None:
    """What is done with each piece of a tensor; None: nothing."""
    stored = tensor.stored
    if tensor.shape != stored.shape:
        return lambda piece: as_bytes(_last_tap(values_of(piece, stored), stored), stored, tensor.type)
    if tensor.type == stored.dtype:
        return None
    return lambda piece: as_bytes(values_of(piece, stored), stored, tensor.type)


def _last_tap(values: torch.Tensor, stored: Stored) -> torch.Tensor:
    """All that a kernel for videos does to a single picture (docs/model.md, "VAE")."""
    return values.view(stored.shape)[:, :, -1].contiguous()


# Pieces of tensors, also for other kinds of files


def piece_of(stored: Stored, size: int) -> int:
    """At most so many bytes of a tensor, in whole blocks."""
    block = gguf.BLOCKS.get(stored.dtype, (1, 1))[1]
    return max(1, size // block) * block


def copy(
    reader: BinaryIO,
    writer: BinaryIO,
    stored: Stored,
    change: Callable[[bytes], bytes] | None,
    advance: Callable[[int], None],
    size: int,
):
    """Copy a tensor in pieces of so many bytes, each of them changed. advance: called with the bytes written."""
    reader.seek(stored.offset)
    left = stored.nbytes
    while left:
        piece = reader.read(min(size, left))
        if not piece:
            raise InputError(f"{stored.file} became shorter while it was read")
        left -= len(piece)
        if change is not None:
            piece = change(piece)
        writer.write(piece)
        advance(len(piece))


def values_of(piece: bytes, stored: Stored) -> torch.Tensor:
    """The values [n], float32, of some of a tensor's bytes."""
    data = torch.frombuffer(bytearray(piece), dtype=torch.uint8)
    if stored.dtype in gguf.BLOCKS:
        return dequantise(data, stored.dtype, torch.float32)
    return data.view(DTYPES[stored.dtype]).float()


def as_bytes(values: torch.Tensor, stored: Stored, kind: str) -> bytes:
    """Values [n] of a tensor as the bytes of a type. Raises InputError for values beyond its range."""
    if kind in gguf.BLOCKS:
        limit = torch.finfo(torch.float16).max  # of the scales
        if not (values.abs() <= limit).all():
            raise InputError(f"{stored.file}: the tensor {stored.key} has values beyond the range of {kind}")
        row = math.gcd(values.numel(), ROW)  # of the array, not of the matrix: blocks do not depend on each other
        return Gguf(kind).quantise(values.reshape(-1, row))["weight"].numpy().tobytes()
    result = values.to(DTYPES[kind])
    if not torch.equal(result.isfinite(), values.isfinite()):
        raise InputError(f"{stored.file}: the tensor {stored.key} has values beyond the range of {DTYPES[kind]}")
    return result.view(torch.uint8).numpy().tobytes()
