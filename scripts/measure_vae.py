#!/usr/bin/env python3
"""Runs the VAE with the released widths and random weights, and prints as JSON how much working memory a pixel takes:
what ENCODE_ELEMENTS and DECODE_ELEMENTS in nodes/comfy/vae.py promise ComfyUI.

    python scripts/measure_vae.py [SIDE ...] [--dtype fp32|bf16 ...] [--device cpu]

In elements of the dtype per pixel. tensors: peak of all that live at a time besides the weights, as far as Python sees
(not what one operation makes inside itself, as attention does where it has no fused kernel). resident (Linux, CPU): by
how much a fresh process grows at its peak; on top of the tensors this holds the working space of convolutions, of which
other devices need more or less. allocated (CUDA): the same by torch's allocator.
"""

import argparse
import json
import multiprocessing
import os
import sys
from itertools import product
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from internvlu_core.checkpoints.config import RELEASED_VAE  # noqa: E402
from internvlu_core.models.vae import VAE  # noqa: E402
from support.live_tensors import LiveTensors, resident  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def random_vae(dtype: torch.dtype, device: str) -> VAE:
    with torch.device(device):
        vae = VAE(RELEASED_VAE).to(dtype).requires_grad_(False).eval()
    for parameter in vae.parameters():
        parameter.normal_().mul_(parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return vae


@torch.inference_mode()
def measure(case: tuple[str, str, int, str]) -> dict[str, float]:
    """The peaks of one case."""
    half, name, side, device = case
    vae = random_vae(DTYPES[name], device)
    function = {"encode": vae.encode_raw, "decode": vae.decode_raw}[half]
    factor = RELEASED_VAE.scale_factor
    latent = 1, RELEASED_VAE.latent_channels, side // factor, side // factor
    shape = (1, 3, side, side) if half == "encode" else latent
    x, peaks = torch.randn(shape).to(device, DTYPES[name]), {}
    if x.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        function(x)
        peaks["allocated"] = torch.cuda.max_memory_allocated() - before
    elif x.device.type == "cpu" and sys.platform == "linux":
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        function(x)
        peaks["resident"] = resident("VmHWM") - before
    with LiveTensors() as tensors:
        function(x)
    peaks["tensors"] = tensors.peak
    return {key: round(peak / x.element_size() / side**2, 1) for key, peak in peaks.items()}


def measure_apart(cases: list[tuple[str, str, int, str]]) -> list[dict[str, float]]:
    """Each case in a process of its own, whose allocator has nothing left over from earlier ones."""
    # By default glibc learns to keep freed blocks of up to 32 MB, and the peak grows by as many as happen not to fit.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(measure, cases, chunksize=1)


def main(options):
    cases = list(product(("encode", "decode"), options.dtype, options.side, [options.device]))
    results = measure_apart(cases)
    names = (f"{half} {name} {side}x{side}" for half, name, side, _ in cases)
    print(json.dumps(dict(zip(names, results, strict=True)), indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("side", type=int, nargs="*", default=[512, 1024], help="of the picture in pixels")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args())
