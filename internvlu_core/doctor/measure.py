"""Time and memory of a function, and the speed of the machine. It needs torch only: benchmarks/workers/wire.py loads it
in environments that lack the rest of this package.
"""

import ctypes
import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

# Sizes for measuring the machine: the longest side of the square matrices to multiply, bytes of the buffer to copy.
PROBES = {"cpu": (2048, 2**27), "cuda": (8192, 2**30)}
LONG_ENOUGH = 0.1  # seconds of one product


def machine() -> str:
    """A description: processor, number of torch's threads, GPU if there is one."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    words = [names[0] if names else platform.processor() or platform.machine(), f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ", ".join(words)


def synchronise(device: str):
    """Wait until a CUDA device has finished; others are not waited for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


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
    """Forget the peak so far."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int | None:
    """Bytes at most since reset_peak; None where the system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def machine_speed(device: str, dtype: torch.dtype) -> dict:
    """FLOP/s of a matrix product in this dtype, and bytes/s of a copy (read plus written)."""
    longest, nbytes = PROBES.get(device.partition(":")[0], PROBES["cpu"])
    source = torch.ones(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "flops_per_second": _product_rate(device, dtype, longest),
        "bytes_per_second": 2 * nbytes / _least_seconds(lambda: target.copy_(source), device),
    }


def _product_rate(device: str, dtype: torch.dtype, longest: int) -> float:
    """The best FLOP/s of growing matrices. A CPU without instructions for the dtype takes minutes for the longest."""
    side, best = min(256, longest), 0.0
    while True:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = _least_seconds(partial(torch.matmul, a, b), device)
        best = max(best, 2 * side**3 / seconds)
        if seconds > LONG_ENOUGH or side >= longest:
            return best
        side *= 2


def least_time(speed: dict, flops: int, nbytes: int) -> float:
    """The least seconds that this many FLOPs and bytes take at a machine_speed."""
    return max(flops / speed["flops_per_second"], nbytes / speed["bytes_per_second"])


def _least_seconds(function: Callable, device: str, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _status(key: str) -> int | None:
    for line in _lines("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
