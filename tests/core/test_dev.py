"""support/environment.py and scripts/comfy_shim: a ComfyUI that is not ours starts in the tests' environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import comfy_server, environment, inprocess

REQUIREMENTS = """comfyui-frontend-package==1.49.6
comfyui_workflow_templates==0.11.44
torch
torchvision
TorchAudio
numpy>=1.25.0
SQLAlchemy>=2.0.0  # for the database
PyOpenGL

#non essential dependencies:
pydantic~=2.0
-r other.txt
"""


@pytest.fixture
def comfyui(tmp_path):
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "ComfyUI" / "main.py").touch()
    (tmp_path / "ComfyUI" / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    return tmp_path / "ComfyUI"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The calls of pip, each as the contents of its -r and -c files."""
    calls = []

    def pip(*args):
        files = {flag: Path(args[args.index(flag) + 1]) for flag in ("-r", "-c")}
        calls.append({flag: file.read_text(encoding="utf-8").splitlines() for flag, file in files.items()})

    monkeypatch.setattr(environment, "pip", pip)
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path)
    return calls


def test_a_named_comfyui_gets_what_it_needs_but_no_other_torch(comfyui, installed):
    assert environment.set_up_comfyui(comfyui) == comfyui.resolve()
    (call,) = installed
    assert call["-r"] == ["numpy>=1.25.0", "SQLAlchemy>=2.0.0", "PyOpenGL", "pydantic~=2.0"]
    pinned = (environment.ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert len(call["-c"]) == 2 and set(call["-c"]) < set(pinned)
    assert [line.split("==")[0] for line in call["-c"]] == ["torch", "torchvision"]


def test_it_is_installed_once_until_the_requirements_change(comfyui, installed):
    for _ in range(2):
        environment.set_up_comfyui(comfyui)
    assert len(installed) == 1
    (comfyui / "requirements.txt").write_text("blake3\n", encoding="utf-8")
    environment.set_up_comfyui(comfyui)
    assert [call["-r"] for call in installed[1:]] == [["blake3"]]


def test_a_failed_installation_is_tried_again(comfyui, installed, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(subprocess.CalledProcessError):
        patch.setattr(environment, "pip", lambda *args: subprocess.run([sys.executable, "-c", "exit(1)"], check=True))
        environment.set_up_comfyui(comfyui)
    environment.set_up_comfyui(comfyui)
    assert len(installed) == 1


def test_our_own_comfyui_and_one_without_requirements_need_nothing(comfyui, installed, monkeypatch):
    monkeypatch.setattr(environment, "COMFYUI", comfyui)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert environment.set_up_comfyui() == comfyui
    monkeypatch.setattr(environment, "COMFYUI", comfyui.parent / "other")
    (comfyui / "requirements.txt").unlink()
    environment.set_up_comfyui(comfyui)
    assert installed == []


def test_a_folder_that_is_no_comfyui(tmp_path, installed):
    with pytest.raises(SystemExit, match=r"it has no main\.py"):
        environment.set_up_comfyui(tmp_path)


def test_a_process_that_imports_comfyui_itself_has_the_shim_once(monkeypatch):
    """Benchmarks in the ComfyUI of their own process are started without a PYTHONPATH."""
    names = "DefineMissingOperators", "StandInForTorchaudio"
    without = [finder for finder in sys.meta_path if type(finder).__name__ not in names]
    monkeypatch.setattr(sys, "meta_path", without)
    monkeypatch.delitem(sys.modules, inprocess.SHIM_NAME, raising=False)
    for _ in range(2):
        inprocess.load_shim()
        assert sorted(type(finder).__name__ for finder in without if type(finder).__name__ in names) == [*names]


# The stand-in for torchaudio

USE = """
import torchaudio, torchaudio.functional as AF
from torchaudio.transforms import MelScale
print(getattr(torchaudio, "__version__", "a stand-in"))
try:
    AF.resample(None, 16000, 44100), MelScale()
except ModuleNotFoundError as error:
    print(error)
"""


def run_with_shim(code: str, *folders) -> list[str]:
    path = os.pathsep.join(map(str, [environment.SHIM, *folders]))
    # Apart from what is installed, which may have a torchaudio.
    alone = "import sys; sys.path[:] = [place for place in sys.path if 'site-packages' not in place]\n"
    env = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", alone + code], env=env, check=True, capture_output=True, text=True)
    return run.stdout.splitlines()


def test_torchaudio_can_be_imported_but_not_used():
    message = "torchaudio.functional.resample is used, and torchaudio is not installed"
    assert run_with_shim(USE) == ["a stand-in", message]


def test_an_installed_torchaudio_is_taken(tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("__version__ = '2.13'\n", encoding="utf-8")
    (tmp_path / "torchaudio" / "functional.py").write_text("def resample(*args): pass\n", encoding="utf-8")
    (tmp_path / "torchaudio" / "transforms.py").write_text("class MelScale: pass\n", encoding="utf-8")
    assert run_with_shim(USE, tmp_path) == ["2.13"]


# The server's frontend


@pytest.mark.parametrize("named", [None, "pages of another frontend"])
def test_the_server_is_told_which_frontend_to_show(tmp_path, monkeypatch, named):
    """Without it a ComfyUI looks for the one that it pins."""
    commands = []

    def start(command, **options):
        commands.append(command)
        raise KeyboardInterrupt  # as far as it has to go

    monkeypatch.setattr(comfy_server.subprocess, "Popen", start)
    arguments = ["--front-end-root", named] if named else []
    with (
        pytest.raises(KeyboardInterrupt),
        comfy_server.ComfyServer(tmp_path, tmp_path / "base", environment.ROOT, arguments),
    ):
        pass
    (command,) = commands
    assert command.count("--front-end-root") == 1
    root = command[command.index("--front-end-root") + 1]
    assert root == named or (named is None and (Path(root) / "index.html").is_file())
