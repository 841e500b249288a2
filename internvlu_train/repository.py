"""The parts of this package that only the repository has. The pack for ComfyUI leaves them out (see .comfyignore)."""

import importlib
from pathlib import Path
from types import ModuleType

from internvlu_core.errors import InputError


def has_part(name: str) -> bool:
    """Whether this installation has the subpackage internvlu_train.<name>."""
    return (Path(__file__).parent / name / "__init__.py").is_file()


def repository_module(name: str, needed_by: str) -> ModuleType:
    """Import internvlu_train.<name>, for example "toy.world.mixture".

    needed_by: what asks for it, for the message. Raises InputError where this installation does not have that part.
    """
    part = name.partition(".")[0]
    if not has_part(part):
        raise InputError(
            f"{needed_by} needs internvlu_train/{part}, which only the repository has: the pack for ComfyUI leaves it "
            "out. Clone the repository, and run the command there. The pack has lora, and all of --preset released"
        )
    return importlib.import_module(f".{name}", __package__)
