#!/usr/bin/env python3
"""Loads a checkpoint and prints, as JSON, how long it took and how much memory. Linux only.

    python scripts/measure_loading.py CHECKPOINT [--dtype auto|bf16|fp16|fp32|fp8|…] [--step HEIGHTxWIDTH]

peak is the greatest resident memory of the process (VmHWM, reset before loading) less what was resident after all
imports. Pages of a mapped file count once they have been read, so weights that are loaded in their own dtype count only
when --step uses them.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import transformers  # noqa: E402

from internvlu_core import InternVLU  # noqa: E402
from internvlu_core.cli import RUN_DTYPES  # noqa: E402
from support.live_tensors import resident  # noqa: E402


def main(options):
    transformers.AutoTokenizer  # noqa: B018  imported when first named
    baseline = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    start = time.perf_counter()
    model = InternVLU.from_pretrained(options.checkpoint, "cpu", RUN_DTYPES[options.dtype])
    seconds = time.perf_counter() - start
    networks = {"vlm": model.vlm, "mmdit": model.mmdit, "vae": model.vae}
    sizes = {name: sum(p.nbytes for p in network.parameters()) for name, network in networks.items()}
    total = sum(sizes.values())
    result = {"dtype": str(model.dtype), "weights_bytes": sizes | {"all": total}, "load_seconds": round(seconds, 2)}

    def peak(name):
        used = resident("VmHWM") - baseline
        result[name] = {"bytes": used, "over_weights": round(used / total, 4)}

    peak("load_peak")
    if options.step:
        height, width = map(int, options.step.lower().split("x"))
        start = time.perf_counter()
        generated = model.generate("a photo of a cat", height=height, width=width, steps=1)
        result["step_seconds"] = round(time.perf_counter() - start, 2)
        result["finite"] = bool(torch.isfinite(generated.latents).all())
        peak("step_peak")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=RUN_DTYPES, default="auto")
    parser.add_argument("--step", metavar="HEIGHTxWIDTH", help="also make one denoising step, from prompt to picture")
    main(parser.parse_args())
