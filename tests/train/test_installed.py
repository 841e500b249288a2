"""Training from an installed pack: exactly the packed files, in a folder of their own."""

import json
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


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=installed, env=environment, capture_output=True, text=True)


def test_two_steps_of_lora_training(installed, fresh, pictures, tmp_path):
    options = ["--base", str(fresh), "--pictures", str(pictures), "--set", "steps=2", "--set", "batch=2"]
    done = python(installed, "-m", "internvlu_train", "lora", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "lora" / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    with safe_open(tmp_path / "lora" / "lora.safetensors", "pt") as file:
        assert all(name.startswith("diffusion_model.") for name in file.keys()) and len(file.keys()) > 10  # noqa: SIM118


# Starting Python takes most of the time, so these commands share a process.
SEVERAL = """
import contextlib, io, json, sys
from internvlu_train.__main__ import main

done = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def test_what_an_installed_pack_can_do(installed, fresh, pictures, tmp_path):
    """Its help names that, and what it cannot do says why."""
    stages = [[stage, str(tmp_path), "--base", str(fresh)] for stage in ("new", "stage1")]
    commands = [*stages, ["lora", str(tmp_path), "--pictures", str(pictures)], ["--help"]]
    done = python(installed, "-c", SEVERAL, json.dumps(commands))
    assert done.returncode == 0, done.stderr[-3000:]
    *refused, base, shown = json.loads(done.stdout)
    for (stage, *_), (code, _, said) in zip(stages, refused, strict=True):
        assert code == 2 and "Traceback" not in said
        assert f"error: the stage '{stage}' needs internvlu_train/toy, which only the repository has" in said
        assert "--preset released" in said
    assert base[0] == 2 and "error: lora needs --base: the checkpoint" in base[2]
    assert not shown[0] and "--pictures" in shown[1]
    assert "one of lora; with --preset released stage1, stage2, stage3" in " ".join(shown[1].split())
