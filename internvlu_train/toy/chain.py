"""All stages of a chain, one after the other, to a checkpoint that is ready to be used."""

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

from internvlu_core.errors import CheckpointError, InputError

from ..loop import Run, check_settings, progress
from ..settings import Stage
from ..storage import replaced
from .resident import Makers, ResidentFeed

AHEAD = 2  # stages whose examples are made while one is trained


def train_all(runs: Path, stages: dict[str, Stage], base: Path, resident: bool, processes: int = 1):
    """Train the stages that are not finished, each from the one before, in RUNS/STAGE.

    base: the checkpoint that the first starts from. resident: hold each stage's data on the device (ResidentFeed),
    instead of a cache on the disk. processes: that train together on a CPU, without resident; a step then has so many
    times the samples. Raises InputError if one of them fails.
    """
    starts = dict(zip(stages, [base, *(runs / name / "checkpoint" for name in stages)], strict=False))
    left = [name for name, stage in stages.items() if not is_finished(runs / name, stage, starts[name])]
    makers = Makers(base) if resident and left else None
    asked: set[str] = set()
    for number, name in enumerate(left):
        tqdm.write(f"{name}: stage {list(stages).index(name) + 1} of {len(stages)}")
        for later in left[number : number + AHEAD + 1] if makers else ():
            if later not in asked:
                makers.ask(stages[later])
                asked.add(later)
        arguments = stages[name], starts[name], runs / name
        if makers:
            Run(*arguments, make_feed=partial(ResidentFeed, makers)).train()
        elif processes > 1:
            train_together(processes, *arguments)
        else:
            Run(*arguments).train()
    if makers:
        makers.close()


def train_together(processes: int, *arguments):
    """Train a Run with these arguments in several processes, as torchrun would start them."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    try:
        elastic_launch(config, _train)(*arguments)
    except SignalException as error:  # its own form of Ctrl+C
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise InputError(f"a process that trained {arguments[-1]} failed; see above") from error


def _train(*arguments):
    torch.set_num_threads(1)  # the toy's networks gain nothing from more (__main__)
    try:
        Run(*arguments).train()
    except (CheckpointError, InputError) as error:
        sys.exit(f"error: {error}")


def is_finished(folder: Path, stage: Stage, start: Path) -> bool:
    """Whether the stage's run in this folder has taken all its steps, or its time, and written its checkpoint.

    start: the checkpoint that it begins from. Raises InputError if the run has other settings, or began from another.
    """
    if not (folder / "checkpoint").is_dir() or not (folder / "state.pt").is_file():
        return False
    check_settings(folder, stage, start)
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    return progress(stage, state["step"], state.get("seconds", 0.0)) >= 1


def within(stages: dict[str, Stage], minutes: float) -> dict[str, Stage]:
    """The stages with their minutes scaled so that they are this many together. Raises InputError if they have none."""
    total = sum(stage.minutes for stage in stages.values())
    if minutes <= 0 or not all(stage.minutes for stage in stages.values()):
        raise InputError(f"--minutes is {minutes}, for stages that have {total} minutes together")
    return {name: replace(stage, minutes=stage.minutes * minutes / total) for name, stage in stages.items()}


def write_as(source: Path, folder: Path, dtype: torch.dtype):
    """Copy a checkpoint, with all weights in this dtype."""
    with replaced(folder) as new:
        shutil.copytree(source, new)
        for file in new.glob("*/*.safetensors"):
            tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
