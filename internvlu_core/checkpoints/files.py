"""The files of a checkpoint in its formats: the released folder, one file, or three files as ComfyUI users keep them.

A Source gives a checkpoint's text files (JSON, tokenizer) by their names in the released folder, and says in which file
and under which key each tensor is stored. Only safetensors, GGUF and text files are ever opened: a pickle can run code.

One file and three files are safetensors files. Their metadata have "internvl_u.version", "internvl_u.components" (names
of COMPONENTS, separated by spaces) and each text file as "internvl_u/<name>". Keys are the released tensor names: alone
where a file holds one component, with the prefix "<component>." where it holds several. A file with the VAE alone has
the names of Wan's VAE: it is the same network, and ComfyUI's VAELoader knows these. ComfyUI takes none of these files
for another model.

Each of these files may be a GGUF file instead (gguf.py), with the same metadata and texts. Its tensors have their
released names, those of the VAE with the prefix "vae.": longer prefixes would exceed what ggml's programs take. The VAE
has the kernels of single pictures, as GGUF has no tensors of five dimensions.

ComfyUI's ModelSave and CheckpointSave let a model write no metadata; in their files the text files are a tensor.
"""

import json
import os
import re
import stat
import struct
import tempfile
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from . import gguf

COMPONENTS = ("vlm", "generation_decoder", "vae")  # those with weights
FOLDERS = (*COMPONENTS, "scheduler", "processor")  # of a checkpoint in the released layout
MAX_HEADER = 10**8  # bytes; safetensors' own limit
STEMS = {"vlm": "model", "generation_decoder": "model", "vae": "diffusion_pytorch_model"}  # of the released file names

# What describes the networks, without the tokenizer.
CONFIG_FILES = (
    "model_index.json",
    "vlm/config.json",
    "generation_decoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "processor/processor_config.json",
)

VERSION = "1"
VERSION_KEY, COMPONENTS_KEY, TEXT_PREFIX = "internvl_u.version", "internvl_u.components", "internvl_u/"

# The three files, as they lie in ComfyUI's models folder.
SPLIT_FILES = {
    "vlm": "text_encoders/internvl_u_vlm.safetensors",
    "generation_decoder": "diffusion_models/internvl_u_mmdit.safetensors",
    "vae": "vae/internvl_u_vae.safetensors",
}

ENDINGS = (".safetensors", gguf.ENDING)  # of such files

# ComfyUI's prefixes in what its save nodes write, and the tensor there that holds the text files.
SAVED_PREFIXES = {
    "vlm": "cond_stage_model.",
    "generation_decoder": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
SAVED_TEXTS = "internvlu_files"

# Where ComfyUI says that layers are stored in fewer bits (see quantised.py): a layer's tensor, and a file's metadata.
QUANT_TENSOR, QUANT_METADATA = "comfy_quant", "_quantization_metadata"


def file_names(*endings: str) -> re.Pattern:
    """Matches the names that a checkpoint's files with these endings may have, such as "vlm/config.json".

    Names come from strangers' files and from the hub: one that matches stays inside the folder it is written to.
    """
    return re.compile(rf"model_index\.json|({'|'.join(FOLDERS)})/[A-Za-z0-9_][\w.-]*\.({'|'.join(endings)})")


_TEXT_NAME = file_names("json", "txt", "jinja")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its key there, dtype by safetensors' name or block type of GGUF, shape, place in bytes."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def parts(self) -> "tuple[Stored, ...]":
        """What is read for it, one after the other."""
        return (self,)

    def rows(self, start: int, stop: int) -> "Stored":
        """A part of it along the first axis."""
        size = self.nbytes // self.shape[0]
        shape = (stop - start, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + start * size, nbytes=(stop - start) * size)


@dataclass(frozen=True)
class Joined:
    """Stored tensors that are written as one, one after the other along the first axis, in one dtype."""

    parts: tuple[Stored, ...]

    @property
    def dtype(self) -> str:
        """By safetensors' name."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        """Of the whole, as stored."""
        return sum(part.nbytes for part in self.parts)


class Source(ABC):
    """A checkpoint in any of its formats. path: of the folder or file.

    All methods raise CheckpointError, with the file's name, for what is missing or cannot be read.
    """

    path: Path

    @abstractmethod
    def text_names(self) -> list[str]:
        """Names of the text files, such as "vlm/config.json"."""

    @abstractmethod
    def text(self, name: str) -> str:
        """Content of a text file."""

    @abstractmethod
    def tensors(self, component: str) -> dict[str, Stored]:
        """{released name: where it is stored} of a component."""

    def place(self, component: str) -> Path:
        """The folder or file that holds a component's tensors, for error messages."""
        return self.path

    @abstractmethod
    def quantisation(self, component: str) -> dict[str, dict]:
        """{released name of a layer: how it is stored}, as the metadata of a component's files say it."""

    @contextmanager
    def tokenizer_folder(self):
        """A folder with the tokenizer's files, for as long as the context lasts."""
        names = [name for name in self.text_names() if name.startswith("processor/")]
        if not any(name.startswith("processor/tokenizer") for name in names):
            raise CheckpointError(f"{self.path} holds no tokenizer; load the VLM from its own file")
        with tempfile.TemporaryDirectory(prefix="internvlu_") as folder:
            for name in names:
                (Path(folder) / PurePosixPath(name).name).write_bytes(self.text(name).encode())
            yield Path(folder)


def open_source(path: "str | Path | Source") -> Source:
    """The checkpoint at a path, or the one that is given. Raises CheckpointError if there is none."""
    if isinstance(path, Source):
        return path
    try:
        path = Path(path)
    except TypeError:
        raise CheckpointError(f"a checkpoint is a path, not {path!r}") from None
    try:
        there, is_folder = path.exists(), path.is_dir()
    except OSError as error:  # no permission, or no name that a file can have
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be opened: {error.strerror or error}") from error
    if not there:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist")
    if not is_folder:
        return File(path)
    if not (path / "vlm").is_dir() and any(split_files(path, component) for component in SPLIT_FILES):
        return Split(path)
    return Folder(path)


def split_files(folder: Path, component: str) -> list[Path]:
    """Those of a component's files in a folder with three files that are there: with one of ENDINGS, or with each."""
    files = [(folder / SPLIT_FILES[component]).with_suffix(ending) for ending in ENDINGS]
    return [file for file in files if file.exists()]


class Folder(Source):
    """The released (diffusers) layout: a folder for each component."""

    def __init__(self, path: Path):
        self.path = path
        for folder in FOLDERS:
            if not (path / folder).is_dir():
                raise CheckpointError(f"{str(path)!r} is no InternVL-U checkpoint: its folder {folder}/ is missing")

    def text_names(self):
        # Also those that are no regular files, but links that lead nowhere: text says what is wrong with them.
        files = (path.relative_to(self.path) for path in self.path.glob("**/*") if path.exists() and not path.is_dir())
        names = sorted(file.as_posix() for file in files)
        return [name for name in names if _TEXT_NAME.fullmatch(name) and not name.endswith(".safetensors.index.json")]

    def text(self, name):
        return read_text(self.path / name)

    @contextmanager
    def tokenizer_folder(self):
        folder = self.path / "processor"
        # transformers opens what it finds in the folder, and templates in folders of it.
        for path in (*folder.glob("*"), *folder.glob("*/*")):
            if path.exists() and not path.is_dir():
                check_regular(path)
        yield folder

    def place(self, component):
        return self.path / component

    def tensors(self, component):
        tensors = {}
        for file, promised in self._weight_files(component).items():
            _, stored = read_header(file)
            for name in stored if promised is None else promised:
                if name not in stored:
                    raise CheckpointError(f"{file} lacks the tensor {name} that its index promises")
                tensors[name] = stored[name]
            unnamed = sorted(stored.keys() - tensors.keys())
            if unnamed:
                raise CheckpointError(f"{file} has tensors that its index does not name: {first(unnamed)}")
        return tensors

    def quantisation(self, component):
        headers = (read_header(file)[0] for file in self._weight_files(component))
        return {layer: config for metadata in headers for layer, config in quantised_by(metadata).items()}

    def _weight_files(self, component: str) -> dict[Path, list[str] | None]:
        """{safetensors file: names of its tensors by the index, None where there is no index}."""
        folder, stem = self.path / component, STEMS[component]
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if single.exists():
            return {single: None}
        if not index.exists():
            others = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
            found = f"; {', '.join(others)} will not be opened: only safetensors files are" if others else ""
            raise CheckpointError(f"missing file {single} (nor is there {index.name}){found}")
        try:
            weight_map = json.loads(read_text(index))["weight_map"]
            shards: dict[Path, list[str]] = {}
            for name, shard in weight_map.items():
                if Path(shard).name != shard or not shard.endswith(".safetensors"):
                    raise CheckpointError(f"{index}: {shard!r} is no safetensors file of this folder")
                shards.setdefault(folder / shard, []).append(name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{index} is not a readable index: {type(error).__name__}: {error}") from error
        absent = [shard.name for shard in shards if not shard.exists()]
        if absent:
            raise CheckpointError(f"{folder}: shards named by {index.name} are missing: {', '.join(sorted(absent))}")
        return shards


class File(Source):
    """One safetensors or GGUF file with one or more components, from convert or from ComfyUI's save nodes."""

    def __init__(self, path: Path):
        self.path, self.gguf = path, is_gguf(path)
        metadata, self._stored = read_header(path)
        self._quantised = quantised_by(metadata)
        self.components = _components(metadata, self._stored)
        self.saved = VERSION_KEY not in metadata
        if self.saved:
            self._texts = self._saved_texts()
        else:
            if metadata[VERSION_KEY] != VERSION:
                raise CheckpointError(
                    f"{path} has version {metadata[VERSION_KEY]!r} of the file format; this program reads {VERSION}"
                )
            self._texts = {
                key.removeprefix(TEXT_PREFIX): text for key, text in metadata.items() if key.startswith(TEXT_PREFIX)
            }
        if not self.components or not set(self.components) <= set(COMPONENTS):
            raise CheckpointError(f"{path}: {COMPONENTS_KEY} is {' '.join(self.components)!r}")
        outside = sorted(name for name in self._texts if not _TEXT_NAME.fullmatch(name))
        if outside:
            raise CheckpointError(f"{path}: {outside[0]!r} is no name of a checkpoint's text file")
        if self.gguf:
            absent = sorted(key for key in self._stored if gguf_component(key) not in self.components)
            if absent:
                raise CheckpointError(f"{path}: tensors of no component: {first(absent)}")
        elif len(self.components) > 1 and not self.saved:
            prefixes = tuple(f"{component}." for component in self.components)
            unknown = sorted(key for key in self._stored if not key.startswith(prefixes))
            if unknown:
                raise CheckpointError(f"{path}: tensors of no component: {first(unknown)}")

    def _saved_texts(self) -> dict[str, str]:
        keys = [prefix + SAVED_TEXTS for prefix in SAVED_PREFIXES.values() if prefix + SAVED_TEXTS in self._stored]
        if not keys:
            raise CheckpointError(
                f"{self.path} is no InternVL-U file; such files are made by `python -m internvlu_core convert` or by "
                "ModelSave of an InternVL-U model"
            )
        texts = {}
        with open_safetensors(self.path) as handle:
            for key in keys:
                try:
                    texts |= unpack_texts(handle.get_tensor(key))
                except ValueError as error:
                    raise CheckpointError(f"{self.path}: the tensor {key} is not readable: {error}") from error
        return texts

    def text_names(self):
        return sorted(self._texts)

    def text(self, name):
        if name not in self._texts:
            raise CheckpointError(f"{self.path} lacks the text of {name}")
        return self._texts[name]

    def tensors(self, component):
        if component not in self.components:
            raise CheckpointError(f"{self.path} holds no {component}, but {' and '.join(self.components)}")
        tensors = {}
        for key, stored in self._stored.items():
            name = self._released_name(component, key)
            if name is not None and name != SAVED_TEXTS:
                tensors[name] = stored
        return tensors

    def quantisation(self, component):
        named = {self._released_name(component, layer): config for layer, config in self._quantised.items()}
        return {name: config for name, config in named.items() if name is not None}

    def _released_name(self, component: str, key: str) -> str | None:
        """None for another component's key."""
        if self.gguf:
            return from_gguf(key) if gguf_component(key) == component else None
        if self.saved:
            prefix = SAVED_PREFIXES[component]
            if component == "vae" and prefix + WAN_MARK in self._stored:
                return from_wan(key.removeprefix(prefix)) if key.startswith(prefix) else None
        elif len(self.components) > 1 or (component == "vae" and WAN_MARK not in self._stored):
            prefix = f"{component}."
        else:
            return from_wan(key) if component == "vae" else key
        return key.removeprefix(prefix) if key.startswith(prefix) else None


class Split(Source):
    """Three files, each with one component, in ComfyUI's folders."""

    def __init__(self, path: Path):
        self.path = path
        self.files = {}
        for component, name in SPLIT_FILES.items():
            found = split_files(path, component) or [path / name]
            if len(found) > 1:
                raise CheckpointError(f"{path} has both {' and '.join(file.name for file in found)}; take one away")
            self.files[component] = File(found[0])
        self._texts = {}
        for file in self.files.values():
            for name in file.text_names():
                if self._texts.setdefault(name, file.text(name)) != file.text(name):
                    raise CheckpointError(
                        f"{path}: {' and '.join(SPLIT_FILES.values())} are of different checkpoints: {name} differs"
                    )

    def text_names(self):
        return sorted(self._texts)

    def text(self, name):
        if name not in self._texts:
            raise CheckpointError(f"the files in {self.path} lack the text of {name}")
        return self._texts[name]

    def place(self, component):
        return self.files[component].path

    def tensors(self, component):
        return self.files[component].tensors(component)

    def quantisation(self, component):
        return self.files[component].quantisation(component)


def pack_texts(texts: dict[str, str]) -> torch.Tensor:
    """{name: text} as one tensor of bytes, uint8 [n], for files that cannot have metadata."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def unpack_texts(tensor: torch.Tensor) -> dict[str, str]:
    """The texts that pack_texts was given. Raises ValueError if the tensor holds none."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"{tensor.dtype} {list(tensor.shape)}")
    texts = json.loads(tensor.numpy().tobytes())
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("it is no object of strings")
    return texts


# Opening files


def open_file(path: Path) -> BinaryIO:
    """Open a file of a checkpoint to read its bytes. Nothing else opens one but safetensors and transformers, by name,
    after check_regular.

    Only regular files are opened, and links to them: opening or reading a named pipe or a device can wait for ever.
    Links may lead out of the folder, as those of huggingface_hub's cache do. Raises CheckpointError with the path.
    """
    check_regular(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror or error}") from error


def check_regular(path: Path):
    """Raises CheckpointError unless there is a regular file, or a link to one, at the path."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"missing file {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be opened: {error}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        raise CheckpointError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a regular file")


def read_text(path: Path) -> str:
    """A text file of a checkpoint. Raises CheckpointError with the path if it is missing or is no UTF-8."""
    with open_file(path) as file:
        try:
            return file.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not readable text: {error}") from error


def open_safetensors(file: Path):
    """safetensors' own reader. Raises CheckpointError."""
    open_file(file).close()  # it says less of a file that may not be read
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file (cut off while downloading, or another format): {error}"
        ) from error


@contextmanager
def open_tensors(file: Path):
    """A function that maps a Stored tensor of the file into memory; of a block type, its bytes [..., bytes of a row].

    Raises CheckpointError.
    """
    if not is_gguf(file):
        with open_safetensors(file) as handle:
            yield lambda stored: handle.get_tensor(stored.key)
        return
    check_regular(file)
    try:
        mapped = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c"))  # torch wants memory that it may write to
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be opened: {error}") from error
    yield lambda stored: gguf_tensor(mapped[stored.offset : stored.offset + stored.nbytes], stored)


def gguf_tensor(data: torch.Tensor, stored: Stored) -> torch.Tensor:
    """The bytes of a tensor in a GGUF file, uint8, as open_tensors gives them."""
    if stored.dtype in gguf.BLOCKS:
        values, size = gguf.BLOCKS[stored.dtype]
        return data.view(*stored.shape[:-1], stored.shape[-1] // values * size)
    dtype = DTYPES[stored.dtype]
    return (data.clone() if data.storage_offset() % dtype.itemsize else data).view(dtype).view(stored.shape)


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
if hasattr(torch, "float8_e8m0fnu"):  # since torch 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu


def is_gguf(file: Path) -> bool:
    """Whether a file is to be read as GGUF, by the ending of its name."""
    return file.suffix.lower() == gguf.ENDING


def read_header(file: Path) -> tuple[dict[str, str], dict[str, Stored]]:
    """Metadata, and {key: tensor}, of a safetensors or GGUF file that is sound and whole. Raises CheckpointError."""
    if is_gguf(file):
        return _parse_gguf(file)
    with open_safetensors(file):
        return _parse_header(file)


def _parse_gguf(file: Path, whole: bool = True) -> tuple[dict[str, str], dict[str, Stored]]:
    with open_file(file) as raw:
        values, entries = gguf.read_file(file, raw, whole)
    metadata = {key: value for key, value in values.items() if isinstance(value, str)}
    return metadata, {name: Stored(file, name, *entries[name]) for name in sorted(entries)}


def _parse_header(file: Path) -> tuple[dict[str, str], dict[str, Stored]]:
    with open_file(file) as raw:
        (size,) = struct.unpack("<Q", raw.read(8))
        if size > MAX_HEADER:
            raise ValueError("no safetensors file")
        header = json.loads(raw.read(size))
    metadata = header.pop("__metadata__", None) or {}
    stored = {}
    for key in sorted(header):
        start, end = header[key]["data_offsets"]
        stored[key] = Stored(
            file, key, header[key]["dtype"], tuple(header[key]["shape"]), 8 + size + start, end - start
        )
    return metadata, stored


def quantised_by(metadata: dict[str, str]) -> dict[str, dict]:
    """{layer: how it is stored} as a file's metadata say it; {} if they do not, or not readably."""
    try:
        layers = json.loads(metadata.get(QUANT_METADATA, "{}")).get("layers", {})
        return {layer: dict(config) for layer, config in layers.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def components_of(file: Path) -> tuple[str, ...]:
    """The components that a file's header names, even if the file is cut off; () if it is no InternVL-U file."""
    try:
        metadata, stored = _parse_gguf(file, whole=False) if is_gguf(file) else _parse_header(file)
        return _components(metadata, stored)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def _components(metadata: dict[str, str], stored: dict[str, Stored]) -> tuple[str, ...]:
    if VERSION_KEY in metadata:
        return tuple(metadata.get(COMPONENTS_KEY, "").split())
    if not any(prefix + SAVED_TEXTS in stored for prefix in SAVED_PREFIXES.values()):
        return ()
    return tuple(c for c in COMPONENTS if any(key.startswith(SAVED_PREFIXES[c]) for key in stored))


# Names in GGUF files

_MMDIT_NAMES = re.compile(r"decoder\.|decoder_projector\.|encoder_padding_token$")


def gguf_component(key: str) -> str:
    """The component that a tensor in a GGUF file belongs to."""
    if key.startswith("vae."):
        return "vae"
    return "generation_decoder" if _MMDIT_NAMES.match(key) else "vlm"


def to_gguf(component: str, name: str) -> str:
    """A released tensor name of a component → its name in a GGUF file."""
    return f"vae.{name}" if component == "vae" else name


def from_gguf(key: str) -> str:
    """The reverse of to_gguf."""
    return key.removeprefix("vae.")


# Wan's names of the VAE, for the one shape that ComfyUI's VAELoader builds (convert.WAN_SHAPE)

WAN_MARK = "decoder.head.0.gamma"  # a file with this key has Wan's names


def _wan_places() -> dict[str, str]:
    """{path of a layer by its released name: its path by Wan's name}."""
    places = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    for side in ("encoder", "decoder"):
        places |= {
            f"{side}.conv_in": f"{side}.conv1",
            f"{side}.mid_block.resnets.0": f"{side}.middle.0",
            f"{side}.mid_block.attentions.0": f"{side}.middle.1",
            f"{side}.mid_block.resnets.1": f"{side}.middle.2",
            f"{side}.norm_out": f"{side}.head.0",
            f"{side}.conv_out": f"{side}.head.2",
        }
    places |= {f"encoder.down_blocks.{i}": f"encoder.downsamples.{i}" for i in range(11)}
    for block in range(4):
        places |= {f"decoder.up_blocks.{block}.resnets.{i}": f"decoder.upsamples.{4 * block + i}" for i in range(3)}
        places |= {f"decoder.up_blocks.{block}.upsamplers.0": f"decoder.upsamples.{4 * block + 3}"}
    return places


_PLACES = _wan_places()
_LEAVES = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def to_wan(name: str) -> str:
    """A released tensor name of the VAE → Wan's name; any other name stays as it is."""
    return _translate(name, _PLACES, _LEAVES)


def from_wan(key: str) -> str:
    """The reverse of to_wan."""
    return _translate(key, {wan: name for name, wan in _PLACES.items()}, {wan: name for name, wan in _LEAVES.items()})


def _translate(name: str, places: dict[str, str], leaves: dict[str, str]) -> str:
    alternatives = ("|".join(map(re.escape, table)) for table in (places, leaves))
    match = re.fullmatch(r"({})\.(?:({})\.)?(.+)".format(*alternatives), name)
    if not match:
        return name
    place, leaf, rest = match.groups()
    return ".".join(filter(None, (places[place], leaves.get(leaf), rest)))


def first(items: list[str], limit: int = 8) -> str:
    """The first `limit` items as text, and how many more there are, for error messages."""
    return ", ".join(items[:limit]) + (f" … and {len(items) - limit} more" if len(items) > limit else "")
