"""What worker processes share: requests and replies as JSON lines, and the measurement of time and peak memory.

A worker may run in an environment of its own, so this file needs torch only, and imports nothing of this repository.
Tensors are passed in files.
"""

import ctypes
import gc
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

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


def machine() -> str:
    """A description: processor, number of torch's threads, GPU if there is one."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    words = [names[0] if names else platform.processor() or platform.machine(), f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ", ".join(words)


def synchronise(device: str):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measured(function: Callable, device: str) -> tuple[object, dict]:
    """The result of a function, and its {"seconds", "peak"}.

    peak: bytes on the device; on a CPU the resident bytes of the process (on Linux only).
    """
    gc.collect()
    if sys.platform == "linux":  # memory that was freed before does not count
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak(device)
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return result, {"seconds": time.perf_counter() - start, "peak": peak(device)}


def reset_peak(device: str):
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int | None:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(key: str) -> int | None:
    for line in _lines("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


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
