"""The command line of training."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from internvlu_core import InternVLU
from internvlu_train import __main__ as command
from internvlu_train.toy import fresh as toy_fresh
from internvlu_train.toy import presets
from support.training import TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("samples=0", "samples is 0"),
        ("save_every=0", "save_every is 0"),
        ('domains=[["object",1]]', "'object'; there are objects"),
        ("sides=[[32,32]]", "too small"),
        ('kinds=["word"]', "kind 'word'"),
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
