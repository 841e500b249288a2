"""From safetensors files to a network's state dict: names, shapes and dtypes, strictly.

Tensors are memory-mapped, so a checkpoint that is loaded in its own dtype on the CPU is never copied, and one that is
converted or moved goes through memory tensor by tensor. Only safetensors and JSON files are opened: a pickle can run
code.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .config import Config
from .errors import CheckpointError

# Handles are reopened after this many converted bytes: a mapped page counts as resident memory until its file closes.
REOPEN_AFTER = 256 * 2**20


@dataclass(frozen=True)
class Layout:
    """How one network is stored: where, under which names, in which shape.

    file_name maps a parameter's name in the network to its name in the file; unread matches tensors that belong to
    the layout but that inference has no use for; adapt maps a stored tensor to the network's shape.
    """

    folder: str
    stem: str
    file_name: Callable[[str], str] = lambda name: name
    unread: re.Pattern = re.compile(r"(?!)")
    adapt: Callable[[torch.Tensor, torch.Size], torch.Tensor] = lambda tensor, shape: tensor


def _same_count(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Free-standing vectors are rows of an Embedding in the network (see vision.py): same values, other shape."""
    squeezed = [side for side in tensor.shape if side != 1]
    return tensor.view(shape) if squeezed == [side for side in shape if side != 1] else tensor


def _last_tap(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A causal 3-D kernel meets a single frame with its last temporal tap only (model.md section 10)."""
    if tensor.ndim == 5:
        return tensor[:, :, -1]
    return _same_count(tensor, shape)  # norm scales [C,1,1,1]


VLM = Layout(
    folder="vlm",
    stem="model",
    file_name=lambda name: re.sub(r"\.(class_embedding|position_embedding|ls1|ls2)\.weight$", r".\1", name),
    adapt=_same_count,
)
# A tied head is the embedding itself; some writers store it all the same.
VLM_TIED = Layout(VLM.folder, VLM.stem, VLM.file_name, re.compile(r"language_model\.lm_head\.weight"), VLM.adapt)


def vlm_layout(config: Config) -> Layout:
    return VLM_TIED if config.language.tied_head else VLM


MMDIT = Layout(
    folder="generation_decoder",
    stem="model",
    file_name=lambda name: name if name.startswith("decoder_projector.") else f"decoder.{name}",
    # It only ever fills positions that attention masks out; branches run unpadded here.
    unread=re.compile(r"encoder_padding_token"),
)
VAE = Layout(
    folder="vae",
    stem="diffusion_pytorch_model",
    unread=re.compile(r".*\.time_conv\.(weight|bias)"),  # used between frames only
    adapt=_last_tap,
)


def load_state_dict(
    checkpoint: str | Path,
    layout: Layout,
    network: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Read the tensors of `network` (whose own parameters may be on the meta device) from a checkpoint folder.

    dtype=None keeps each tensor's own. Returns {parameter name: tensor}, for load_state_dict(..., assign=True).
    Raises CheckpointError naming every missing, unknown or misshaped tensor, or the file that cannot be read.
    """
    folder = Path(checkpoint) / layout.folder
    files = _find_files(folder, layout.stem)
    stored = _read_headers(files)
    wanted = {layout.file_name(name): (name, tensor.shape) for name, tensor in network.state_dict().items()}

    missing = sorted(wanted.keys() - stored.keys())
    unknown = sorted(name for name in stored.keys() - wanted.keys() if not layout.unread.fullmatch(name))
    if missing or unknown:
        raise CheckpointError(
            f"{folder} does not hold the tensors that its config.json describes"
            + (f"; {len(missing)} missing: {_first(missing)}" if missing else "")
            + (f"; {len(unknown)} unknown: {_first(unknown)}" if unknown else "")
        )
    misshaped = [
        f"{name} is {list(stored[name].shape)}, config.json asks for {list(shape)}"
        for name, (_, shape) in wanted.items()
        if layout.adapt(stored[name], shape).shape != shape
    ]
    if misshaped:
        raise CheckpointError(f"{folder}: tensors of a wrong shape: {_first(misshaped)}")
    not_float = [name for name in wanted if not stored[name].is_floating_point()]
    if not_float:
        raise CheckpointError(f"{folder}: weights that are not floating point: {_first(not_float)}")

    state = {}
    for file, names in files.items():
        names = [name for name in (names or _names(file)) if name in wanted]
        for name, tensor in _tensors(file, names, dtype, device):
            parameter, shape = wanted[name]
            state[parameter] = layout.adapt(tensor, shape).contiguous()
    return state


def stored_dtype(checkpoint: str | Path, layout: Layout) -> torch.dtype:
    """The floating-point dtype that most of the stored values have."""
    counts = {torch.float32: 0}
    for tensor in _read_headers(_find_files(Path(checkpoint) / layout.folder, layout.stem)).values():
        if tensor.is_floating_point():  # load_state_dict names those that are not
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=counts.get)


def _find_files(folder: Path, stem: str) -> dict[Path, list[str] | None]:
    """{safetensors file: names of its tensors by the index, None where there is no index}."""
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if single.is_file():
        return {single: None}
    if not index.is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        found = f"; {', '.join(others)} will not be opened: only safetensors files are" if others else ""
        raise CheckpointError(f"missing file {single} (nor is there {index.name}){found}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, list[str]] = {}
        for name, shard in weight_map.items():
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(f"{index}: {shard!r} is no safetensors file of this folder")
            shards.setdefault(folder / shard, []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{index} is not a readable index: {type(error).__name__}: {error}") from error
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise CheckpointError(f"{folder}: shards named by {index.name} are missing: {', '.join(sorted(absent))}")
    return shards


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file (cut off while downloading, or another format): {error}"
        ) from error


def _names(file: Path) -> list[str]:
    with _open(file) as handle:
        return list(handle.keys())


def _read_headers(files: dict[Path, list[str] | None]) -> dict[str, torch.Tensor]:
    """{stored name: meta tensor of its shape and dtype}. Also checks that shards hold what the index promises."""
    headers = {}
    for file, promised in files.items():
        with _open(file) as handle:
            names = set(handle.keys())
            for name in names if promised is None else promised:
                if name not in names:
                    raise CheckpointError(f"{file} lacks the tensor {name} that its index promises")
                view = handle.get_slice(name)
                if view.get_dtype() not in _DTYPES:
                    raise CheckpointError(f"{file}: the tensor {name} is of an unsupported type, {view.get_dtype()}")
                headers[name] = torch.empty(view.get_shape(), dtype=_DTYPES[view.get_dtype()], device="meta")
            unnamed = sorted(names.difference(promised or names))
            if unnamed:
                raise CheckpointError(f"{file} has tensors that its index does not name: {_first(unnamed)}")
    return headers


_DTYPES = {
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


def _tensors(file: Path, names: list[str], dtype, device):
    """Yield (name, tensor), keeping little of the mapped file resident when tensors are converted or moved."""
    position = 0
    while position < len(names):
        converted = 0
        with _open(file) as handle:
            while position < len(names) and converted < REOPEN_AFTER:
                name = names[position]
                mapped = handle.get_tensor(name)
                tensor = mapped.to(device=device, dtype=dtype or mapped.dtype)
                if tensor.data_ptr() != mapped.data_ptr():
                    converted += math.prod(mapped.shape) * mapped.element_size()
                yield name, tensor
                del mapped, tensor
                position += 1


def _first(items: list[str], limit: int = 8) -> str:
    return ", ".join(items[:limit]) + (f" … and {len(items) - limit} more" if len(items) > limit else "")
