"""Training divided among processes: the same run as in one process, and checkpoints for any number of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from internvlu_train.loop import Run
from internvlu_train.settings import changed
from internvlu_train.storage import Networks
from internvlu_train.toy.presets import CPU
from support.training import ROOT, entries

STEPS, SAVED, KILLED = 10, 4, 6
COMMON = [f"steps={STEPS}", "samples=24", "batch=2", "autocast=false", "warmup=0", f"save_every={SAVED}", "ema=0.9"]
COMMON += ["decay=0.0", "sides=[[64,64]]"]
# A text stage, a picture stage and the unified one, in which questions, drawings, edits and reasoning take turns.
STAGES = {
    "mllm": [*COMMON, "learning_rate=1e-3"],
    "stage1": [*COMMON, "learning_rate=1e-3", "checkpointing=true"],
    "stage3": [*COMMON, "learning_rate=1e-3"],
}


@pytest.fixture(scope="module")
def runs(awake_checkpoint, tmp_path_factory) -> Path:
    """The folders "alone" of a process with four micro-batches a step, and "killed" of two with two each."""
    folder = tmp_path_factory.mktemp("sharded")
    for name, changes in STAGES.items():
        Run(changed(CPU[name], [*changes, "accumulate=4"]), awake_checkpoint, folder / "alone" / name).train()
    divided = {name: [*changes, "accumulate=2", "sharded=true"] for name, changes in STAGES.items()}
    (folder / "stages.json").write_text(json.dumps(divided), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests/support/sharded_runs.py"), str(folder / "stages.json"), str(awake_checkpoint)]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"}
    if os.name == "nt":
        environment["USE_LIBUV"] = "0"  # torch for Windows may be built without it, and is then not told by itself
    command = [*launch, *script, str(folder / "divided")]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_take_the_steps_of_one(runs, name):
    alone, divided = (entries(runs / kind / name) for kind in ("alone", "divided"))
    assert len(alone) == len(divided) == STEPS
    for one, two in zip(alone, divided, strict=True):
        kinds = [key for key in ("loss", "text", "flow", "norm") if key in one]
        assert {key: two[key] for key in kinds} == pytest.approx({key: one[key] for key in kinds}, rel=1e-5)
    ends = [Networks(runs / kind / name / "checkpoint").state_dict() for kind in ("alone", "divided")]
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-5) for key in ends[0])
