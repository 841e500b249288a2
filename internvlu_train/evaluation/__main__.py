"""`python -m internvlu_train.evaluation CHECKPOINT`: scores on the synthetic world as JSON, or outputs for a public
benchmark.

Scores go to standard output or to --out, progress to standard error. Bad input gives one line and the exit code 2,
Ctrl+C the exit code 130.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from internvlu_core.batch import ModelOptions
from internvlu_core.cli import RUN_DTYPES, Progress, ray_options, worker_arguments
from internvlu_core.errors import CheckpointError, InputError
from internvlu_core.pipeline import InternVLU

from ..toy.world import LEAST_SIDE
from .benchmarks import BENCHMARKS, Run
from .rows import Runner
from .sampling import Settings
from .toy import TASKS, evaluate, evaluate_in
from .workers import Workers


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        check(options)
        if options.benchmark:
            run_benchmark(options)
        else:
            evaluate_toy(options)
    except (CheckpointError, InputError, FloatingPointError, OSError) as error:
        print(f"internvlu_train.evaluation: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("internvlu_train.evaluation: cancelled", file=sys.stderr)
        return 130
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


def evaluate_toy(options):
    if options.workers is None and options.address is None:  # the fastest on one device: batches of equal lengths
        return score(model_options(options).load(), options)
    if options.processes > 1:
        raise InputError("give --processes or --workers, not both")
    with Progress(0, "row") as progress, tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "scores.json"
        score(Workers(runner(options, out, progress, options.batch)), options)


def score(model: InternVLU | Workers, options):
    config = model.config.mmdit
    size = options.width or config.image_width, options.height or config.image_height
    factor = model.config.size_factor
    if min(size) < LEAST_SIDE or any(side % factor for side in size):
        wanted = f"sides must be multiples of {factor}, from {LEAST_SIDE} pixels on"
        raise InputError(f"pictures of {size[0]}×{size[1]} cannot be judged: {wanted}")
    settings = Settings(size, options.steps, options.batch, options.all_scale, options.partial_scale)
    start = time.monotonic()
    if options.processes > 1:
        results = evaluate_in(options.processes, model_options(options).load, options.tasks, options.count, settings)
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


def model_options(options) -> ModelOptions:
    return ModelOptions(options.checkpoint, options.device, RUN_DTYPES[options.dtype])


def run_benchmark(options):
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
    with Progress(0, "row") as progress:
        runner(options, options.out, progress)(BENCHMARKS[name](run))


def runner(options, out: Path, progress: Progress, together: int = Runner.together) -> Runner:
    work = out.with_name(f"{out.name}.unfinished")
    return Runner(model_options(options), work, ray_options(options), together, progress.rows)


def parser() -> argparse.ArgumentParser:
    description = __doc__.partition("\n\n")[0]
    root = argparse.ArgumentParser(prog="python -m internvlu_train.evaluation", description=description)
    root.add_argument("checkpoint")
    root.add_argument("--device", help="default: a GPU if there is one")
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
    worker_arguments(root.add_argument_group("workers", "as of `internvlu batch`; a run that was ended goes on"))
    return root


if __name__ == "__main__":
    sys.exit(main())
