"""One command per stage:

    python -m internvlu_train new RUNS
    python -m internvlu_train vae RUNS
    python -m internvlu_train vae-smooth RUNS         then vae-decoder, mllm, search, stage0, stage1, words, …

    python -m internvlu_train lora RUNS --base CHECKPOINT --pictures FOLDER

teaches an adapter from pictures NAME.png with captions NAME.txt, or with instructions and pictures NAME.before.png that
they were followed on. --set 'trained=["vlm.language_model."]' adapts the language model instead of the MMDiT.

A stage starts from the checkpoint of the stage before it in the same folder RUNS and goes on where it was killed. For
several GPUs put `accelerate launch` in front, and `-m` behind it. On a CPU, where that starts one process only, start
one per core:

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m internvlu_train stage1 RUNS

The networks are too small for threads (on 2 cores a step of stage 1 took 0.44 s with two threads, 0.29 s with one).
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from internvlu_core.errors import CheckpointError, InputError

from . import synthesis
from .data import samples
from .fresh import write_fresh
from .loop import Run
from .settings import PRESETS, SIZES, LoraStage, TextStage, changed
from .storage import replaced

NEW = "new"
ORDER = (NEW, *PRESETS["cpu"])
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENIZER_SAMPLES = 4000


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        settings = SIZES[options.preset] if options.stage == NEW else PRESETS[options.preset][options.stage]
        settings = changed(settings, options.set)
        if isinstance(settings, LoraStage):
            if options.pictures is None:
                raise InputError("lora needs --pictures: a folder of pictures and texts")
            settings = replace(settings, pictures=str(options.pictures))
        target = options.runs / options.stage
        if options.stage == NEW:
            write_new(target / "checkpoint", settings)
        else:
            base = options.base or options.runs / ORDER[ORDER.index(options.stage) - 1] / "checkpoint"
            run = Run(settings, base, target, DTYPES[options.dtype])
            run.write() if options.write else run.train()
    except (CheckpointError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m internvlu_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=ORDER)
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of all stages; each gets one in it")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--base", type=Path, help="start from this checkpoint instead of the previous stage's")
    parser.add_argument("--pictures", type=Path, help="of lora: a folder of pictures and texts")
    parser.add_argument("--write", action="store_true", help="only write the result of the steps so far")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="change a setting, e.g. steps=10"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights that are written")
    return parser.parse_args(arguments)


def write_new(folder: Path, sizes):
    """A fresh checkpoint, whose tokenizer is made for the toy world's texts."""
    tasks = sorted({(task, 1) for tasks in synthesis.TASKS.values() for task in tasks})
    made = samples(TextStage(trained=(), tasks=tuple(tasks), samples=TOKENIZER_SAMPLES))
    texts = [text for sample in made for text in (sample.prompt, sample.words)]
    with replaced(folder) as new:
        write_fresh(new, sizes, texts)


if __name__ == "__main__":
    sys.exit(main())
