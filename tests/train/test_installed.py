"""Training from an installed pack: exactly the packed files, in a folder of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from support.pack import ROOT, packed_files


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that a ComfyUI user has after the installation."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "internvl-u"
    for file in packed_files():
        if file.startswith("internvlu_") or "/" not in file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    return folder


def train(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "internvlu_train", *arguments]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True)


def test_two_steps_of_lora_training(installed, fresh, pictures, tmp_path):
    options = ["--base", str(fresh), "--pictures", str(pictures), "--set", "steps=2", "--set", "batch=2"]
    done = train(installed, "lora", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "lora" / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    with safe_open(tmp_path / "lora" / "lora.safetensors", "pt") as file:
        assert all(name.startswith("diffusion_model.") for name in file.keys()) and len(file.keys()) > 10  # noqa: SIM118


@pytest.mark.parametrize("stage", ["new", "stage1"])
def test_a_stage_of_the_toy_model_says_that_it_needs_the_repository(installed, fresh, tmp_path, stage):
    done = train(installed, stage, str(tmp_path), "--base", str(fresh))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: the stage '{stage}' needs internvlu_train/toy, which only the repository has" in done.stderr
    assert "--preset released" in done.stderr


def test_lora_without_a_base_says_what_is_missing(installed, pictures, tmp_path):
    done = train(installed, "lora", str(tmp_path), "--pictures", str(pictures))
    assert done.returncode == 2 and "error: lora needs --base: the checkpoint" in done.stderr


def test_help_names_what_an_installed_pack_can_do(installed):
    done = train(installed, "--help")
    assert done.returncode == 0 and "--pictures" in done.stdout
    assert "one of lora; with --preset released stage1, stage2, stage3" in " ".join(done.stdout.split())
