"""From a checkpoint's tensors to networks: names, shapes and dtypes, strictly.

Tensors are memory-mapped, so a checkpoint that is loaded in its own dtype on the CPU is never copied, and one that is
converted or moved goes through memory tensor by tensor.
"""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..errors import CheckpointError
from ..models.mmdit import MMDiT
from ..models.vae import VAE
from ..models.vlm import VLM
from ..quantization import (
    FileFormat,
    Gguf,
    QuantisedWeight,
    WeightFormat,
    hold_quantised,
    network_formats,
    quantise_for,
    replace_layer,
)
from .config import Config
from .files import COMPONENTS, DTYPES, STEMS, Source, Stored, first, open_source, open_tensors
from .gguf import BLOCKS
from .quantised import INPUT_SCALE, StoredLayer, fits, split_layers

# Handles are reopened after this many converted bytes: a mapped page counts as resident memory until its file closes.
REOPEN_AFTER = 256 * 2**20


@dataclass(frozen=True)
class TensorNames:
    """How one network's tensors are stored: in which folder, under which names, in which shapes.

    folder: the component's name. stem: of the file's name, without its suffix. file_name: maps a parameter's name in
    the network to its name in the file. unread: matches tensors that belong to the component but that inference has
    no use for. adapt(stored name, tensor, shape): a stored tensor in the network's shape, or as it is if it has none.
    packed: layers whose matrices stay packed in memory if the file has them so; others are unpacked while loading.
    """

    folder: str
    stem: str
    file_name: Callable[[str], str] = lambda name: name
    unread: re.Pattern = re.compile(r"(?!)")
    adapt: Callable[[str, torch.Tensor, torch.Size], torch.Tensor] = lambda name, tensor, shape: tensor
    packed: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding)


# Vectors that are rows of an Embedding in the network (see models/vision.py): the same values in another shape.
_VECTORS = re.compile(r"(.*\.(class_embedding|position_embedding|ls1|ls2))(\.weight)?")


def _vectors_as_rows(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return _with_ones(tensor, shape) if _VECTORS.fullmatch(name) else tensor


def _last_tap(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A causal 3-D kernel meets a single frame with its last temporal tap only (docs/model.md, "VAE")."""
    if tensor.ndim == 5:
        return tensor[:, :, -1]
    return _with_ones(tensor, shape) if name.endswith(".gamma") else tensor  # some are [C, 1, 1, 1]


def _with_ones(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """In this shape, if it differs in sides of length 1 only."""
    squeezed = [side for side in tensor.shape if side != 1]
    return tensor.view(shape) if squeezed == [side for side in shape if side != 1] else tensor


VLM_NAMES = TensorNames(
    folder="vlm",
    stem=STEMS["vlm"],
    file_name=lambda name: _VECTORS.sub(r"\1", name),
    adapt=_vectors_as_rows,
)
# A tied head is the embedding itself, which must then be a matrix; some writers store it all the same.
VLM_TIED_NAMES = replace(VLM_NAMES, unread=re.compile(r"language_model\.lm_head\.weight"), packed=(nn.Linear,))
MMDIT_NAMES = TensorNames(
    folder="generation_decoder",
    stem=STEMS["generation_decoder"],
    file_name=lambda name: name if name.startswith("decoder_projector.") else f"decoder.{name}",
    # It only ever fills positions that attention masks out; branches run unpadded here.
    unread=re.compile(r"encoder_padding_token"),
)
VAE_NAMES = TensorNames(
    folder="vae",
    stem=STEMS["vae"],
    unread=re.compile(r".*\.time_conv\.(weight|bias)"),  # used between frames only
    adapt=_last_tap,
)


def tensor_names(config: Config, component: str) -> TensorNames:
    """How the tensors of a component are stored. component: one of COMPONENTS."""
    vlm = VLM_TIED_NAMES if config.language.tied_head else VLM_NAMES
    return {"vlm": vlm, "generation_decoder": MMDIT_NAMES, "vae": VAE_NAMES}[component]


class Networks(NamedTuple):
    """A checkpoint's three networks, in the order of COMPONENTS."""

    vlm: VLM
    mmdit: MMDiT
    vae: VAE


def build_on_meta(config: Config, component: str, **attention) -> nn.Module:
    """The network of one component without values: all of its parameters are on the meta device.

    component: one of COMPONENTS. attention: `attention=function` for another one than torch's, as the transformers
    take it; the VAE has none to replace.
    """
    with torch.device("meta"):
        if component == "vae":
            return VAE(config.vae)
        return VLM(config, **attention) if component == "vlm" else MMDiT(config.mmdit, **attention)


def read_weights(
    checkpoint: str | Path | Source,
    config: Config,
    component: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor | QuantisedWeight]:
    """{parameter name: tensor} of one component, for a network that the caller builds; see load_state_dict."""
    names, network = tensor_names(config, component), build_on_meta(config, component)
    return load_state_dict(checkpoint, names, network, dtype=dtype, device=device)


def read_formats(checkpoint: str | Path | Source, config: Config, component: str) -> dict[str, FileFormat]:
    """{path in the network: format} of a component's layers in fewer bits.

    Their tensors are in read_weights, under the names of the format: "<path>.weight_scale" and so on.
    """
    names, network = tensor_names(config, component), build_on_meta(config, component)
    return layers_of(open_source(checkpoint), names, network)


def check_component(checkpoint: str | Path | Source, config: Config, component: str) -> dict[str, Stored]:
    """check_tensors for the network that the config describes."""
    return check_tensors(checkpoint, tensor_names(config, component), build_on_meta(config, component))


def stage_networks(
    checkpoint: str | Path | Source,
    config: Config,
    *,
    dtype: torch.dtype | None = None,
    weight_format: WeightFormat | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Networks, tuple[dict[str, torch.Tensor], ...]]:
    """The networks on the meta device, and a state dict for each of them in main memory, for offloading.

    device: the one that they are for; weights are quantised there, if at all. Other arguments and errors as in
    load_networks. The parameters on the meta device have the dtypes of the state dicts.
    """
    staged = [_stage(checkpoint, config, name, dtype, "cpu", weight_format, device) for name in COMPONENTS]
    for network, state in staged:
        network.load_state_dict({name: tensor.to("meta") for name, tensor in state.items()}, assign=True)
    networks, states = zip(*staged, strict=True)
    return Networks(*networks), states


def load_networks(
    checkpoint: str | Path | Source,
    config: Config,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    weight_format: WeightFormat | None = None,
    **attention,
) -> Networks:
    """Build a checkpoint's networks and load their weights, frozen, in evaluation mode.

    config: Config.read of the same checkpoint. dtype: of the parameters; None keeps each tensor's own. weight_format:
    stores large matrices in it; the others have the dtype. attention: as in build_on_meta.
    Raises CheckpointError as check_tensors does.
    """
    networks = []
    for component in COMPONENTS:
        network, state = _stage(checkpoint, config, component, dtype, device, weight_format, device, **attention)
        network.load_state_dict(state, assign=True)
        networks.append(network)
    return Networks(*networks)


def _stage(checkpoint, config, component, dtype, device, weight_format, runs_on, **attention):
    """A network on the meta device, and its state dict on the device, in the weight format if one is given."""
    network = build_on_meta(config, component, **attention).requires_grad_(False).eval()
    names = tensor_names(config, component)
    quantised = {"weight_format": weight_format, "runs_on": runs_on}
    state = load_state_dict(checkpoint, names, network, dtype=dtype, device=device, **quantised)
    layers = layers_of(open_source(checkpoint), names, network)
    dtype = dtype or (stored_dtype(checkpoint, names) if layers else None)
    for path, stored_format in layers.items():
        state.pop(f"{path}.{INPUT_SCALE}", None)
        parts = {name.rpartition(".")[2]: state[name] for name in state if name.rpartition(".")[0] == path}
        parts.pop("bias", None)
        replace_layer(network, path, stored_format, parts, dtype)
    hold_quantised(network, state, dtype or stored_dtype(checkpoint, names))
    return network, state


def check_tensors(checkpoint: str | Path | Source, names: TensorNames, network: nn.Module) -> dict[str, Stored]:
    """{released name: where it is stored} of a component, after checking that `network` can load it.

    Layers in fewer bits have several tensors, see quantised.py. network: its parameters may be on the meta device.
    Raises CheckpointError naming the tensors that are missing, unknown, of a wrong shape or not floating-point, or the
    file that cannot be read.
    """
    source = open_source(checkpoint)
    place = source.place(names.folder)
    stored = source.tensors(names.folder)
    wanted = {names.file_name(name): tensor.shape for name, tensor in network.state_dict().items()}
    plain, layers = split_layers(source, names.folder)
    meta = {name: _on_meta(name, tensor) for name, tensor in plain.items()}
    meta |= {f"{path}.weight": _weight_of(path, layer, wanted, network) for path, layer in layers.items()}

    missing = sorted(wanted.keys() - meta.keys())
    unknown = sorted(name for name in meta.keys() - wanted.keys() if not names.unread.fullmatch(name))
    if missing or unknown:
        raise CheckpointError(
            f"{place} does not hold the tensors that its config.json describes"
            + (f"; {len(missing)} missing: {first(missing)}" if missing else "")
            + (f"; {len(unknown)} unknown: {first(unknown)}" if unknown else "")
        )
    misshaped = [
        f"{name} is {list(meta[name].shape)}, config.json asks for {list(shape)}"
        for name, shape in wanted.items()
        if names.adapt(name, meta[name], shape).shape != shape
    ]
    if misshaped:
        raise CheckpointError(f"{place}: tensors of a wrong shape: {first(misshaped)}")
    not_float = [name for name in wanted if not meta[name].is_floating_point()]
    if not_float:
        raise CheckpointError(f"{place}: weights that are not floating point: {first(not_float)}")
    return stored


def _weight_of(path: str, layer: StoredLayer, wanted: dict[str, torch.Size], network: nn.Module) -> torch.Tensor:
    """The weight that a layer in fewer bits stands for, on the meta device: of a wrong shape if its parts are."""
    parts = {name: _on_meta(f"{path}.{name}", tensor) for name, tensor in layer.parts.items()}
    shape = wanted.get(f"{path}.weight", ())
    if path.endswith("embed_tokens") and not hasattr(network.language_model, "lm_head"):
        shape = ()  # the model multiplies by it, as a whole matrix
    if fits(layer, shape, parts):
        return torch.empty(shape, device="meta")
    return parts.get("weight", torch.empty(0, device="meta")).new_empty((0,), dtype=torch.float32)


def layers_of(source: Source, names: TensorNames, network: nn.Module) -> dict[str, FileFormat]:
    """{path in the network: format} of its layers that are stored in fewer bits. network: as it was built."""
    layers, found = split_layers(source, names.folder)[1], {}
    for name, tensor in network.state_dict().items() if layers else ():
        layer = layers.get(names.file_name(name).removesuffix(".weight"))
        if layer is not None and name.endswith(".weight"):
            found[name.removesuffix(".weight")] = layer.format.of_shape(tensor.shape)
    return found


def load_state_dict(
    checkpoint: str | Path | Source,
    names: TensorNames,
    network: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    weight_format: WeightFormat | None = None,
    runs_on: str | torch.device = "cpu",
) -> dict[str, torch.Tensor | QuantisedWeight]:
    """{parameter name: tensor} of `network`, from a checkpoint, for network.load_state_dict(…, assign=True).

    network: its parameters may be on the meta device. dtype: of all tensors but those of layers in fewer bits; None
    keeps the dtype of each. A tensor that is neither converted nor moved is mapped from the file. Layers in fewer bits
    stay as stored: ComfyUI's under the names of their format, a matrix in a block type of GGUF as a QuantisedWeight for
    hold_quantised. weight_format: stores other large matrices in it, as QuantisedWeights too, quantised for the device
    that the network runs_on (quantise_for). Raises CheckpointError as check_tensors does.
    """
    check_tensors(checkpoint, names, network)
    plain, layers = split_layers(open_source(checkpoint), names.folder)
    wanted = {names.file_name(name): (name, tensor.shape) for name, tensor in network.state_dict().items()}
    formats = network_formats(network, weight_format) if weight_format else {}

    def take(name: str, mapped: torch.Tensor) -> torch.Tensor | QuantisedWeight:
        stored, (parameter, shape) = plain[name], wanted[name]
        of_layer = formats.get(parameter.removesuffix(".weight"))
        if stored.dtype in BLOCKS:
            packed = QuantisedWeight(Gguf(stored.dtype), {"weight": mapped.to(device)})
            owner = network.get_submodule(parameter.rpartition(".")[0])
            if isinstance(owner, names.packed) and stored.shape == shape:
                return packed
            mapped = packed.format.dequantise(packed.stored, dtype or torch.float32)
        elif of_layer is not None:
            return quantise_for(torch.device(runs_on), of_layer, mapped, dtype).to(device)
        return names.adapt(name, mapped.to(device=device, dtype=dtype), shape).contiguous()

    read = _read_all({name: plain[name] for name in plain if name in wanted}, take)
    state = {wanted[name][0]: tensor for name, tensor in read}
    paths = {path: wanted[f"{path}.weight"][0].removesuffix(".weight") for path in layers}
    parts = {(path, name): part for path, layer in layers.items() for name, part in layer.parts.items()}
    for (path, name), tensor in _read_all(parts, lambda _, mapped: mapped.to(device)):
        state[f"{paths[path]}.{name}"] = tensor
    return state


def stored_dtype(checkpoint: str | Path | Source, names: TensorNames) -> torch.dtype:
    """The floating-point dtype of most of a component's stored values; float32 if it has none.

    Layers in fewer bits do not count.
    """
    counts = {torch.float32: 0}
    for name, stored in split_layers(open_source(checkpoint), names.folder)[0].items():
        if stored.dtype in BLOCKS:
            continue
        tensor = _on_meta(name, stored)
        if tensor.is_floating_point():  # check_tensors names those that are not
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=counts.get)


def _on_meta(name: str, stored: Stored) -> torch.Tensor:
    """Its shape and dtype as a tensor, unpacked."""
    if stored.dtype in BLOCKS:
        return torch.empty(stored.shape, device="meta")
    if stored.dtype not in DTYPES:
        raise CheckpointError(f"{stored.file}: the tensor {name} is of an unsupported type, {stored.dtype}")
    return torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device="meta")


def _read_all(tensors: dict[Hashable, Stored], take: Callable):
    """Yield (name, take(name, its tensor as it is mapped)) of all, file by file."""
    files: dict[Path, dict[Hashable, Stored]] = {}
    for name, tensor in tensors.items():
        files.setdefault(tensor.file, {})[name] = tensor
    for file, stored in files.items():
        yield from _read(file, stored, take)


def _read(file: Path, tensors: dict[Hashable, Stored], take: Callable):
    """As _read_all, keeping little of the mapped file resident when tensors are converted or moved."""
    left = list(tensors.items())
    while left:
        converted = 0
        with open_tensors(file) as mapped_tensor:
            while left and converted < REOPEN_AFTER:
                name, stored = left.pop(0)
                mapped = mapped_tensor(stored)
                taken = take(name, mapped)
                weight = taken.stored["weight"] if isinstance(taken, QuantisedWeight) else taken
                if weight.data_ptr() != mapped.data_ptr():
                    converted += stored.nbytes
                yield name, taken
                del mapped, taken, weight
