"""What worker processes share: requests and replies as JSON lines, and the measurement of time and peak memory.

A worker may run in an environment of its own, so this file needs torch only, and so do the core's files that it
imports by their place. Tensors are passed in files.
"""

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "internvlu_core" / "doctor"))
from measure import machine, measured, synchronise  # noqa: F401, workers take `measured` from here

# Standard output is for replies only; what libraries print, some of them when imported, goes to standard error.
_replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def serve(operations: dict[str, Callable[..., dict]]):
    """Answer requests {"op": name, …arguments} on standard input until it ends. An error becomes a reply."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = operations[request.pop("op")](**request)
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=_replies, flush=True)


def versions(*packages: str) -> dict:
    """The versions of Python, torch and these packages, and the machine."""
    from importlib.metadata import version

    found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {package: version(package) for package in packages}
    return {"versions": found, "machine": machine()}


def start_noise(size: int, seed: int) -> torch.Tensor:
    """The initial noise, equal on every side: [1, 16, size / 8, size / 8]. size: of the picture in pixels."""
    return torch.randn(1, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))


class StepClock:
    """Records when each sampling step ends. intervals() gives the seconds of all steps but the first, which may include
    what is prepared once per run."""

    def __init__(self, device: str):
        self.device, self.times = device, []

    def tick(self):
        synchronise(self.device)
        self.times.append(time.perf_counter())

    def intervals(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
