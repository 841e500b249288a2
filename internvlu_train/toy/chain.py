"""All stages of a chain, one after the other, to a checkpoint that is ready to be used."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from internvlu_core.errors import InputError

from ..loop import Run, progress
from ..settings import Stage
from ..storage import replaced
from .resident import Makers, ResidentFeed

AHEAD = 2  # stages whose examples are made while one is trained


def train_all(runs: Path, stages: dict[str, Stage], base: Path, resident: bool):
    """Train the stages that are not finished, each from the one before, in RUNS/STAGE.

    base: the checkpoint that the first starts from. resident: hold each stage's data on the device (ResidentFeed),
    instead of a cache on the disk.
    """
    starts = dict(zip(stages, [base, *(runs / name / "checkpoint" for name in stages)], strict=False))
    left = [name for name, stage in stages.items() if not is_finished(runs / name, stage)]
    makers = Makers(base) if resident and left else None
    asked: set[str] = set()
    for number, name in enumerate(left):
        tqdm.write(f"{name}: stage {list(stages).index(name) + 1} of {len(stages)}")
        for later in left[number : number + AHEAD + 1] if makers else ():
            if later not in asked:
                makers.ask(stages[later])
                asked.add(later)
        make_feed = partial(ResidentFeed, makers) if makers else None
        Run(stages[name], starts[name], runs / name, make_feed=make_feed).train()
    if makers:
        makers.close()


def is_finished(folder: Path, stage: Stage) -> bool:
    """Whether the stage's run in this folder has taken all its steps, or its time, and written its checkpoint."""
    if not (folder / "checkpoint").is_dir() or not (folder / "state.pt").is_file():
        return False
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
