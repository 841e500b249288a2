"""A run of a stage: its optimizers, its files, and that a killed or a divided run is the same run."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from accelerate import Accelerator

from internvlu_core import CheckpointError, InputError, InternVLU
from internvlu_core.checkpoints.convert import convert
from internvlu_core.models import operations
from internvlu_train import objectives
from internvlu_train.loop import Run, learning_rate
from internvlu_train.muon import Muon
from internvlu_train.plot import POINTS, curve
from internvlu_train.settings import TextStage, changed
from internvlu_train.storage import Networks
from internvlu_train.toy.presets import CPU
from support.tensors import relative
from support.training import LEARN, ROOT, entries, picture_stage


def test_the_learning_rate_warms_up_and_decays():
    stage = picture_stage(steps=100, warmup=10, decay=0.5, learning_rate=1.0)
    rates = [learning_rate(stage, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:51] == [1.0] * 42 and rates[75] == pytest.approx(0.5) and 0 < rates[-1] < 0.021


def test_a_run_ends_after_its_minutes_with_its_learning_rate_at_zero(fresh, tmp_path):
    stage = picture_stage(steps=100, warmup=0, decay=0.5, learning_rate=1.0, minutes=1.0)
    assert [learning_rate(stage, 1, seconds) for seconds in (0, 30, 45, 60)] == [1.0, 1.0, 0.5, 0.0]
    assert learning_rate(stage, 75, 30) == pytest.approx(0.5)
    stage = picture_stage(steps=10**6, minutes=1e-3)
    Run(stage, fresh, tmp_path).train()
    assert 0 < len(entries(tmp_path)) < 1000 and (tmp_path / "checkpoint").is_dir()
    again = Run(stage, fresh, tmp_path)
    again.train()
    assert again.step == len(entries(tmp_path)) > 0


def test_muon_turns_hidden_matrices_and_adamw_moves_the_rest(awake_checkpoint, tmp_path):
    """Muon's update has one size in all directions, by which its elements are as large as AdamW's usually are, 0.2
    learning rates; AdamW's first is the learning rate everywhere."""
    run = Run(picture_stage(muon=True, warmup=0, learning_rate=1e-3), awake_checkpoint, tmp_path / "run")
    before = {name: parameter.detach().clone() for name, parameter in run.trained.items()}
    run._take_step()
    steps = {name: (parameter.detach() - before[name]) / 1e-3 for name, parameter in run.trained.items()}
    turned = [name for name in steps if name.endswith((".to_q.weight", "img_mlp.net.0.proj.weight"))]
    assert len(turned) == 4
    for name in turned:
        singular = torch.linalg.svdvals(steps[name]) / (0.2 * max(steps[name].shape) ** 0.5)
        assert singular[:8].min() > 0.7 and singular.max() < 1.3, name  # of a gradient's own the first is far above
    for name in ("mmdit.img_in.weight", "mmdit.transformer_blocks.0.img_mod.1.weight", "mmdit.proj_out.bias"):
        assert steps[name].abs().median() == pytest.approx(1, abs=0.01), name


@pytest.mark.parametrize("on", [False, True])
def test_bfloat16_is_for_machines_that_have_it(fresh, tmp_path, monkeypatch, on):
    monkeypatch.setattr(operations, "CPU_BFLOAT16", on)
    run = Run(picture_stage(autocast=True), fresh, tmp_path)
    seen, original = [], objectives.losses
    monkeypatch.setattr(
        objectives, "losses", lambda *args: seen.append(torch.is_autocast_enabled("cpu")) or original(*args)
    )
    run._accumulate()
    assert seen == [on]


def test_muon_is_torchs_muon_for_many_matrices_at_once():
    """Three steps of matrices of three shapes, in both orientations; torch computes the iteration in bfloat16."""
    torch.manual_seed(0)
    starts = [torch.randn(shape) for shape in ((8, 24), (24, 8), (8, 24), (16, 16))]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    kept = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizers = Muon(ours, lr=0.1, weight_decay=0.1), kept
    for _ in range(3):
        for pair in zip(ours, theirs, strict=True):
            pair[0].grad = pair[1].grad = torch.randn_like(pair[0])
        for optimizer in optimizers:
            optimizer.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        assert relative(one.detach() - start, other.detach() - start) < 0.02
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))])


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["pictures", "pictures by muon", "words"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(fresh, tmp_path, monkeypatch, kind):
    """At a random step, between two saves. In the middle of a step everything that counts is still the saved state."""
    settings = {"tasks": (("draw", 2), ("edit", 1)), "samples": 9, "steps": 8, "batch": 3, "save_every": 3, "ema": 0.9}
    stage = picture_stage(**settings, drop_prompt=0.2, drop_all=0.2, muon="muon" in kind)
    if kind == "words":
        stage = TextStage(trained=("vlm.",), **{**LEARN, **settings, "tasks": (("ask", 2), ("draw", 1))})
    Run(stage, fresh, tmp_path / "whole").train()
    at = random.randrange(1, 8)

    def losses(networks, batch, stage, step, original=objectives.losses):
        if step == at:
            raise Killed
        return original(networks, batch, stage, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(objectives, "losses", losses)
        Run(stage, fresh, tmp_path / "killed").train()
    resumed = Run(stage, fresh, tmp_path / "killed")
    assert resumed.step == at // 3 * 3
    resumed.train()
    whole, killed = entries(tmp_path / "whole"), entries(tmp_path / "killed")
    assert [entry["step"] for entry in killed] == list(range(1, 9))
    assert [entry["loss"] for entry in killed] == pytest.approx([entry["loss"] for entry in whole], abs=1e-5)
    ends = [InternVLU.from_pretrained(tmp_path / name / "checkpoint") for name in ("whole", "killed")]
    for network in ("vlm", "mmdit"):
        pairs = zip(*(getattr(end, network).parameters() for end in ends), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_run_of_several_processes_on_a_cpu_goes_on(fresh, tmp_path, monkeypatch):
    """accelerate calls the CPU cpu:0 in each of them, and torch.load does not know this name."""
    stage = picture_stage(steps=1)
    Run(stage, fresh, tmp_path).train()
    monkeypatch.setattr(Accelerator, "device", torch.device("cpu", 0))
    assert Run(stage, fresh, tmp_path).step == 1


def test_what_is_written_is_the_average_of_the_weights(fresh, tmp_path):
    Run(picture_stage(), fresh, tmp_path).train()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    written = dict(Networks(tmp_path / "checkpoint").named_parameters())
    assert all(torch.equal(written[name], value) for name, value in state["ema"].items())
    assert not all(torch.equal(written[name], value) for name, value in state["model"].items())


def test_a_run_with_other_settings_is_refused(fresh, tmp_path):
    Run(picture_stage(), fresh, tmp_path)
    with pytest.raises(InputError, match="batch"):
        Run(picture_stage(batch=3), fresh, tmp_path)


def test_a_run_that_made_nothing_claims_nothing(fresh, tmp_path):
    with pytest.raises(CheckpointError):
        Run(picture_stage(), tmp_path / "missing", tmp_path / "run")
    with pytest.raises(InputError, match="mmdti"):
        Run(picture_stage(trained=("mmdti.",)), fresh, tmp_path / "run")
    assert Run(picture_stage(batch=3), fresh, tmp_path / "run").step == 0


def test_what_cannot_be_written_in_the_end_is_refused_at_the_start(fresh, tmp_path):
    (file,) = convert(fresh, tmp_path / "one.safetensors", "single")
    with pytest.raises(InputError, match="released layout"):
        Run(picture_stage(), file, tmp_path / "run")


def test_writing_what_there_is_leaves_the_log_alone(fresh, tmp_path):
    with pytest.raises(InputError, match="no saved step"):
        Run(picture_stage(save_every=3), fresh, tmp_path).write()
    Run(picture_stage(save_every=3), fresh, tmp_path).train()
    log = tmp_path / "log.jsonl"
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save(state | {"step": 3}, tmp_path / "state.pt")  # as while step 4 of a running one is not saved yet
    Run(picture_stage(save_every=3), fresh, tmp_path).write()
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 3, 4] and log.stat().st_nlink == 1


def test_the_points_of_a_plot_are_means_of_neighbouring_steps():
    log = [{"step": step, "loss": 2.0 + 2 * (step % 2), "kl": 0.0} for step in range(1, 2 * POINTS + 1)]
    assert curve(log, "loss") == [(step + 0.5, 3.0) for step in range(1, 2 * POINTS, 2)]
    assert curve(log, "kl") == curve(log, "text") == []


def test_a_gradient_that_is_not_finite_spoils_no_weights(fresh, tmp_path, monkeypatch):
    run = Run(picture_stage(), fresh, tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in run.trained.items()}
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: torch.tensor(torch.inf))
    with pytest.raises(FloatingPointError, match=r"step 1 .* gradient of inf"):
        run.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.trained.items())


@pytest.mark.slow
def test_two_processes_equal_twice_the_accumulation(fresh, tmp_path):
    changes = ["steps=3", "samples=12", "batch=2", "autocast=false", "warmup=0"]
    alone = changed(CPU["stage3"], [*changes, "accumulate=4"])
    Run(alone, fresh, tmp_path / "alone").train()
    arguments = [flag for change in [*changes, "accumulate=2"] for flag in ("--set", change)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    module = ["-m", "internvlu_train", "stage3", str(tmp_path / "two"), "--base", str(fresh), *arguments]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if os.name == "nt":
        environment["USE_LIBUV"] = "0"  # torch for Windows may be built without it, and is then not told by itself
    done = subprocess.run(
        [*launch, *module], env=os.environ | environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    both = [entries(folder) for folder in (tmp_path / "alone", tmp_path / "two" / "stage3")]
    assert len(both[0]) == 3
    for one, two in zip(*both, strict=True):
        assert {key: one[key] for key in ("loss", "text", "flow", "norm") if key in one} == pytest.approx(
            {key: two[key] for key in ("loss", "text", "flow", "norm") if key in two}, rel=1e-4
        )


def test_processes_wait_while_one_makes_a_large_cache(fresh, tmp_path):
    assert Run(picture_stage(), fresh, tmp_path).accelerator.init_handler.timeout >= timedelta(hours=12)


def test_recomputing_activations_changes_no_gradient(fresh, tmp_path):
    stage = picture_stage(trained=("vlm.", "mmdit."), tasks=(("edit", 1),), samples=2, steps=2)
    gradients = []
    for number, checkpointing in enumerate((False, True)):
        run = Run(replace(stage, checkpointing=checkpointing), fresh, tmp_path / str(number))
        run._take_step()
        run._take_step()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in run.trained.values()]))
    assert gradients[0].abs().sum() > 0 and relative(gradients[1], gradients[0]) < 1e-5
