"""A checkpoint's files: which are there, with which hashes, and whether the networks can load them."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoints import load as weights
from ..checkpoints.config import Config
from ..checkpoints.files import COMPONENTS, Folder, Source, Split, open_source, open_tensors
from ..checkpoints.hub import PIECE, WANTED, RemoteFile
from ..errors import CheckpointError
from ..prompt import Tokenizer

RELEASED_TENSORS = {"vlm": 658, "generation_decoder": 654, "vae": 194}
RELEASED_LAYERS = 24, 28, 20  # of the ViT, the language model and the MMDiT


@dataclass
class FileReport:
    """What was found. files: {name: {"bytes", "sha256", "hub"}}, hub: "equal", "differs" or "" if it was not asked.

    components: {component: words about its tensors}. problems: what is wrong, in words.
    """

    files: dict[str, dict] = field(default_factory=dict)
    components: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check_files(path: Path, released: list[RemoteFile] | None = None) -> FileReport:
    """Read every file of a checkpoint. released: the hub's list of the released files, to compare sizes and hashes."""
    report = FileReport()
    for name, file in _files(path):
        entry = {"bytes": file.stat().st_size, "sha256": _sha256(file), "hub": ""}
        report.files[name] = entry
    _compare_with_hub(path, report, released)
    try:
        source = open_source(path)
        config = Config.read(source)
    except CheckpointError as error:
        report.problems.append(str(error))
        return report
    try:
        with source.tokenizer_folder() as folder:
            Tokenizer(folder)
    except CheckpointError as error:
        report.problems.append(str(error))
    for component in COMPONENTS:
        try:
            report.components[component] = _component(source, config, component, report.problems)
        except CheckpointError as error:
            report.problems.append(str(error))
    return report


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """(name, regular file) of a checkpoint, without what else lies in its folder."""
    if path.is_file():
        yield path.name, path
        return
    try:
        source = open_source(path)
    except CheckpointError:
        source = None
    if isinstance(source, Split):
        yield from ((file.path.relative_to(path).as_posix(), file.path) for file in source.files.values())
        return
    for file in sorted(path.glob("**/*")):
        name = file.relative_to(path).as_posix()
        if WANTED.fullmatch(name) and file.is_file():
            yield name, file


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _compare_with_hub(path: Path, report: FileReport, released: list[RemoteFile] | None):
    for remote in released or ():
        entry = report.files.get(remote.name)
        if entry is None:
            report.problems.append(f"the released file {remote.name} is missing")
            continue
        equal = entry["bytes"] == remote.size and remote.matches(path / remote.name, lambda: None)
        entry["hub"] = "equal" if equal else "differs"
        if not equal:
            report.problems.append(f"{remote.name} is not the released file: its size or hash differs from the hub's")


def _component(source: Source, config: Config, component: str, problems: list[str]) -> str:
    """Words about a component's tensors. Adds to problems what is not finite. Raises CheckpointError."""
    stored = weights.check_component(source, config, component)
    dtypes = Counter(tensor.dtype for tensor in stored.values())
    words = f"{len(stored)} tensors, {', '.join(f'{n} {dtype}' for dtype, n in dtypes.items())}"
    layers = config.vision.num_layers, config.language.num_layers, config.mmdit.num_layers
    if isinstance(source, Folder) and layers == RELEASED_LAYERS and len(stored) != RELEASED_TENSORS[component]:
        words += f" (released: {RELEASED_TENSORS[component]})"
    bad = []
    for file in sorted({tensor.file for tensor in stored.values()}):
        with open_tensors(file) as read:  # of GGUF's block types it gives bytes, which are always finite
            for name, tensor in stored.items():
                if tensor.file == file and not torch.isfinite(read(tensor).float()).all():
                    bad.append(name)
    if bad:
        problems.append(f"{source.place(component)}: weights that are not finite: {', '.join(bad[:8])}")
    return words
