"""Where weights are: models/internvl_u and ComfyUI's own folders, and what extra_model_paths.yaml adds to them."""

import os
from functools import lru_cache
from pathlib import Path

import folder_paths

from ...internvlu_core.checkpoints.files import COMPONENTS, components_of
from ...internvlu_core.checkpoints.gguf import ENDING as GGUF
from ...internvlu_core.checkpoints.hub import PARTIAL

NAME = "internvl_u"
DEPTH = 3  # folders may be grouped, as a download of "owner/name" is
ENDINGS = (".safetensors", ".sft", GGUF)
TOY = (
    Path(__file__).parents[2] / "demo" / "InternVL-U-toy"
)  # comes with the pack, so that there is always a checkpoint to try


def register():
    folder_paths.add_model_folder_path(NAME, os.path.join(folder_paths.models_dir, NAME))
    # As ComfyUI does for its own folders: what a save node writes is found again.
    folder_paths.add_model_folder_path(NAME, os.path.join(folder_paths.get_output_directory(), NAME))


def checkpoints() -> dict[str, Path]:
    """{name as the combo shows it: folder, or file with all parts}, the pack's own toy last.

    A workflow can name these and nothing else.
    """
    found = {}
    for base in map(Path, folder_paths.get_folder_paths(NAME)):
        folders = [marker.parent.parent for marker in _glob(base, "vlm/config.json")]
        files = [
            file
            for ending in ENDINGS
            for file in _glob(base, f"*{ending}", least=0)
            if file.is_file()
            and not any(folder in file.parents for folder in folders)
            and _is_whole(file, *_stamp(file)[1:])
        ]
        for path in folders + files:
            name = path.relative_to(base).as_posix()
            if not any(part.endswith(PARTIAL) for part in path.relative_to(base).parts):
                found.setdefault(name, path)
    found.setdefault(TOY.name, TOY)
    return found


def _glob(base: Path, pattern: str, least: int = 1) -> list[Path]:
    """Matches under `least` to DEPTH folders, nearest first."""
    return [path for depth in range(least, DEPTH + 1) for path in sorted(base.glob("*/" * depth + pattern))]


@lru_cache(maxsize=1024)  # combos are filled for every browser; a header is some megabytes
def _is_whole(file: Path, size: int, time: int) -> bool:
    return set(components_of(file)) == set(COMPONENTS)


def checkpoint(name: str) -> Path:
    """The checkpoint of that name in the list. Raises ValueError saying what there is and where it belongs."""
    found = checkpoints()
    if name not in found:
        listed = ", ".join(map(repr, found)) or "none"
        places = " or ".join(folder_paths.get_folder_paths(NAME))
        raise ValueError(f"checkpoint {name!r} is not in {places}; found there: {listed}")
    return found[name]


def model_files(kind: str) -> list[str]:
    """Names of the safetensors and GGUF files in one of ComfyUI's folders. kind: "diffusion_models", …"""
    names = {name for name in folder_paths.get_filename_list(kind) if name.lower().endswith(ENDINGS)}
    for base in folder_paths.get_folder_paths(kind):  # ComfyUI itself knows no GGUF
        names |= {name for name in folder_paths.recursive_search(base, [".git"])[0] if name.lower().endswith(GGUF)}
    return sorted(names)


def model_file(kind: str, name: str) -> Path:
    """The file of that name in the list. Raises ValueError."""
    path = folder_paths.get_full_path(kind, name) if name in model_files(kind) else None
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(kind))
        raise ValueError(f"file {name!r} is not in {places}; put it there, or choose another one")
    return Path(path)


def stamps(path: Path) -> list[tuple[str, int, int]]:
    """What changes when a file, or any file in a folder, is replaced."""
    return [_stamp(file) for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]


def _stamp(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns
