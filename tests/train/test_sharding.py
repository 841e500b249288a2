"""Training divided among processes: the same run as in one process, and checkpoints for any number of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from internvlu_core import InputError
from internvlu_train import sharding
from internvlu_train.loop import Run, share_of
from internvlu_train.settings import LoraStage, changed
from internvlu_train.storage import Networks
from internvlu_train.toy.presets import CPU
from support.training import ROOT, entries

STEPS, SAVED, KILLED = 6, 3, 5
SHARDED = ["accumulate=2", "sharded=true"]
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
    """The folders "alone", of a process with four micro-batches a step, and "divided", of two with two each.

    "divided/killed" is stage3, ended as if killed.
    """
    folder = tmp_path_factory.mktemp("sharded")
    for name, changes in STAGES.items():
        Run(changed(CPU[name], [*changes, "accumulate=4"]), awake_checkpoint, folder / "alone" / name).train()
    divided = {name: [name, [*changes, *SHARDED], None] for name, changes in STAGES.items()}
    divided["killed"] = ["stage3", [*STAGES["stage3"], *SHARDED], KILLED]
    (folder / "runs.json").write_text(json.dumps(divided), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests/support/sharded_runs.py"), str(folder / "runs.json"), str(awake_checkpoint)]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
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


def test_one_process_goes_on_with_a_killed_run_of_two(runs, awake_checkpoint):
    stage = changed(CPU["stage3"], [*STAGES["stage3"], *SHARDED])
    folder = runs / "divided" / "killed"
    run = Run(stage, awake_checkpoint, folder)
    assert run.step == SAVED and run.together == 4 and run.accumulate == 4
    run.train()
    alone, resumed = entries(runs / "alone" / "stage3"), entries(folder)
    assert [entry["loss"] for entry in resumed] == pytest.approx([entry["loss"] for entry in alone], rel=1e-5)
    ends = [Networks(end / "checkpoint").state_dict() for end in (runs / "alone" / "stage3", folder)]
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-5) for key in ends[0])


def test_the_state_of_a_fused_optimizer_is_read_onto_its_device(tmp_path, monkeypatch):
    """As on a GPU, where the number of steps on another device ends the first step."""
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    tensors = {"model": {"w": weight.detach()}, "ema": {}, "moments": sharding.moments([optimizer], {"w": weight})}
    sharding.save(tmp_path / "state", tensors, {"step": 1})
    monkeypatch.setattr(sharding.dcp, "load", lambda *arguments, **options: None)
    for fused, device in ((True, "meta"), (None, "cpu")):
        resumed = torch.nn.Parameter(torch.ones(2, 3, device="meta"))
        other = torch.optim.AdamW([resumed])
        other.defaults["fused"] = fused
        sharding.load(tmp_path / "state", {"w": resumed}, {}, [other])
        found = {name: moment.device.type for name, moment in other.state[resumed].items()}
        assert found == {"step": device, "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_a_state_that_was_being_replaced_is_not_lost(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    assert not sharding.is_saved(folder)
    sharding.save(folder, {"model": {"w": torch.ones(2)}}, {"step": 1})

    def kill(path, target):
        if target == folder:
            raise KeyboardInterrupt
        return rename(path, target)

    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        with pytest.raises(KeyboardInterrupt):
            sharding.save(folder, {"model": {"w": torch.zeros(2)}}, {"step": 2})
    assert not folder.exists() and sharding.is_saved(folder)
    sharding.recover(folder)
    weight = torch.nn.Parameter(torch.zeros(2))
    assert sharding.load(folder, {"w": weight}, {}, []) == {"step": 1} and weight.tolist() == [1, 1]
    sharding.recover(folder)
    assert folder.exists()


def test_gradients_are_averaged_in_few_messages(monkeypatch):
    class Doubling:
        """In place of an accelerator: another process with three times the gradients of this one."""

        messages = 0

        def reduce(self, tensor, reduction):
            assert reduction == "mean"
            self.messages += 1
            return (tensor + 3 * tensor) / 2

    monkeypatch.setattr(sharding, "BUCKET", 8)
    shapes = [(2, 3), (2,), (3, 4), (), (5,)]  # the third alone is too large for a message
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in shapes]
    gradients.append(torch.ones(2, dtype=torch.bfloat16))
    before = [gradient.clone() for gradient in gradients]
    accelerator = Doubling()
    sharding.average_gradients(gradients, accelerator)
    assert accelerator.messages == 4
    assert all(torch.equal(after, 2 * one) for after, one in zip(gradients, before, strict=True))


def test_a_number_of_processes_that_cannot_share_a_step_is_refused():
    with pytest.raises(InputError, match=r"3 micro-batches, which 2 processes cannot share"):
        share_of(3, 2)
    assert share_of(4, 2) == 2


def test_adapters_are_not_divided(awake_checkpoint, pictures, tmp_path):
    stage = LoraStage(trained=("mmdit.",), pictures=str(pictures), sharded=True)
    with pytest.raises(InputError, match="sharded=false"):
        Run(stage, awake_checkpoint, tmp_path)


def test_stage_3_of_the_released_sizes_fits_eight_gpus_of_80_gb(monkeypatch):
    from benchmarks import training

    monkeypatch.setattr(training, "activations", lambda stage, side: 0)
    one, eight = (training.need(training.STAGES["stage3"], processes, 512) for processes in (1, 8))
    assert 80e9 < one.total < 90e9 and eight.total < 0.5 * 80e9
    assert sum(eight.state.values()) == pytest.approx(sum(one.state.values()) / 8, rel=1e-3)
