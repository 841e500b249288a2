"""Conversion of a checkpoint between its formats: the released folder, one file, three files (see files.py).

Layers can be stored in fewer bits on the way (quant), one after the other, and those that are can be written as floats.

Tensors are copied in small pieces, without being interpreted: memory does not grow with the model, and tensors of any
type, also those that inference never reads, are copied bit by bit. safetensors' own save_file does not replace this: it
takes all tensors at once, and can neither report progress nor be cancelled. For 0.8 GB of float32 this writer grows the
process by 0.03 GB, save_file (of safetensors 0.8) by 0.8 GB; converting to bfloat16, by 0.1 and 1.2 GB.
"""

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..errors import InputError
from ..quantization import QUANTS, FileFormat, network_formats
from ..quantization.gguf import TYPES
from . import convert_gguf as packing
from . import files as source
from . import gguf
from . import load as weights
from .config import RELEASED_VAE, Config, VAEConfig
from .files import COMPONENTS, QUANT_METADATA, QUANT_TENSOR, SPLIT_FILES, STEMS, Joined, Stored
from .quantised import INPUT_SCALE, StoredLayer, split_layers

CHECKPOINT_FORMATS = ("split", "single", "folder")  # that a checkpoint can be written in
SINGLE_FILE = "internvl_u.safetensors"
PIECE = 2**24  # bytes that are read at once
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

# The VAE that ComfyUI's VAELoader builds from Wan's names: that of the released checkpoint, of any width.
WAN_SHAPE = RELEASED_VAE.latent_channels, RELEASED_VAE.multipliers, RELEASED_VAE.num_res_blocks
WAN_CONFIG = {
    "z_dim": RELEASED_VAE.latent_channels,
    "dim_mult": list(RELEASED_VAE.multipliers),
    "num_res_blocks": RELEASED_VAE.num_res_blocks,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}

OnBytes = Callable[[int, int], None]  # (bytes written, bytes in all)


@dataclass(frozen=True)
class Layer:
    """A layer's weight on its way to another form. stored: as it is; format: to be; None for a float of this dtype."""

    stored: Stored | StoredLayer
    shape: tuple[int, int]
    format: FileFormat | None
    dtype: torch.dtype

    @property
    def place(self) -> str:
        """Where its weight is, for error messages."""
        weight = self.stored if isinstance(self.stored, Stored) else self.stored.parts["weight"]
        return f"{weight.file}: the tensor {weight.key}"

    def compute(self) -> dict[str, torch.Tensor]:
        """The tensors to write, by their names in the layer. Raises InputError for values that cannot be written."""
        if self.format is None:
            weight = self._rows(0, self.shape[0]).to(self.dtype)
            if not weight.isfinite().all():
                raise InputError(f"{self.place} has values beyond the range of {self.dtype}")
            return {"weight": weight}
        if isinstance(self.stored, Stored):
            return self.format.quantise_rows(self._rows, self.shape)
        return self.format.quantise(self._rows(0, self.shape[0]))

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of the weight as float32."""
        if isinstance(self.stored, Stored):
            weight = _read_rows(self.stored, start, stop - start).float()
            if not weight.isfinite().all():  # one would spoil all that share a scale with it
                raise InputError(f"{self.place} has values that are not finite")
            return weight
        parts = {name: _read_rows(part, 0) for name, part in self.stored.parts.items() if name != INPUT_SCALE}
        return self.stored.format.of_shape(self.shape).dequantise(parts, torch.float32)[start:stop]


@dataclass(frozen=True)
class Computed:
    """A tensor that is not copied: a part of a layer, or bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    layer: Layer | None
    part: str = ""
    content: bytes = b""


@dataclass(frozen=True)
class Output:
    """A file to write: {key: tensor} with metadata as safetensors, packed: as GGUF, or text."""

    path: Path
    tensors: dict[str, Stored | Joined | Computed]
    metadata: dict[str, str]
    text: str | None = None
    packed: dict[str, packing.Packed] | None = None

    def size(self, dtype: torch.dtype | None) -> int:
        """Bytes of its tensors."""
        if self.packed is not None:
            return sum(tensor.nbytes for tensor in self.packed.values())
        return sum(_size(tensor, dtype) for tensor in self.tensors.values())


def convert(
    checkpoint: str | Path,
    target: str | Path,
    checkpoint_format: str = "split",
    *,
    dtype: torch.dtype | None = None,
    quant: str | None = None,
    force: bool = False,
    progress: OnBytes | None = None,
) -> list[Path]:
    """Write a checkpoint in another format. Returns the files that were written.

    checkpoint_format: "split" writes SPLIT_FILES into the folder target, for example ComfyUI's models folder; "single"
    writes one file, target or SINGLE_FILE in the folder target; "folder" writes the released layout into target.
    dtype: of all floating-point tensors that are not in fewer bits; None keeps the dtype of each. quant: stores large
    matrices in fewer bits: one of QUANTS (docs/quantisation.md), also by ComfyUI's name, or one of
    quantization.gguf.TYPES, which makes the file, or those of VLM and MMDiT, GGUF files. So does a target that ends in
    .gguf, with "single". Layers that are in fewer bits already become floats of the dtype or bfloat16 first, if there
    is a dtype or quant, or if they are GGUF's and are written into other files. force: overwrite files that exist.
    progress: may raise to cancel. After that, as after an error, no file is left behind.
    Raises CheckpointError for a checkpoint that cannot be read, InputError for a target that cannot be written.
    """
    target, origin = Path(target), source.open_source(checkpoint)
    config = Config.read(origin)
    with origin.tokenizer_folder():  # raises if there is none
        pass
    if quant in TYPES or target.suffix.lower() == gguf.ENDING:
        components = {component: _floats(origin, config, component) for component in COMPONENTS}
        packed = packing.plan(config, components, quant, dtype)
        outputs = _plan_gguf(config.texts, components, packed, target, checkpoint_format)
    else:
        components = {c: _tensors(origin, config, c, dtype, _format(quant)) for c in COMPONENTS}
        outputs = _plan(config.texts, components, target, checkpoint_format)
    return write_files(outputs, dtype, force=force, progress=progress)


def write_files(
    outputs: list[Output], dtype: torch.dtype | None, *, force: bool, progress: OnBytes | None
) -> list[Path]:
    """Write all outputs, or none if there is an error. Arguments, result and errors are those of convert."""
    for output in outputs:
        if output.path.exists() and not force:
            raise InputError(f"{output.path} exists; --force overwrites it")
    return _write(outputs, dtype, progress or (lambda done, total: None))


def _format(quant: str | None) -> FileFormat | None:
    known = QUANTS | {weight_format.name: weight_format for weight_format in QUANTS.values()}
    if quant is not None and quant not in known:
        raise InputError(f"quant is {quant!r}; it must be one of {', '.join((*QUANTS, *TYPES))}")
    return None if quant is None else known[quant]


def _floats(origin: source.Source, config: Config, component: str) -> dict[str, Stored]:
    """{released name: tensor} of a component that has no layers in one of ComfyUI's forms. Raises InputError."""
    stored = weights.check_component(origin, config, component)
    if split_layers(origin, component)[1]:
        raise InputError(
            f"{origin.path} has layers in one of ComfyUI's formats, which cannot go into a GGUF file; first make a "
            "safetensors file in 16 bits of it, with --dtype bf16 (dtype=torch.bfloat16)"
        )
    return stored


def _tensors(
    origin: source.Source, config: Config, component: str, dtype: torch.dtype | None, to: FileFormat | None
) -> dict[str, Stored | Computed]:
    """{released name: tensor} of a component as they are to be written, layers in fewer bits included."""
    weights.check_component(origin, config, component)
    plain, layers = split_layers(origin, component)
    network, names = weights.build_on_meta(config, component), weights.tensor_names(config, component)
    shapes = {names.file_name(name).removesuffix(".weight"): t.shape for name, t in network.state_dict().items()}
    wanted = network_formats(network, to) if to else {}
    wanted = {names.file_name(f"{path}.weight").removesuffix(".weight"): of_layer for path, of_layer in wanted.items()}
    tensors = {name: tensor for name, tensor in plain.items() if name.removesuffix(".weight") not in wanted}
    for path in sorted(layers.keys() | wanted.keys()):
        stored = layers.get(path) or plain[f"{path}.weight"]
        if isinstance(stored, StoredLayer) and not dtype and not to:
            parts, of_layer = stored.parts, stored.format
        else:
            of_layer = wanted.get(path)
            parts = _computed(Layer(stored, tuple(shapes[path]), of_layer, dtype or torch.bfloat16))
        tensors |= {f"{path}.{name}": tensor for name, tensor in parts.items()}
        if of_layer:
            tensors[f"{path}.{QUANT_TENSOR}"] = _text_tensor(json.dumps(of_layer.metadata()))
    return tensors


def _computed(layer: Layer) -> dict[str, Computed]:
    if layer.format is None:
        parts = {"weight": torch.empty(layer.shape, dtype=layer.dtype, device="meta")}
    else:
        parts = layer.format.layouts(layer.shape)[0]
    return {name: Computed(packing.NAMES[t.dtype], tuple(t.shape), t.nbytes, layer, name) for name, t in parts.items()}


def _text_tensor(text: str) -> Computed:
    content = text.encode()
    return Computed("U8", (len(content),), len(content), None, content=content)


def _read_rows(tensor: Stored, start: int, count: int | None = None) -> torch.Tensor:
    """Rows of a stored tensor, from the first on; all of one without rows."""
    size = tensor.nbytes // tensor.shape[0] if tensor.shape else tensor.nbytes
    rows = min(count or tensor.shape[0], tensor.shape[0] - start) if tensor.shape else 1
    with source.open_file(tensor.file) as file:
        file.seek(tensor.offset + start * size)
        content = bytearray(rows * size)
        if file.readinto(content) < len(content):
            raise InputError(f"{tensor.file} became shorter while it was read")
    if tensor.dtype in gguf.BLOCKS:
        return packing.values_of(bytes(content), tensor).view(rows, *tensor.shape[1:])
    values = torch.frombuffer(content, dtype=torch.uint8).view(source.DTYPES[tensor.dtype])
    return values.view(rows, *tensor.shape[1:]) if tensor.shape else values[0]


def _plan(
    texts: dict[str, str], components: dict[str, dict[str, Stored | Computed]], target: Path, checkpoint_format: str
) -> list[Output]:
    if checkpoint_format == "folder":
        outputs = [
            Output(target / name / f"{STEMS[name]}.safetensors", tensors, {"format": "pt", **_described(tensors)})
            for name, tensors in components.items()
        ]
        return outputs + [Output(target / name, {}, {}, text) for name, text in texts.items()]
    if checkpoint_format == "single":
        if target.is_dir():
            target = target / SINGLE_FILE
        if target.suffix != ".safetensors":
            raise InputError(f"{target}: the file's name must end in .safetensors")
        tensors = {
            f"{component}.{name}": tensor for component in COMPONENTS for name, tensor in components[component].items()
        }
        return [Output(target, tensors, _metadata(COMPONENTS, texts) | _described(tensors))]
    if checkpoint_format != "split":
        raise InputError(f"checkpoint_format is {checkpoint_format!r}; it must be {' or '.join(CHECKPOINT_FORMATS)}")
    if target.is_file():
        raise InputError(f"{target} is a file; three files need a folder")
    outputs = []
    for component in COMPONENTS:
        tensors = components[component]
        if component == "vae":
            native = is_wan(texts["vae/config.json"], tensors)
            tensors = {source.to_wan(name) if native else f"vae.{name}": tensor for name, tensor in tensors.items()}
        metadata = _metadata([component], _own_texts(component, texts)) | _described(tensors)
        outputs.append(Output(target / SPLIT_FILES[component], tensors, metadata))
    return outputs


def _described(tensors: dict[str, Stored | Computed]) -> dict[str, str]:
    """What ComfyUI 0.3 asks a file's metadata: which of its layers are stored in fewer bits, and how."""
    layers = {
        key.removesuffix(f".{QUANT_TENSOR}"): json.loads(tensor.content)
        for key, tensor in tensors.items()
        if key.endswith(f".{QUANT_TENSOR}") and isinstance(tensor, Computed)
    }
    return {QUANT_METADATA: json.dumps({"format_version": "1.0", "layers": layers})} if layers else {}


def _own_texts(component: str, texts: dict[str, str]) -> dict[str, str]:
    """The texts that go into a component's own file: only the VLM's has the tokenizer."""
    return texts if component == "vlm" else {name: texts[name] for name in source.CONFIG_FILES if name in texts}


def _plan_gguf(
    texts: dict[str, str],
    components: dict[str, dict[str, Stored]],
    packed: dict[str, dict[str, packing.Packed]],
    target: Path,
    checkpoint_format: str,
) -> list[Output]:
    """One GGUF file; or those of VLM and MMDiT, and the VAE as the safetensors file that ComfyUI's VAELoader reads."""
    packed = {
        component: {source.to_gguf(component, name): tensor for name, tensor in tensors.items()}
        for component, tensors in packed.items()
    }
    if checkpoint_format == "single":
        if target.is_dir():
            target = target / Path(SINGLE_FILE).with_suffix(gguf.ENDING)
        if target.suffix.lower() != gguf.ENDING:
            raise InputError(f"{target}: the name of a GGUF file must end in {gguf.ENDING}")
        together = {key: tensor for tensors in packed.values() for key, tensor in tensors.items()}
        return [Output(target, {}, _metadata(COMPONENTS, texts), packed=together)]
    if checkpoint_format != "split" or target.suffix.lower() == gguf.ENDING:
        raise InputError(
            f"{target} cannot be made in the format {checkpoint_format!r}: GGUF is for one file, whose name ends in "
            f'{gguf.ENDING} ("single"), or for three files in a folder ("split")'
        )
    outputs = _plan(texts, components, target, checkpoint_format)
    return [
        output
        if component == "vae"
        else Output(output.path.with_suffix(gguf.ENDING), {}, output.metadata, packed=packed[component])
        for component, output in zip(COMPONENTS, outputs, strict=True)
    ]


def is_wan(config: str, tensors: dict[str, Stored]) -> bool:
    """Whether ComfyUI's VAELoader can build this VAE: it has the shape of Wan's VAE, and all of its tensors for video.

    config: text of vae/config.json. tensors: by released names.
    """
    values = json.loads(config)
    # ComfyUI's CheckpointSave writes the tensors of the network that is loaded here: its kernels have no axis of time.
    dimensions = {"conv1.weight": 5, "norm1.gamma": 4}
    return all(values.get(key, default) == default for key, default in WAN_CONFIG.items()) and all(
        len(tensor.shape) == count
        for name, tensor in tensors.items()
        for ending, count in dimensions.items()
        if name.endswith(ending)
    )


def as_wan(config: VAEConfig, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The state dict of a VAE network under the names and in the shapes of ComfyUI's Wan VAE; None for another shape.

    The taps in time that the network does not have, and the layers between frames, are zeros: one picture does not use
    them (docs/model.md, "VAE").
    """
    if (config.latent_channels, config.multipliers, config.num_res_blocks) != WAN_SHAPE:
        return None
    wan = {}
    for name, tensor in state_dict.items():
        flat = "resample" in name or "attentions" in name
        if tensor.ndim == 4 and not flat:
            earlier = [torch.zeros_like(tensor)] * (tensor.shape[-1] - 1)
            tensor = torch.stack([*earlier, tensor], dim=2)
        elif name.endswith(".gamma") and not flat:
            tensor = tensor[..., None]
        wan[source.to_wan(name)] = tensor
    between_frames = {"encoder.downsamples.5": 1, "encoder.downsamples.8": 1}
    between_frames |= {"decoder.upsamples.3": 2, "decoder.upsamples.7": 2}  # one frame becomes two
    for place, factor in between_frames.items():
        like = wan[f"{place}.resample.1.weight"]
        size = like.shape[1]
        wan[f"{place}.time_conv.weight"] = like.new_zeros(factor * size, size, 3, 1, 1)
        wan[f"{place}.time_conv.bias"] = like.new_zeros(factor * size)
    return wan


def _metadata(components, texts: dict[str, str]) -> dict[str, str]:
    return {
        "format": "pt",  # what transformers and others look for
        source.VERSION_KEY: source.VERSION,
        source.COMPONENTS_KEY: " ".join(components),
        **{source.TEXT_PREFIX + name: text for name, text in texts.items()},
    }


def _write(outputs: list[Output], dtype: torch.dtype | None, progress: OnBytes) -> list[Path]:
    """Write all files under temporary names, and rename them once all are complete."""
    total = sum(output.size(dtype) for output in outputs)
    done = 0

    def advance(count: int):
        nonlocal done
        done += count
        progress(done, total)

    made: list[Path] = []
    current = outputs[0].path
    try:
        with ExitStack() as leftovers:
            for current in dict.fromkeys(output.path.parent for output in outputs):
                made += _make_folder(current)
            _check_space(outputs[0].path.parent, total)
            for output in outputs:
                current, unfinished = output.path, output.path.with_name(f".{output.path.name}.partial")
                leftovers.callback(unfinished.unlink, missing_ok=True)
                if output.text is not None:
                    unfinished.write_bytes(output.text.encode())
                elif output.packed is not None:
                    packing.write(unfinished, output.packed, output.metadata, advance)
                else:
                    _write_tensors(unfinished, output, dtype, advance)
            for output in outputs:
                current = output.path
                output.path.with_name(f".{output.path.name}.partial").replace(output.path)
    except BaseException as error:
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space is left on its disk" if full else error.strerror or str(error)
            raise InputError(f"cannot write {current}: {reason}") from error
        raise
    return [output.path for output in outputs]


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents. Returns those that did not exist, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _check_space(folder: Path, needed: int):
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder} has {free / 1e9:.1f} GB of disk space left; {needed / 1e9:.1f} GB are needed")


def _write_tensors(path: Path, output: Output, dtype: torch.dtype | None, advance: Callable[[int], None]):
    # The widest types first, so that every tensor is aligned.
    order = sorted(output.tensors, key=lambda key: (-_width(output.tensors[key], dtype), key))
    header, offset = {"__metadata__": output.metadata}, 0
    for key in order:
        tensor = output.tensors[key]
        size = _size(tensor, dtype)
        header[key] = {
            "dtype": _type(tensor, dtype),
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)
    with path.open("wb") as file, ExitStack() as inputs:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        opened, layers = {}, {}
        for key in order:
            tensor = output.tensors[key]
            file.seek(start + header[key]["data_offsets"][0])
            if isinstance(tensor, Computed):
                if tensor.layer is None:
                    file.write(tensor.content)
                    advance(tensor.nbytes)
                else:
                    places = layers.setdefault(id(tensor.layer), (tensor.layer, {}))[1]
                    places[tensor.part] = start + header[key]["data_offsets"][0]
                continue
            for part in tensor.parts:
                if part.file not in opened:
                    opened[part.file] = inputs.enter_context(source.open_file(part.file))
                _copy(opened[part.file], file, part, _type(tensor, dtype), advance)
        for layer, places in layers.values():
            _write_layer(file, layer, places, advance)
        file.flush()
        os.fsync(file.fileno())  # some file systems report only now that the disk is full


def _write_layer(file, layer: Layer, places: dict[str, int], advance: Callable[[int], None]):
    """Compute a layer's tensors and write each at its place."""
    for name, tensor in layer.compute().items():
        file.seek(places[name])
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())
        advance(tensor.nbytes)


def _copy(reader, writer, tensor: Stored, kind: str, advance: Callable[[int], None]):
    """Copy a tensor, as values of this type."""
    change = None if kind == tensor.dtype else partial(_cast, tensor=tensor, kind=kind)
    packing.copy(reader, writer, tensor, change, advance, packing.piece_of(tensor, PIECE))


def _cast(piece: bytes, tensor: Stored, kind: str) -> bytes:
    return packing.as_bytes(packing.values_of(piece, tensor), tensor, kind)


def _type(tensor: Stored | Joined | Computed, dtype: torch.dtype | None) -> str:
    """The type of the tensor as it will be written into safetensors, by its name there."""
    if isinstance(tensor, Computed):
        return tensor.dtype
    if any(part.dtype in gguf.BLOCKS for part in tensor.parts):
        return packing.NAMES[dtype or torch.bfloat16]
    return packing.NAMES[dtype] if dtype is not None and tensor.dtype in FLOATS else tensor.dtype


def _width(tensor: Stored | Joined | Computed, dtype: torch.dtype | None) -> int:
    """Bytes of one value."""
    return _size(tensor, dtype) // max(1, math.prod(tensor.shape))


def _size(tensor: Stored | Joined | Computed, dtype: torch.dtype | None) -> int:
    """Bytes of the tensor as it will be written."""
    kind = _type(tensor, dtype)
    same = isinstance(tensor, Computed) or all(part.dtype == kind for part in tensor.parts)
    return tensor.nbytes if same else math.prod(tensor.shape) * source.DTYPES[kind].itemsize
