#!/usr/bin/env python3
"""Time and memory on a GPU, of a checkpoint with random weights of the released sizes, say:

    python scripts/random_checkpoint.py FOLDER
    python scripts/measure_gpu.py FOLDER [steps] [text] [compile] [offload] [--side 1024]

steps: a sampling step of a drawing, of four, of an edit; decoding; a whole picture. text: a token, with and without a
CUDA graph. compile: a step before and after InternVLU.compile, and at another size. offload: a step with few of the
weights on the GPU at once. Of several times the median is printed, of memory the allocator's peak.
"""

import argparse
import gc
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from internvlu_core import InternVLU
from internvlu_core.doctor.measure import machine, measured
from internvlu_core.doctor.recording import sample_picture
from internvlu_core.sampling import flow_sigmas

PROMPT = "A photo of a red boat on a lake at dawn, with mountains behind it and a few clouds in the sky"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def timed(name: str, function, repeats: int = 3):
    """Print the median time of calls after a first one, and the first one's."""
    costs = [measured(function, DEVICE)[1] for _ in range(1 + repeats)]
    first, *rest = (cost["seconds"] for cost in costs)
    peak = max(cost["peak"] for cost in costs) / 1e9
    print(f"{name}: {statistics.median(rest):.4f} s, the first {first:.3f} s, peak {peak:.2f} GB", flush=True)


@torch.inference_mode()
def step(model: InternVLU, name: str, side: int, images=(), pictures: int = 1, steps: int = 6):
    """Print the median time of the sampling steps after the first."""
    context = model.encode(PROMPT, list(images))
    noise = torch.cat([model.noise(side, side, seed) for seed in range(pictures)])
    scales, ticks = model.config.mmdit.guidance(reasoned=False), []

    def tick(*_):
        torch.zeros(1, device=DEVICE).item()  # waits
        ticks.append(time.perf_counter())

    sigmas = flow_sigmas(steps, model.config.mmdit.flow_shift)
    _, cost = measured(lambda: model.sample(context, noise, sigmas, *scales, tick), DEVICE)
    seconds = statistics.median(b - a for a, b in pairwise(ticks))
    print(f"step, {name}, {side} × {side}: {1000 * seconds:.1f} ms, peak {cost['peak'] / 1e9:.2f} GB", flush=True)


def measure_steps(folder: Path, side: int):
    model, photo = InternVLU.from_pretrained(folder, DEVICE), sample_picture(side)
    step(model, "a drawing", side)
    step(model, "four drawings", side, pictures=4)
    step(model, "an edit", side, [photo])
    step(model, "an edit of two pictures", side, [photo, photo])
    latents = model.noise(side, side, 0)
    timed("decoding", lambda: model.decode(latents))
    timed("a drawing of 20 steps", lambda: model.generate(PROMPT, height=side, width=side, steps=20, seed=0))


def measure_text(folder: Path, side: int, tokens: int = 96):
    """With prompts of different lengths, as people write them: libraries prepare kernels for each new shape."""
    model = InternVLU.from_pretrained(folder, DEVICE)
    model.answer(PROMPT, max_new_tokens=2)
    for name, replays in (("without a CUDA graph", False), ("with a CUDA graph", True)):
        model.conditioner.can_replay = lambda replays=replays: replays
        for extra in ("", " and a bird"):
            model.answer(PROMPT + extra, max_new_tokens=1)
            _, one = measured(lambda extra=extra: model.answer(PROMPT + extra, max_new_tokens=1), DEVICE)
            _, all_ = measured(lambda extra=extra: model.answer(PROMPT + extra, max_new_tokens=tokens), DEVICE)
            each = (all_["seconds"] - one["seconds"]) / (tokens - 1)
            print(f"a token {name}: {1000 * each:.2f} ms, the first {1000 * one['seconds']:.1f} ms", flush=True)


def measure_compile(folder: Path, side: int):
    model = InternVLU.from_pretrained(folder, DEVICE)
    step(model, "not compiled", side)
    model.compile()
    timed("the first compiled steps", lambda: step(model, "compiled", side), repeats=1)
    timed("the first at another size", lambda: step(model, "compiled", side // 2), repeats=1)


def measure_offload(folder: Path, side: int):
    for limit in ("5GB", "3GB"):
        model = InternVLU.from_pretrained(folder, DEVICE, device_map="auto", max_memory=limit)
        step(model, f"a drawing, at most {limit} of weights", side)
        del model
        gc.collect()


PARTS = {"steps": measure_steps, "text": measure_text, "compile": measure_compile, "offload": measure_offload}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"{', '.join(sorted(unknown))} is no part; there are {', '.join(PARTS)}")
    print(machine(), torch.__version__)
    for part in options.parts or PARTS:
        PARTS[part](options.folder, options.side)


if __name__ == "__main__":
    main()
