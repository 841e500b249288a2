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
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.environment import (  # noqa: E402
    CACHE,
    PYTHON,
    SHIM,
    VENV,
    find_browser,
    find_frontend,
    say,
    set_up_comfyui,
    set_up_venv,
)

# Two processes, each with whole files (group in tests/conftest.py), in the order of the folders: slow ones first.
WORKERS = ["-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]


def test(pytest_args):
    env = {**os.environ, "COMFYUI_PATH": str(set_up_comfyui())}
    # transformers imports torchvision too, which needs the shim as much in the tests' own process as in the server.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SHIM), env.get("PYTHONPATH")]))
    env["OMP_NUM_THREADS"] = "1"  # as in tests/conftest.py, for every process that tests start
    # Without bytecode every one of them would compile torch's and ComfyUI's Python again, for seconds.
    env["PYTHONPYCACHEPREFIX"] = str(CACHE / "bytecode")
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    if not any((ROOT / arg.split("::")[0]).exists() for arg in pytest_args):
        pytest_args = ["tests", *WORKERS, *pytest_args]
        find_frontend(), find_browser()  # once, before the processes want them
    # Above confcutdir pytest does not look; else it would import the pack's own __init__.py, outside of ComfyUI.
    commands = ["ruff", "check", "."], ["pytest", "--confcutdir=tests", *pytest_args]
    return max(abs(subprocess.call([PYTHON, "-m", *command], cwd=ROOT, env=env)) for command in commands)


def demo(args):
    if Path(sys.prefix).resolve() != VENV.resolve():  # the client needs aiohttp and requests
        return subprocess.call([PYTHON, __file__, *sys.argv[1:]])
    comfyui = set_up_comfyui(args.comfyui)  # before anything that it may replace is imported
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
