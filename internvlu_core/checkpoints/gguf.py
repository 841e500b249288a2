"""The GGUF file format: its header, read and written, and the block types of its tensors.

Source: the specification `docs/gguf.md` of ggml. A file is a header (values by keys, then the tensors' names, sizes and
places) and the tensors. Sizes are written with the columns first, here they are as torch has them. Files of the
versions 2 and 3 with little-endian numbers are read, and the package `gguf` is not needed for it.
"""

import importlib
import math
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import CheckpointError, InputError

ARCHITECTURE, ARCHITECTURE_KEY, ALIGNMENT_KEY = "internvl_u", "general.architecture", "general.alignment"
ENDING = ".gguf"
MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_DIMS = 4  # of a tensor, by ggml
MAX_NAME = 63  # bytes of a tensor's name; ggml's own programs refuse longer ones
MAX_ENTRIES = 2**20  # tensors or values by keys; a damaged file may promise any number of them

# {block type: (values of a block, bytes of a block)}
BLOCKS = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ3_XXS": (256, 98),
    "IQ1_S": (256, 50),
    "IQ4_NL": (32, 18),
    "IQ3_S": (256, 110),
    "IQ2_S": (256, 82),
    "IQ4_XS": (256, 136),
    "IQ1_M": (256, 56),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}
# Types without blocks, by safetensors' names, with their bytes.
PLAIN = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21,
    "IQ2_S": 22, "IQ4_XS": 23, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "IQ1_M": 29, "BF16": 30,
    "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40,
}  # fmt: skip
_NAMES = {number: name for name, number in NUMBERS.items()}

# Types of values by keys: struct's letters by number; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _STRING, _ARRAY = 4, 8, 9


class Entry(NamedTuple):
    """A tensor in a file: its type (of BLOCKS or PLAIN), shape as in torch, and place in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def package():
    """The Python package `gguf`. Raises InputError, which says how to install it, if it is not there."""
    try:
        module = importlib.import_module("gguf")
        importlib.import_module("gguf.quants")
    except ImportError as error:
        raise InputError(f"this needs the Python package gguf ({error}); install it with: pip install gguf") from error
    return module


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a type. Raises ValueError if its rows are not whole blocks."""
    if dtype in PLAIN:
        return math.prod(shape) * PLAIN[dtype]
    values, size = BLOCKS[dtype]
    if not shape or shape[-1] % values:
        raise ValueError(f"rows of {list(shape)} are no whole blocks of {dtype}, which have {values} values")
    return math.prod(shape) // values * size


def read(file: BinaryIO, whole: bool = True) -> tuple[dict, dict[str, Entry]]:
    """(values by keys, {name: tensor}) of a GGUF file's header. Arrays are left out. whole: the tensors must be there.

    Raises ValueError for a file that is none, that is damaged, or shorter than its header says.
    """
    reader = _Reader(file)
    if reader.bytes(4) != MAGIC:
        raise ValueError("no GGUF file")
    version = reader.number("I")
    if version & 0xFFFF == 0:
        raise ValueError("its numbers are big-endian; this program reads little-endian ones")
    if version not in (2, 3):
        raise ValueError(f"version {version} of GGUF; this program reads 2 and 3")
    tensors, values = reader.number("Q"), reader.number("Q")
    if max(tensors, values) > MAX_ENTRIES:
        raise ValueError(f"{tensors} tensors and {values} values are too many")
    found: dict = {}
    for _ in range(values):
        key = reader.text()
        value = reader.value(reader.number("I"))
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    infos = [reader.tensor() for _ in range(tensors)]
    alignment = found.get(ALIGNMENT_KEY, ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"an alignment of {alignment!r}")
    start = -(-file.tell() // alignment) * alignment
    return found, _entries(infos, start, reader.size if whole else math.inf)


def _entries(infos: list[tuple], start: int, size: float) -> dict[str, Entry]:
    """{name: tensor}. start: offset of the first tensor. size: of the file."""
    entries = {}
    for name, shape, number, offset in infos:
        if number not in _NAMES:
            raise ValueError(f"the tensor {name} is of the type {number}, which this program cannot read")
        length = nbytes(_NAMES[number], shape)
        if name in entries:
            raise ValueError(f"the tensor {name} occurs twice")
        if start + offset + length > size:
            raise ValueError(f"the tensor {name} ends after the file, at {start + offset + length} of {size} bytes")
        entries[name] = Entry(_NAMES[number], shape, start + offset, length)
    return entries


class _Reader:
    """Numbers and texts of an open file. Nothing longer than the file is asked for."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)

    def bytes(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError("the file ends within its header")
        return self.file.read(count)

    def number(self, letter: str):
        return struct.unpack(f"<{letter}", self.bytes(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode()

    def value(self, kind: int):
        """A value of a type; None for an array, which is passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"a value of the type {kind}")
        of, count = self.number("I"), self.number("Q")
        if of in _SCALARS:
            self.bytes(count * struct.calcsize(f"<{_SCALARS[of]}"))
        else:
            for _ in range(count):
                self.value(of)
        return None

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, number of its type, offset)"""
        name, count = self.text(), self.number("I")
        if count > MAX_DIMS:
            raise ValueError(f"the tensor {name} has {count} dimensions")
        shape = tuple(self.number("Q") for _ in range(count))[::-1]
        return name, shape, self.number("I"), self.number("Q")


def read_file(path: Path, file: BinaryIO, whole: bool = True) -> tuple[dict, dict[str, Entry]]:
    """As read, of a file for an InternVL-U model. Raises CheckpointError with the path."""
    try:
        values, entries = read(file, whole)
    except (ValueError, OSError, RecursionError, MemoryError, struct.error) as error:
        raise CheckpointError(
            f"{path} is not a whole GGUF file that can be read (cut off while downloading, or another format): {error}"
        ) from error
    architecture = values.get(ARCHITECTURE_KEY)
    if architecture != ARCHITECTURE:
        raise CheckpointError(
            f"{path} is a GGUF file of the architecture {architecture!r}; InternVL-U's is {ARCHITECTURE!r}, and such "
            "files are made by `python -m internvlu_core convert … --quant`"
        )
    return values, entries


def header(values: dict[str, str | int], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The bytes before the first tensor, with the padding. tensors: {name: (type, shape)} in the order of the file.

    Each tensor is followed by `padding` of its bytes.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(values) + 1)]
    for key, value in {ARCHITECTURE_KEY: ARCHITECTURE, **values}.items():
        packed = struct.pack("<II", _UINT32, value) if isinstance(value, int) else None
        parts += [_packed(key), packed or struct.pack("<I", _STRING) + _packed(value)]
    offset = 0
    for name, (dtype, shape) in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [_packed(name), dims, struct.pack("<IQ", NUMBERS[dtype], offset)]
        length = nbytes(dtype, shape)
        offset += length + len(padding(length))
    joined = b"".join(parts)
    return joined + padding(len(joined))


def padding(length: int) -> bytes:
    """Zeros after so many bytes, up to the next place where a tensor may begin."""
    return b"\0" * (-length % ALIGNMENT)


def _packed(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
