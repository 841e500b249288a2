"""The command line, as a shell runs it: what it writes where, and how it ends."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvlu_core import InternVLU, Turn
from internvlu_core.cli import main
from internvlu_core.conversation import read_turns
from support.checkpoints import CHECKPOINT, GOLDEN, copy_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PHOTO, TALL = GOLDEN / "photo.png", GOLDEN / "tall.png"
DRAW = ("generate", CHECKPOINT, "a cat", "--dtype", "fp32", "--height", "32", "--width", "32", "--steps", "2")
WRITE = ("--dtype", "fp32", "--max-new-tokens")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Where pictures go, with a few things in the way."""
    out = tmp_path_factory.mktemp("out")
    (out / "folder.png").mkdir()
    (out / "text.png").write_text("no picture")
    (out / "cut.png").write_bytes(PHOTO.read_bytes()[:2000])
    weights = copy_checkpoint(out / "cut") / "vlm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return out


def run(*arguments) -> subprocess.CompletedProcess:
    """In a process of its own. Starting Python takes most of the time, so only a few runs are."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "internvlu_core", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=500, check=False)


@pytest.fixture
def here(capfd):
    """A run in this process: its exit code, standard output and standard error. An exception is one, as in a shell."""

    def run_here(*arguments):
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as end:  # argparse
            code = end.code
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run_here


def output(result: subprocess.CompletedProcess, *units: str) -> str:
    """Standard output of a good run, once it is sure that standard error has progress bars and nothing else."""
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line]
    rest = [line for line in lines if not any(f"{unit}/s]" in line or f"s/{unit}]" in line for unit in units)]
    assert not rest
    assert lines
    return result.stdout


def assert_refused(result: subprocess.CompletedProcess, *said: str):
    """Exit code 2, one line on standard error, nothing on standard output."""
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("internvlu_core: ")
    assert result.stderr.count("\n") == 1
    for part in said:
        assert part in result.stderr


def assert_picture(file: Path, expected: Image.Image):
    picture = Image.open(file).convert("RGB")
    assert picture.size == (32, 32)
    difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(expected, dtype=int))
    assert difference.max() <= 1  # another number of threads adds in another order


def draw(model, *arguments, **settings) -> list[Image.Image]:
    return model.generate("a cat", *arguments, height=32, width=32, steps=2, **settings).images


# In a process of their own


def test_reason_and_generate(out, model):
    reasoning = model.reason("a cat", max_new_tokens=4)
    result = run(*DRAW, "--reason", "--max-new-tokens", 4, "--out", out / "reasoned.png")
    assert output(result, "token", "step") == f"{reasoning.text}\n{out / 'reasoned.png'}\n"
    assert "4/4" in result.stderr
    assert "2/2" in result.stderr
    assert_picture(out / "reasoned.png", draw(model, reasoning=reasoning)[0])


def test_bad_path(out):
    assert_refused(run("answer", out / "nowhere", "Hi"), str(out / "nowhere"), "does not exist")


# In this process


def test_answer(here, model, photo, tall):
    expected = model.answer("What is it?", [photo, tall], max_new_tokens=6)
    result = here("answer", CHECKPOINT, "What is it?", *WRITE, 6, "--image", PHOTO, "--image", TALL)
    assert output(result, "token") == expected.text + "\n"
    assert "6/6" in result.stderr


def test_reason(here, model):
    expected = model.reason("a cat", max_new_tokens=5, num_beams=2)
    assert output(here("reason", CHECKPOINT, "a cat", *WRITE, 5, "--beams", 2), "token") == expected.text + "\n"


def test_generate_several(here, out, model):
    """Of one seed, by default 0, each in the format that its name asks for."""
    result = here(*DRAW, "--out", out / "a.png", "--out", out / "b.webp")
    assert output(result, "step") == f"{out / 'a.png'}\n{out / 'b.webp'}\n"
    assert "2/2" in result.stderr
    first, second = draw(model, num_images=2)
    assert_picture(out / "a.png", first)
    assert Image.open(out / "b.webp").format == "WEBP"
    read = np.asarray(Image.open(out / "b.webp").convert("RGB"), dtype=float)  # WebP is lossy
    distances = [np.abs(read - np.asarray(picture, dtype=float)).mean() for picture in (first, second)]
    assert distances[1] < 0.5 * distances[0]


def test_generate_from_images_and_words(here, out, model, photo, tall):
    options = ("--image", PHOTO, "--image", TALL, "--reasoning", "Blue.", "--out", out / "edit.png")
    assert output(here(*DRAW, *options), "step") == f"{out / 'edit.png'}\n"
    assert_picture(out / "edit.png", draw(model, [photo, tall], reasoning="Blue.")[0])


def test_bad_size(here, out):
    assert_refused(here(*DRAW, "--width", 8, "--out", out / "never.png"), "width is 8")
    assert not (out / "never.png").exists()


def test_text_settings(here, model):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 9, "top_p": 0.9, "seed": 4}
    expected = model.answer("Hi", system_prompt="Be brief.", **settings)
    options = ("--temperature", 1, "--top-k", 9, "--top-p", 0.9, "--seed", 4, "--system", "Be brief.", "--max-tiles", 2)
    assert output(here("answer", CHECKPOINT, "Hi", *WRITE, 6, *options), "token") == expected.text + "\n"


def test_picture_settings(here, tmp_path, model, photo):
    file = tmp_path / "one.png"
    options = ("--seed", 7, "--all-scale", 3, "--partial-scale", 1.2, "--system", "Be bold.", "--image", PHOTO)
    assert output(here(*DRAW, *options, "--out", file), "step") == f"{file}\n"
    settings = {"seed": 7, "all_scale": 3, "partial_scale": 1.2, "system_prompt": "Be bold."}
    assert_picture(file, draw(model, [photo], **settings)[0])


def test_default_output(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output(here(*DRAW), "step") == "internvlu.png\n"
    assert Image.open("internvlu.png").size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: command"),
        (["answer", "x"], "the following arguments are required: prompt"),
        (["answer", "x", "Hi", "--wide"], "unrecognized arguments: --wide"),
        ([*DRAW, "--width", "wide"], "argument --width: invalid int value: 'wide'"),
        ([*DRAW, "--reason", "--reasoning", "Blue."], "not allowed with argument --reason"),
    ],
)
def test_usage(here, arguments, said):
    """argparse puts how to call it in front."""
    result = here(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: ")
    assert said in result.stderr.splitlines()[-1]


ANSWER = ("answer", CHECKPOINT, "Hi")

BAD = {
    "cut checkpoint": (("answer", "{out}/cut", "Hi"), ["model.safetensors", "cut off"]),
    "missing image": ((*ANSWER, "--image", "{out}/nowhere.png"), ["cannot read the image", "nowhere.png"]),
    "image is a folder": ((*ANSWER, "--image", "{out}"), ["cannot read the image", "directory"]),
    "no image": ((*ANSWER, "--image", "{out}/text.png"), ["cannot read the image", "text.png"]),
    "cut image": ((*ANSWER, "--image", "{out}/cut.png"), ["cannot read the image", "cut.png", "truncated"]),
    "steps": ((*DRAW, "--steps", 0), ["steps is 0"]),
    "scale": ((*DRAW, "--all-scale", "nan"), ["all_scale is nan"]),
    "device": ((*DRAW, "--device", "gpu"), ["device 'gpu'"]),
    "placeholders": (("answer", CHECKPOINT, "What is <image>?"), ["1 <image> placeholders", "0 images"]),
    "temperature": ((*ANSWER, "--temperature", -1), ["temperature is -1.0"]),
    "seed": (("reason", CHECKPOINT, "Hi", "--seed", -1), ["seed is -1"]),
    "out folder": ((*DRAW, "--out", "{out}/nowhere/a.png"), ["cannot write", "a.png", "no folder"]),
    "out is a folder": ((*DRAW, "--out", "{out}/folder.png"), ["cannot write", "folder.png", "is a folder"]),
    "out suffix": ((*DRAW, "--out", "{out}/a.txt"), ["cannot write", "a.txt", ".txt is no picture format"]),
    "no out suffix": ((*DRAW, "--out", "{out}/a"), ["cannot write", "no suffix"]),
    "read-only format": ((*DRAW, "--out", "{out}/a.psd"), ["cannot write", ".psd is no picture format"]),
    "black and white": ((*DRAW, "--out", "{out}/a.xbm"), ["cannot write", ".xbm holds no picture in colour"]),
    "no writer": ((*DRAW, "--out", "{out}/a.h5"), ["cannot write", "a.h5"]),
    "out twice in other words": (
        (*DRAW, "--out", "{out}/a.png", "--out", "{out}/folder.png/../a.png"),
        ["cannot write", "a.png", "twice"],
    ),
    "long name": (("answer", "x" * 300, "Hi"), ["xxx", "too long"]),
    "long out": ((*DRAW, "--out", "{out}/" + "x" * 300 + ".png"), ["xxx", "too long"]),
    "out twice": ((*DRAW, "--out", "{out}/a.png", "--out", "{out}/a.png"), ["cannot write", "a.png", "twice"]),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(here, out, bad):
    arguments, said = BAD[bad]
    assert_refused(here(*(str(argument).format(out=out) for argument in arguments)), *said)


def test_result_that_is_not_finite(here, monkeypatch):
    def overflow(*args, **kwargs):
        raise FloatingPointError("the sampled latents are not finite")

    monkeypatch.setattr(InternVLU, "generate", overflow)
    assert_refused(here(*DRAW), "not finite")


def test_file_that_may_not_be_written(here, tmp_path, monkeypatch):
    """Found out before the run. Root may write everywhere, so the system's answer is given here."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert_refused(here(*DRAW, "--out", tmp_path / "picture.png"), "cannot write", "there is no permission")


@pytest.mark.parametrize("cause", [KeyboardInterrupt, OSError])
def test_what_is_there_stays_until_what_replaces_it_is_whole(here, tmp_path, monkeypatch, cause):
    """After Ctrl+C or on a full disk there is no half of a picture or of a conversation."""
    there = {tmp_path / "picture.png": PHOTO.read_bytes(), tmp_path / "talk.json": b"[]"}
    for path, content in there.items():
        path.write_bytes(content)
        path.chmod(0o600)

    def half(self, *arguments, **options):
        target = self if isinstance(self, Path) else arguments[0]
        if isinstance(target, io.BytesIO):  # whether the format can be written is tried in memory
            return
        with open(target, "wb") as file:
            file.write(b"half")
        raise cause("no space left")

    monkeypatch.setattr(Image.Image, "save", half)
    monkeypatch.setattr(Path, "write_text", half)
    drawn = here(*DRAW, "--out", tmp_path / "picture.png")
    answered = here("answer", CHECKPOINT, "Hi", *WRITE, 1, "--history", tmp_path / "talk.json")
    assert {drawn.returncode, answered.returncode} == {130 if cause is KeyboardInterrupt else 2}
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == there
    monkeypatch.undo()
    assert here("answer", CHECKPOINT, "Hi", *WRITE, 1, "--history", tmp_path / "talk.json").returncode == 0
    assert (tmp_path / "talk.json").stat().st_mode == (tmp_path / "picture.png").stat().st_mode


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_damaged_images(here, tmp_path, suffix):
    """However a file is damaged, it is read or refused, before any checkpoint is looked for."""
    file = tmp_path / f"picture.{suffix}"
    Image.open(PHOTO).resize((48, 32)).convert("RGB").save(file)
    content = file.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content[: random.integers(1, len(content) + 1)])
        for place in random.integers(0, len(damaged), 8):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        assert_refused(here("answer", tmp_path / "nowhere", "Hi", "--image", file))


def test_a_conversation(here, model, photo, tmp_path):
    """The file grows, and its first turn has the pictures of every call."""
    file, history = tmp_path / "talk.json", ()
    for question in ("What is it?", "Why?", "Really?"):
        images = [] if history else [photo]
        result = here("answer", CHECKPOINT, question, *WRITE, 4, "--image", PHOTO, "--history", file)
        expected = model.answer(question, images, max_new_tokens=4, history=history)
        history += (Turn(question, expected.text, images),)
        assert result.returncode == 0 and result.stdout == expected.text + "\n"
        assert read_turns(file.read_text(encoding="utf-8"), [photo]) == history


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{", "the conversation is no JSON"),
        ('["Hi"]', 'turn 1 of the conversation is "Hi"'),
        (b"\xff", "cannot read .*talk.json: 'utf-8' codec"),
        (None, "cannot write .*talk.json: there is no folder"),
    ],
)
def test_a_broken_conversation(here, tmp_path, words, message):
    file = tmp_path / "talk.json" if words else tmp_path / "nowhere" / "talk.json"
    if words is not None:
        file.write_bytes(words if isinstance(words, bytes) else words.encode())
    result = here("answer", CHECKPOINT, "Hi", *WRITE, 1, "--history", file)
    assert result.returncode == 2 and re.search(message, result.stderr) and not result.stdout
