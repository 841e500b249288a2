"""The official code, run in a process of its own by record_official.py."""

import os
import subprocess
import sys
from pathlib import Path

from ..errors import InputError
from .recording import BFLOAT16, FLOAT32

RECORDER = Path(__file__).with_name("record_official.py")
REQUIREMENTS = "transformers==4.52.3 diffusers==0.35.1 accelerate timm einops"


class OfficialError(RuntimeError):
    """The official code failed. The message has its last words."""


def is_official(folder: Path) -> bool:
    """Whether a folder is a checkout of the official code, rather than one of recorded runs. Raises InputError."""
    if (folder / "internvlu" / "__init__.py").is_file():
        return True
    if (folder / "cases.json").is_file() and (folder / FLOAT32).is_dir():
        return False
    raise InputError(
        f"{str(folder)!r} is neither a checkout of the official code (it lacks internvlu/) nor a folder of recorded "
        f"runs (it lacks cases.json and {FLOAT32}/)"
    )


def record(official: Path, checkpoint: Path, folder: Path, device: str, python: str | None = None):
    """Record the cases in a folder, in float32 and replayed in bfloat16. python: of the official code's environment.

    Raises OfficialError.
    """
    if not checkpoint.is_dir() or not (checkpoint / "vlm").is_dir():
        raise OfficialError("the official code reads only a checkpoint folder in the released layout")
    run = [python or sys.executable, RECORDER, official, checkpoint, folder]
    _run([*run, folder / FLOAT32, "--device", device])
    replay = ["--dtype", "bfloat16", "--replay", folder / FLOAT32]
    _run([*run, folder / BFLOAT16, "--device", device, *replay])


def _run(command: list):
    """Run a program, whose output goes to a log beside its results. Raises OfficialError."""
    log = Path(command[5]).with_suffix(".log")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    try:
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(
                list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
            )
    except OSError as error:
        raise OfficialError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise OfficialError(
            f"the official code failed ({lines[-1] if lines else 'without a word'}). Its environment needs "
            f"{REQUIREMENTS}; --official-python names its Python. The whole output is in {log.name}"
        )
