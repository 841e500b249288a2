"""Side-by-side benchmarks; results are JSON lines on standard output and in --results.

    python -m benchmarks setup                                   make an environment for the official code
    python -m benchmarks NAME --official CHECKOUT --comfyui DIR  one comparison: load, stages, end-to-end, comfyui, vae,
                                                                 decode, many, many-pictures, batch, scaling, memory,
                                                                 savings, fp8, quantisation, sixteen
    python -m benchmarks all  --official CHECKOUT --comfyui DIR  all comparisons, and the tables
    python -m benchmarks tables                                  write the results into BENCHMARKS.md

Run it in the pack's environment (`.cache/venv/bin/python` of scripts/dev.py), on a machine that does nothing else.
Weights are random, of the released widths; tests/support/scaled_checkpoints.py has the scales.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import torch

from . import tables
from .comparisons import NAMES, ROOT, official_python
from .harness import BenchmarkError, Run

# The official requirements, without torch, of which they pin an old build for CUDA only.
OFFICIAL_REQUIREMENTS = ["transformers==4.52.3", "diffusers==0.35.1", "accelerate", "timm", "einops", "pillow", "numpy"]
# What `all` runs: (comparison, options), with weights and a dtype that suit the comparison and the device.
CPU_PLAN = [
    ("load", {}),
    ("stages", {}),
    ("end-to-end", {"steps": 10}),  # each is a tenth of a released one
    ("comfyui", {"repeats": 2}),
    ("vae", {"repeats": 2}),
    ("decode", {"scale": "text", "dtype": "bfloat16", "repeats": 2, "tokens": 8}),
    ("decode", {"scale": "narrow", "tokens": 128}),
    ("many", {"dtype": "bfloat16", "tokens": 24}),
    ("many-pictures", {"size": 256, "steps": 4}),
    ("batch", {}),
    ("scaling", {}),
    ("memory", {"scale": "released", "dtype": "bfloat16"}),
    ("savings", {"scale": "toy", "size": 64}),
    ("fp8", {}),
    ("quantisation", {"scale": "toy"}),
    ("sixteen", {"scale": "toy"}),
]
# The options that a comparison uses, for the command in its results; by default only the repeats.
OPTIONS = {
    "stages": ["repeats", "tokens"],
    "end-to-end": ["end_to_end_repeats", "steps", "tokens"],
    "decode": ["repeats", "tokens"],
    "many": ["repeats", "tokens"],
    "many-pictures": ["repeats", "steps"],
    "batch": ["rows"],
    "quantisation": ["steps", "count"],
}
CUDA_PLAN = [(name, {"scale": "released", "size": 1024, "dtype": "bfloat16"}) for name in NAMES if name != "savings"]


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        if options.name == "setup":
            set_up(options.work, options.torch)
        elif options.name == "tables":
            tables.update(ROOT / "BENCHMARKS.md", tables.read(options.results))
        elif options.name == "all":
            for name, changes in CUDA_PLAN if options.device.startswith("cuda") else CPU_PLAN:
                compare(name, argparse.Namespace(**vars(options) | changes))
            tables.update(ROOT / "BENCHMARKS.md", tables.read(options.results))
        else:
            compare(options.name, options)
    except (BenchmarkError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def compare(name: str, options):
    """Run one comparison. Its results replace earlier ones of the same comparison on the same kind of device."""
    print(f"{name}, {options.scale}, {options.dtype} …", file=sys.stderr)
    options.results.mkdir(parents=True, exist_ok=True)
    kind = options.device.partition(":")[0]
    target = options.results / f"{name}-{options.scale}-{options.dtype}-{kind}.jsonl"
    fresh = options.work / target.name
    fresh.unlink(missing_ok=True)
    used = ["scale", "dtype", "device", "size", *OPTIONS.get(name, ["repeats"])]
    used += ["quick"] if options.quick else []
    given = (f"--{key.replace('_', '-')} {vars(options)[key]}" for key in used)
    command = " ".join(["python -m benchmarks", name, *given])
    run = Run(options.work, fresh, options.device, options.dtype, options.scale, command)
    NAMES[name](run, options)
    shutil.move(fresh, target)
    print(tables.render(run.lines), file=sys.stderr)


def set_up(work: Path, requirement: str):
    """Make a virtual environment for the official code. torch is first, so that no other package chooses its build."""
    python = official_python(work)
    venv.create(python.parents[1], clear=True, with_pip=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-compile"]
    subprocess.run([*pip, requirement], check=True)
    # torch is named again, so that pip chooses a torchvision that fits it.
    subprocess.run([*pip, requirement, "torchvision", *OFFICIAL_REQUIREMENTS], check=True)
    print(python)


def parser() -> argparse.ArgumentParser:
    cuda = torch.cuda.is_available()
    root = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root.add_argument("name", choices=["setup", "all", "tables", *NAMES])
    root.add_argument("--official", type=Path, metavar="DIR", help="checkout of the official code")
    root.add_argument("--official-python", type=Path, metavar="FILE", help="default: the environment that `setup` made")
    root.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), metavar="DIR")
    root.add_argument("--work", type=Path, default=ROOT / ".cache" / "benchmarks", metavar="DIR", help="weights, logs")
    root.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    root.add_argument("--device", default="cuda" if cuda else "cpu")
    root.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16" if cuda else "float32")
    root.add_argument("--scale", default="shallow", help="of the random weights: scripts/random_checkpoint.py")
    root.add_argument("--size", type=int, default=512, help="of the pictures, in pixels a side")
    root.add_argument("--steps", type=int, default=20, help="of end-to-end")
    root.add_argument("--rows", type=int, default=48, help="of batch, each of about a second")
    root.add_argument("--tokens", type=int, default=32, help="of text")
    root.add_argument("--repeats", type=int, default=3)
    root.add_argument("--count", type=int, default=20, help="of quantisation: prompts a kind, questions a domain")
    root.add_argument("--quick", action="store_true", help="quantisation: as little as shows that it works")
    root.add_argument("--end-to-end-repeats", type=int, default=1)
    root.add_argument("--torch", default="torch==2.13.0", help="the requirement that setup installs")
    return root


if __name__ == "__main__":
    sys.exit(main())
