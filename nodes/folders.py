"""Where checkpoint folders lie: models/internvl_u and what extra_model_paths.yaml adds under that name."""

import os
from pathlib import Path

import folder_paths

NAME = "internvl_u"
DEPTH = 3  # folders may be grouped, as a download of "owner/name" is


def register():
    folder_paths.add_model_folder_path(NAME, os.path.join(folder_paths.models_dir, NAME))


def checkpoints() -> dict[str, Path]:
    """{name as the combo shows it: folder}. A workflow can name these and nothing else."""
    found = {}
    for base in map(Path, folder_paths.get_folder_paths(NAME)):
        for depth in range(1, DEPTH + 1):
            for marker in sorted(base.glob("/".join(["*"] * depth) + "/vlm/config.json")):
                folder = marker.parent.parent
                found.setdefault(folder.relative_to(base).as_posix(), folder)
    return found


def checkpoint(name: str) -> Path:
    """The folder of a checkpoint in the list. Raises ValueError saying what there is and where it belongs."""
    found = checkpoints()
    if name not in found:
        listed = ", ".join(map(repr, found)) or "none"
        places = " or ".join(folder_paths.get_folder_paths(NAME))
        raise ValueError(f"checkpoint {name!r} is not in {places}; found there: {listed}")
    return found[name]
