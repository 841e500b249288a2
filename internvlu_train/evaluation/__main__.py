"""`python -m internvlu_train.evaluation CHECKPOINT`: scores on the synthetic world as JSON, or outputs for a public
benchmark.

Scores go to standard output or to --out, progress to standard error. Bad input gives one line and the exit code 2.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from internvlu_core.cli import RUN_DTYPES
from internvlu_core.errors import CheckpointError, InputError
from internvlu_core.pipeline import InternVLU

from ..toy.world import LEAST_SIDE
from .benchmarks import BENCHMARKS, Run
from .sampling import Settings
from .toy import TASKS, evaluate, evaluate_in


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        check(options)
        open_model = partial(InternVLU.from_pretrained, options.checkpoint, options.device, RUN_DTYPES[options.dtype])
        if options.benchmark:
            run_benchmark(open_model(), options)
        else:
            score(open_model, options)
    except (CheckpointError, InputError, FloatingPointError, OSError) as error:
        print(f"internvlu_train.evaluation: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def check(options):
    """Refuse what would otherwise fail only after the model was loaded, or after everything was drawn."""
    if options.count < 1:
        raise InputError(f"--count is {options.count}; it must be at least 1")
    if options.benchmark and not options.out:
        raise InputError("--benchmark needs --out: where its pictures or answers go")
    if options.benchmark and options.benchmark[0] not in BENCHMARKS:
        raise InputError(f"the benchmark {options.benchmark[0]!r} is unknown; there are {', '.join(BENCHMARKS)}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)


def score(open_model: Callable[[], InternVLU], options):
    model = open_model()
    config = model.config.mmdit
    size = options.width or config.image_width, options.height or config.image_height
    factor = model.config.size_factor
    if min(size) < LEAST_SIDE or any(side % factor for side in size):
        wanted = f"sides must be multiples of {factor}, from {LEAST_SIDE} pixels on"
        raise InputError(f"pictures of {size[0]}×{size[1]} cannot be judged: {wanted}")
    settings = Settings(size, options.steps, options.batch, options.all_scale, options.partial_scale)
    start = time.monotonic()
    if options.processes > 1:
        results = evaluate_in(options.processes, open_model, options.tasks, options.count, settings)
    else:
        results = evaluate(
            model, options.tasks, options.count, settings, lambda task: print(f"evaluating {task} …", file=sys.stderr)
        )
    report = {
        "checkpoint": Path(options.checkpoint).name,
        "count": options.count,
        "size": size,
        "steps": options.steps,
        "all_scale": options.all_scale,
        "partial_scale": options.partial_scale,
        "device": str(model.device),
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start, 1),
        "scores": results,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def run_benchmark(model: InternVLU, options):
    name, source = options.benchmark
    run = Run(
        Path(source),
        options.out,
        options.images,
        (options.width, options.height),
        options.samples,
        options.steps,
        options.seed,
        options.max_tiles,
    )
    BENCHMARKS[name](model, run)


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m internvlu_train.evaluation", description=__doc__.splitlines()[0])
    root.add_argument("checkpoint")
    root.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    root.add_argument("--dtype", choices=RUN_DTYPES, default="auto", help="of the weights; auto: the stored one")
    root.add_argument("--out", type=Path, help="the JSON file; with --benchmark a folder (ocrbench: a file)")
    root.add_argument("--steps", type=int, default=20)
    root.add_argument("--width", type=int)
    root.add_argument("--height", type=int)
    toy = root.add_argument_group("synthetic world")
    toy.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    toy.add_argument("--count", type=int, default=500, help="held-out samples of each task, kind or domain")
    toy.add_argument("--processes", type=int, default=1, help="between which the parts of the tasks are divided")
    toy.add_argument("--batch", type=int, default=50, help="pictures that are drawn at once")
    toy.add_argument("--all-scale", type=float)
    toy.add_argument("--partial-scale", type=float)
    public = root.add_argument_group("public benchmarks")
    public.add_argument("--benchmark", nargs=2, metavar=("NAME", "FILES"), help=f"one of {', '.join(BENCHMARKS)}")
    public.add_argument("--images", type=Path, help="the folder of the pictures, if it is not that of the questions")
    public.add_argument("--samples", type=int, default=4, help="pictures per prompt")
    public.add_argument("--seed", type=int, default=0)
    public.add_argument("--max-tiles", type=int, default=1, help="ViT tiles per picture; 12 for documents")
    return root


if __name__ == "__main__":
    sys.exit(main())
