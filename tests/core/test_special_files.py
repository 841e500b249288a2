"""Named pipes, sockets and devices in place of a checkpoint's files: refused by name at once, where to open them would
wait for ever. Links to regular files are followed, wherever they lead."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvlu_core import InternVLU
from internvlu_core.checkpoints.convert import convert
from internvlu_core.checkpoints.files import SPLIT_FILES
from support.checkpoints import CHECKPOINT, WEIGHTS, copy_checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has none of these in folders")

# Run in a process of its own, which ends itself if a case takes too long: safetensors opens files without Python, so
# that no signal and no other thread could interrupt it.
LOADER = """
import faulthandler, json, os, socket, sys
from pathlib import Path
from internvlu_core import InternVLU
from internvlu_core.checkpoints.convert import convert
from internvlu_core.checkpoints.files import components_of

def put(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.chdir(path.parent)  # a socket's path has to be short
        socket.socket(socket.AF_UNIX).bind(path.name)
    else:
        path.symlink_to({"device": "/dev/zero", "link to a pipe": "pipe"}[kind])
        if kind == "link to a pipe":
            os.mkfifo(path.with_name("pipe"))

InternVLU.from_pretrained("single.safetensors")  # imports what takes long to import
for action, checkpoint, name, kind in json.loads(sys.argv[1]):
    path = Path(checkpoint, name) if name else Path(checkpoint)
    kept = path.with_name(path.name + ".kept")
    if path.exists():
        path.rename(kept)
    else:
        path.parent.mkdir(exist_ok=True)
    put(kind, path)
    faulthandler.dump_traceback_later(100, exit=True)
    try:
        if action == "components":
            said = str(components_of(path))
        else:
            convert(checkpoint, "never") if action == "convert" else InternVLU.from_pretrained(checkpoint)
            said = "loaded"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(said), flush=True)
    path.unlink()
    path.with_name("pipe").unlink(missing_ok=True)
    if kept.exists():
        kept.rename(path)
"""

KINDS = {"pipe": "a named pipe", "socket": "a socket", "device": "a device", "link to a pipe": "a named pipe"}
SHARD = "vlm/model-00001-of-00002.safetensors"
IN_FOLDER = [
    "vlm/config.json",
    "vlm/generation_config.json",
    "generation_decoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "processor/processor_config.json",
    "processor/tokenizer.json",
    "processor/tokenizer_config.json",
    "processor/chat_template.jinja",
    "processor/additional_chat_templates/other.jinja",
    "vlm/model.safetensors.index.json",
    SHARD,
    "generation_decoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
# (action, checkpoint, file in it or "" for itself, kind)
CASES = [
    *(("load", "folder", name, "pipe") for name in IN_FOLDER),
    *(("load", "folder", "vlm/config.json", kind) for kind in list(KINDS)[1:]),
    *(("load", "folder", "vae/diffusion_pytorch_model.safetensors", kind) for kind in list(KINDS)[1:]),
    ("load", "single.safetensors", "", "pipe"),
    ("load", "single.safetensors", "", "device"),
    *(("load", "split", name, "pipe") for name in SPLIT_FILES.values()),
    ("convert", "folder", "vlm/config.json", "pipe"),
    ("convert", "folder", "vae/diffusion_pytorch_model.safetensors", "pipe"),
    ("components", "single.safetensors", "", "pipe"),
]


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    """The recorded checkpoint as a folder with shards, as one file and as three."""
    forms = tmp_path_factory.mktemp("forms")
    folder = copy_checkpoint(forms / "folder")
    tensors = load_file(folder / "vlm" / WEIGHTS["vlm"])
    (folder / "vlm" / WEIGHTS["vlm"]).unlink()
    names, weight_map = sorted(tensors), {}
    for file, part in ((SHARD, names[::2]), (SHARD.replace("00001-", "00002-"), names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, Path(file).name)
    (folder / "vlm/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert(CHECKPOINT, forms / "single.safetensors", "single")
    convert(CHECKPOINT, forms / "split", "split")
    return forms


@pytest.fixture(scope="module")
def said(forms) -> dict[tuple, str]:
    """{case: what came of it}. A case that hangs, and those after it, are not there."""
    cases = [(action, str(forms / checkpoint), name, kind) for action, checkpoint, name, kind in CASES]
    command = [sys.executable, "-c", LOADER, json.dumps(cases)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=forms)
    print(result.stderr)
    return dict(zip(CASES, map(json.loads, result.stdout.splitlines()), strict=False))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_refused_by_name(said, forms, case):
    action, checkpoint, name, kind = case
    assert case in said, "it hangs, or one before it does"
    path = forms / checkpoint / name if name else forms / checkpoint
    expected = f"CheckpointError: {path} is {KINDS[kind]}, not a regular file"
    assert said[case] == ("()" if action == "components" else expected)


def test_links_to_regular_files(tmp_path, model):
    """As huggingface_hub's cache has them: every file is a link to another folder."""
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    blobs.mkdir()
    for index, file in enumerate(path for path in CHECKPOINT.rglob("*") if path.is_file()):
        shutil.copy(file, blobs / str(index))
        link = snapshot / file.relative_to(CHECKPOINT)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(index), link.parent))
    (snapshot / "vlm" / "nowhere.json").symlink_to("nothing")  # a link that leads nowhere is no file of the checkpoint
    loaded = InternVLU.from_pretrained(snapshot, dtype=torch.float32)
    assert torch.equal(loaded.mmdit.proj_out.weight, model.mmdit.proj_out.weight)
    assert loaded.config == model.config
    convert(snapshot, tmp_path / "one.safetensors", "single")
    (tmp_path / "link.safetensors").symlink_to("one.safetensors")
    assert InternVLU.from_pretrained(tmp_path / "link.safetensors").config == model.config
