"""The command line of training."""

import pytest
import torch

from internvlu_core import InternVLU
from internvlu_train import __main__ as command
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
    monkeypatch.setitem(command.SIZES, "cpu", TINY)
    monkeypatch.setattr(command, "TOKENIZER_SAMPLES", 50)
    assert command.main(["new", str(tmp_path)]) == 0
    tiny = ["--set", "steps=2", "--set", "samples=8", "--set", "batch=4"]
    for stage in command.ORDER[1 : command.ORDER.index("lora")]:
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
