"""`pip install .`: the wheel has internvlu_core alone, and draws where nothing else of this repository is."""

import ast
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import InternVLU
from internvlu_core.cli import parser
from support.environment import pinned
from support.pack import ROOT, packed_files

TOY = ROOT / "demo" / "InternVL-U-toy"
PACKAGE = "internvlu_core"


def run(*command, **options) -> str:
    options = {"check": True, "capture_output": True, "encoding": "utf-8", "timeout": 500} | options
    return subprocess.run(list(map(str, command)), **options).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the files that git tracks, so that nothing else which lies here can come along."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in packed_files():
        if name.startswith((f"{PACKAGE}/", "pyproject.toml", "README.md", "LICENSE", "nodes/", "__init__.py")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", folder / "source", "-w", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment that has the wheel, and only what the wheel asks for."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    install = [scripts / "python", "-m", "pip", "--disable-pip-version-check", "-qq", "install", "--no-compile"]
    run(*install, pinned("torch"))  # first, as in .cache/venv: the build of torch is this machine's
    run(*install, wheel)
    return scripts


def test_wheel_has_the_core_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in packed_files() if name.startswith(f"{PACKAGE}/")}
    assert f"{PACKAGE}/py.typed" in names


@pytest.mark.slow
def test_installed_command_draws(scripts, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [scripts / "internvlu", "generate", TOY, "a red circle", "--dtype", "fp32", "--seed", "3", "--steps", "4"]
    run(*command, "--out", "circle.png", cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"})
    (expected,) = InternVLU.from_pretrained(TOY, "cpu", torch.float32).generate("a red circle", seed=3, steps=4).images
    with Image.open(tmp_path / "circle.png") as drawn:
        assert np.array_equal(drawn, expected)

    where = run(scripts / "python", "-c", f"import {PACKAGE} as p; print(p.__file__)", cwd=tmp_path, env=environment)
    assert Path(where.strip()).is_relative_to(scripts.parent)
    usage = run(scripts / "internvlu", "--help", cwd=tmp_path, env=environment)
    assert usage.startswith("usage: internvlu ")
    assert all(f"\n    {name}  " in usage for name in parser()._subparsers._group_actions[0].choices)


def test_pack_imports_its_own_core():
    """Relatively, however it is called: an installed version of internvlu_core may be another one."""
    for name in packed_files():
        if name.endswith(".py") and name.startswith(("__init__.py", "nodes/", f"{PACKAGE}/")):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    modules = [node.module]
                assert not any(module.startswith(("internvlu_", "nodes.comfy")) for module in modules), name
