"""Training: LoRA adapters, the released model on real data, and in the repository also every stage of the toy model.

LoRA:

    python -m internvlu_train lora RUNS --base CHECKPOINT --pictures FOLDER

trains an adapter on the pictures of a folder. NAME.png has its caption in NAME.txt. For an edit, NAME.txt holds the
instruction, NAME.before.png the picture before it and NAME.png the picture after it. The adapter is for the MMDiT;
--set 'trained=["vlm.language_model."]' makes one for the language model. ComfyUI's LoraLoader reads the result,
RUNS/lora/lora.safetensors.

The released model, on real data:

    accelerate launch -m internvlu_train stage3 RUNS --preset released --base CHECKPOINT --data FOLDER=4 --data SHARDS=1

--data names a folder with metadata.jsonl (as diffusers and ai-toolkit write it), WebDataset shards, or a folder of
pictures and texts, with its share. The stages are stage1, stage2 and stage3 of the report, understand and finetune.
It divides the model among the GPUs. A sample that cannot be used ends the command; --skip-bad leaves it out, and
lists it in RUNS/STAGE/bad.jsonl.

The toy model, from nothing to a checkpoint and its scores, RUNS/checkpoint and RUNS/scores.json:

    python -m internvlu_train toy RUNS --preset gpu

With --base CHECKPOINT it begins there, with stages that teach more pictures and sizes. --minutes divides so much time
between the stages; by default the preset cpu takes 12 hours, gpu 20 minutes. A command that was stopped continues where
it was. One command per stage:

    python -m internvlu_train new RUNS
    python -m internvlu_train vae RUNS
    python -m internvlu_train vae-smooth RUNS         then vae-decoder, mllm, search, stage0, stage1, words, …

A stage starts from the checkpoint of the previous stage in the same folder RUNS. A command that was stopped continues
from its last saved step. For several GPUs put `accelerate launch` in front of `-m`. On a CPU `accelerate launch` starts
a single process; start one process per core instead, which `toy` does by itself:

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m internvlu_train stage1 RUNS

The toy networks are too small to gain from threads (on 2 cores a step of stage 1 took 0.44 s with two threads, 0.29 s
with one).
"""

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from internvlu_core.batch.results import locked
from internvlu_core.errors import CheckpointError, InputError

from .loop import Run, check_saved
from .released import BEFORE, STAGES
from .repository import has_part, repository_module
from .settings import LORA, LoraStage, Stage, changed

LORA_STAGE, NEW, TOY, RELEASED = "lora", "new", "toy", "released"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        check_options(options)
        if options.stage == NEW:
            write_new(options, options.set)
        elif options.stage == TOY:
            train_toy(options)
        else:
            stage = with_data(chosen_stage(options), options)
            arguments = stage, starting_point(options), options.runs / options.stage, DTYPES[options.dtype]
            write(*arguments) if options.write else train(*arguments)
    except (CheckpointError, InputError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the last saved step in {options.runs}", file=sys.stderr)
        return 130
    return 0


def check_options(options):
    """Raises InputError for an option that the stage would not heed."""
    only = {"minutes": [TOY], "pictures": [LORA_STAGE]}
    never = {"write": [TOY, NEW], "data": [TOY, NEW], "skip_bad": [TOY, NEW]}
    for name, stages in only.items():
        if getattr(options, name) is not None and options.stage not in stages:
            raise InputError(f"--{name} is for {' and '.join(stages)}, not for {options.stage}")
    for name, stages in never.items():
        if getattr(options, name) and options.stage in stages:
            raise InputError(f"{options.stage} has no --{name.replace('_', '-')}")


def write(stage: Stage, base: Path, folder: Path, dtype: torch.dtype):
    """Write the result of a run as it is, beside the run itself if it goes on. Raises InputError if it has none."""
    check_saved(folder, stage)  # before all data is read
    Run(stage, base, folder, dtype).write()


def train(stage: Stage, base: Path, folder: Path, dtype: torch.dtype):
    with alone(folder):
        Run(stage, base, folder, dtype).train()


def alone(folder: Path):
    """A context in which no other command trains in this folder. Raises InputError if one does."""
    return locked(folder, ()) if int(os.environ.get("RANK", 0)) == 0 else nullcontext()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m internvlu_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*stage_names(), TOY] if has_part("toy") else stage_names()
    parser.add_argument(
        "stage", help=f"one of {', '.join(names)}; with --preset released {', '.join((*STAGES, LORA_STAGE))}"
    )
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of all runs; each stage has a folder in it")
    parser.add_argument("--preset", choices=[*LORA, RELEASED], default="cpu")
    parser.add_argument("--base", type=Path, help="the checkpoint to start from instead of the previous stage's")
    parser.add_argument("--pictures", type=Path, help="of lora: the folder of pictures and texts")
    parser.add_argument(
        "--data", action="append", default=[], metavar="PATH[=SHARE]", help="a source of samples; may be repeated"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out samples that cannot be used, and list them")
    parser.add_argument("--write", action="store_true", help="only write the result of the steps taken so far")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="change a setting, for example steps=10"
    )
    parser.add_argument("--minutes", type=float, help="of toy: how long all stages together train")
    parser.add_argument("--count", type=int, default=500, help="of toy: unseen prompts of each task in its scores")
    parser.add_argument(
        "--processes",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="of toy: that train on a CPU, each with the batch of the stage, and that evaluate; default: %(default)s",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights that are written")
    return parser.parse_args(arguments)


def chosen_stage(options) -> Stage:
    if options.stage == LORA_STAGE:
        return lora_stage(options)
    return released_stage(options) if options.preset == RELEASED else toy_stage(options)


def lora_stage(options) -> LoraStage:
    if options.pictures is None and not options.data:
        raise InputError("lora needs --pictures, a folder of pictures and texts, or --data")
    if options.pictures is not None and options.data:
        raise InputError("lora takes --pictures or --data, not both")
    if options.pictures is not None and options.skip_bad:
        raise InputError("--skip-bad is for --data: of --pictures every picture must be usable")
    preset = LORA["gpu" if options.preset == RELEASED else options.preset]
    return replace(changed(preset, options.set), pictures=str(options.pictures or ""))


def released_stage(options) -> Stage:
    if options.stage not in STAGES:
        raise InputError(f"the preset has no stage {options.stage!r}; it has {', '.join((*STAGES, LORA_STAGE))}")
    if not options.data:
        raise InputError(f"{options.stage} needs --data: a folder with metadata.jsonl, or WebDataset shards")
    return changed(STAGES[options.stage], options.set)


def with_data(stage: Stage, options) -> Stage:
    """The stage with the sources of --data. A share behind the last "=" is a whole number; without one it is 1."""
    sources = []
    for text in options.data:
        path, _, share = text.rpartition("=")
        if not path or not share.isdecimal():
            path, share = text, "1"
        sources.append((path, int(share)))
    if not sources:
        return stage
    return replace(stage, data=tuple(sources), skip_bad=options.skip_bad or stage.skip_bad)


def toy_stage(options) -> Stage:
    stages = toy_presets(options).PRESETS[options.preset]
    if options.stage not in stages:
        raise InputError(f"there is no stage {options.stage!r}; there are {', '.join(stage_names())}")
    return changed(stages[options.stage], options.set)


def starting_point(options) -> Path:
    """The checkpoint that a stage starts from: --base, or what the stage before it wrote."""
    if options.base:
        return options.base
    if options.preset == RELEASED and options.stage in BEFORE:
        return options.runs / BEFORE[options.stage] / "checkpoint"
    if options.preset == RELEASED or (options.stage == LORA_STAGE and not has_part("toy")):
        what = "the adapter is for" if options.stage == LORA_STAGE else "training starts from"
        raise InputError(f"{options.stage} needs --base: the checkpoint that {what}")
    stages = stage_names()
    return options.runs / stages[stages.index(options.stage) - 1] / "checkpoint"


def write_new(options, changes: list[str]):
    """A checkpoint with random weights, for the toy model's first stage. changes: to its sizes."""
    if options.preset == RELEASED:
        raise InputError("checkpoints of the toy have the presets cpu and gpu")
    sizes = changed(toy_presets(options).SIZES[options.preset], changes)
    fresh = repository_module("toy.fresh", "new")
    fresh.write_new(options.runs / NEW / "checkpoint", sizes)


def train_toy(options):
    """The chain of stages from nothing or from --base, its checkpoint in bfloat16, and its scores."""
    if options.preset == RELEASED:
        raise InputError("the toy has the presets cpu and gpu")
    presets, chain = toy_presets(options), repository_module("toy.chain", "the toy model")
    evaluation = repository_module("evaluation.__main__", "the toy model")
    base, chains = options.base, presets.PRESETS
    if base:
        chains = presets.WIDER
    else:
        base = options.runs / NEW / "checkpoint"
        if not base.is_dir():
            write_new(options, [])
    stages = {name: changed(stage, options.set) for name, stage in chains[options.preset].items()}
    if options.minutes is not None:
        stages = chain.within(stages, options.minutes)
    with alone(options.runs):
        chain.train_all(options.runs, stages, base, options.preset == "gpu", options.processes)
    last, result = options.runs / list(stages)[-1] / "checkpoint", options.runs / "checkpoint"
    chain.write_as(last, result, torch.bfloat16)
    arguments = ["--dtype", "fp32", "--count", str(options.count), "--processes", str(options.processes)]
    if code := evaluation.main([str(result), *arguments, "--out", str(options.runs / "scores.json")]):
        sys.exit(code)


def stage_names() -> list[str]:
    """What this installation can train, in the order of the toy model's stages."""
    if not has_part("toy"):
        return [LORA_STAGE]
    return [NEW, *repository_module("toy.presets", "the list of stages").PRESETS["cpu"], LORA_STAGE]


def toy_presets(options) -> ModuleType:
    return repository_module("toy.presets", f"the stage {options.stage!r}")


if __name__ == "__main__":
    sys.exit(main())
