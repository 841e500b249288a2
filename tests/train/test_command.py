"""The command line of training."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvlu_core import InputError, InternVLU
from internvlu_train import __main__ as command
from internvlu_train.loop import Run
from internvlu_train.settings import changed
from internvlu_train.toy import chain, presets
from internvlu_train.toy import fresh as toy_fresh
from support.training import TINY, entries

SMALL = ["samples=8", "batch=2", "warmup=0", "muon=false"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("samples=0", "samples is 0"),
        ("save_every=0", "save_every is 0"),
        ('domains=[["object",1]]', "'object'; there are objects"),
        ("sides=[[32,32]]", "too small"),
        ('kinds=["word"]', "kind 'word'"),
        ("warmup=-3", "warmup is -3; it must be at least 0"),
        ("held_out=-1", "held_out is -1"),
        ("ema=2.0", "ema is 2.0; it must be from 0 to 1"),
        ("area=[512]", "area is [512]"),
        ('tasks=["draw"]', "tasks has 'draw'; it must have pairs"),
        ("trained=[]", "trained is empty; this stage trains parameters of vlm and mmdit"),
        ('trained=["vae."]', "trained has 'vae.'; this stage trains parameters of vlm and mmdit"),
        ('trained=["mm"]', "trained has 'mm'"),
        ('trained=["mmdit.x"]', "no parameter's name begins with it"),
        ("evaluate_every=5", "evaluate_every needs data and held_out"),
    ],
)
def test_settings_that_cannot_be_are_named(fresh, tmp_path, capsys, change, message):
    arguments = ["stage1", str(tmp_path), "--base", str(fresh), "--set", "samples=2", "--set", change]
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_one_command_per_stage_and_what_it_writes_draws(fresh, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets.SIZES, "cpu", TINY)
    monkeypatch.setattr(toy_fresh, "TOKENIZER_SAMPLES", 50)
    assert command.main(["new", str(tmp_path)]) == 0
    tiny = ["--set", "steps=2", "--set", "samples=8", "--set", "batch=4"]
    for stage in presets.PRESETS["cpu"]:
        assert command.main([stage, str(tmp_path), *tiny]) == 0, stage
        assert {file.name for file in (tmp_path / stage).iterdir()} >= {
            "checkpoint",
            "log.jsonl",
            "loss.png",
            "state.pt",
        }
    model = InternVLU.from_pretrained(tmp_path / "stage3" / "checkpoint", dtype=torch.bfloat16)
    drawn = model.generate("a red star", steps=2).images[0]
    assert drawn.size == (64, 64)
    assert model.generate("make it blue", [drawn], steps=2).images[0].size == (64, 64)
    assert model.answer("what is it?", [drawn], max_new_tokens=3).token_ids
    assert command.main(["stage1", str(tmp_path), "--set", "stepz=2"]) == 2
    assert "stepz" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_one_command_trains_a_chain_and_scores_what_it_writes(fresh, tmp_path, monkeypatch, capsys, preset):
    """A second one goes on where the first was stopped, and takes no step of a stage that is finished."""
    scored = []
    monkeypatch.setattr("internvlu_train.evaluation.__main__.main", lambda arguments: scored.append(arguments) or 0)
    arguments = ["toy", str(tmp_path), "--base", str(fresh), "--preset", preset, "--count", "3", "--processes", "1"]
    arguments += [f"--set={change}" for change in ("steps=2", "samples=37", "batch=4", "warmup=0")]
    step, trained, stop = Run._take_step, [], [True]

    def counted(run):
        if stop and trained == ["decoder"] * 2:
            raise KeyboardInterrupt
        trained.append(run.folder.name)
        return step(run)

    monkeypatch.setattr(Run, "_take_step", counted)
    assert command.main(arguments) == 130 and "same command" in capsys.readouterr().err
    stop.clear()
    assert command.main(arguments) == 0 and trained == [name for name in presets.WIDER[preset] for _ in range(2)]
    assert command.main(arguments) == 0 and len(trained) == 6
    assert command.main([*arguments, "--set", "learning_rate=0.5"]) == 2  # not its own
    assert "decoder has a run with other settings (learning_rate)" in capsys.readouterr().err
    assert scored[0][0] == str(tmp_path / "checkpoint") and scored[0][-1] == str(tmp_path / "scores.json")
    file = "vae/diffusion_pytorch_model.safetensors"
    written = [load_file(tmp_path / name / file) for name in ("sizes/checkpoint", "checkpoint")]
    assert {tensor.dtype for tensor in written[1].values()} == {torch.bfloat16}
    assert all(torch.equal(tensor.bfloat16(), written[1][name]) for name, tensor in written[0].items())


def test_options_that_a_stage_would_not_heed_are_refused(fresh, tmp_path, capsys):
    for options, words in {
        "stage1 --minutes 3": "--minutes is for toy",
        "stage1 --pictures x": "--pictures is for lora",
        "toy --write": "toy has no --write",
        "toy --skip-bad": "toy has no --skip-bad",
        "new --data x": "new has no --data",
        "lora --pictures x --skip-bad": "--skip-bad is for --data",
    }.items():
        stage, *rest = options.split()
        assert command.main([stage, str(tmp_path), "--base", str(fresh), *rest]) == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_has_one_training_at_a_time_and_a_result_after_its_first_saved_step(fresh, tmp_path, capsys):
    arguments = ["stage1", str(tmp_path), "--base", str(fresh), *(f"--set={change}" for change in (*SMALL, "steps=1"))]
    assert command.main([*arguments, "--write"]) == 2
    assert "has no saved step yet" in capsys.readouterr().err and not (tmp_path / "stage1").exists()
    with command.alone(tmp_path / "stage1"):
        assert command.main(arguments) == 2
        assert "another run is writing to" in capsys.readouterr().err
    assert command.main(arguments) == 0
    with command.alone(tmp_path / "stage1"), (tmp_path / "stage1" / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "lo')
        log.flush()
        assert command.main([*arguments, "--write"]) == 0  # beside a run that goes on


def test_a_run_inside_its_checkpoint_is_refused(fresh, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(fresh, base)
    for runs in (base, base / "runs"):
        assert command.main(["stage1", str(runs), "--base", str(base), "--set", "samples=2"]) == 2
        assert f"is inside {base}" in capsys.readouterr().err


def test_minutes_are_divided_between_stages_that_have_them(fresh, tmp_path, capsys):
    stages = chain.within(presets.WIDER["gpu"], 2.0)
    assert sum(stage.minutes for stage in stages.values()) == pytest.approx(2)
    assert stages["wide"].minutes / stages["decoder"].minutes == pytest.approx(1.7 / 0.7)
    totals = {name: sum(stage.minutes for stage in stages.values()) for name, stages in presets.PRESETS.items()}
    assert totals == pytest.approx({"cpu": 720, "gpu": 20})
    assert command.main(["toy", str(tmp_path), "--base", str(fresh), "--minutes", "-2"]) == 2
    assert "--minutes" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_train_a_chain_together(fresh, tmp_path):
    """They share each step's samples and end at the same step, and a stage that fails in them ends the chain."""
    timed = changed(presets.WIDER["cpu"]["wide"], [*SMALL, "steps=1000000", "minutes=0.005"])
    stages = {"timed": timed, "bad": replace(timed, kinds=("word",))}
    with pytest.raises(InputError, match="bad failed"):
        chain.train_all(tmp_path, stages, fresh, resident=False, processes=2)
    state = torch.load(tmp_path / "timed" / "state.pt", weights_only=True)
    assert state["together"] == 2 and state["step"] == len(entries(tmp_path / "timed")) < 1000
    checkpoint = tmp_path / "timed" / "checkpoint"
    assert checkpoint.is_dir() and not (tmp_path / "bad" / "checkpoint").exists()
    shutil.rmtree(checkpoint)
    chain.train_together(2, timed, fresh, tmp_path / "timed")  # as if it had been killed after its last step
    assert checkpoint.is_dir() and state["step"] == len(entries(tmp_path / "timed"))


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_each_stage_starts_from_the_one_before(tmp_path, preset):
    names = ["new", *presets.PRESETS[preset], "lora"]
    for before, stage in pairwise(names):
        options = command.parse([stage, str(tmp_path), "--preset", preset])
        assert command.starting_point(options) == tmp_path / before / "checkpoint"
    assert command.starting_point(command.parse(["lora", str(tmp_path), "--base", "x"])) == Path("x")


def test_an_unknown_stage_is_named_with_those_there_are(tmp_path, capsys):
    assert command.main(["stage9", str(tmp_path)]) == 2
    assert "'stage9'; there are new, vae, vae-smooth, " in capsys.readouterr().err
