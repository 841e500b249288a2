"""One run of each task, with pictures written."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..conditioning import TextResult
from ..errors import in_one_line
from ..pipeline import InternVLU
from .recording import sample_picture

ERRORS = FloatingPointError, RuntimeError, ValueError  # OutOfMemoryError is a RuntimeError


@dataclass
class Outcome:
    """How a task went. result: its text, or the name of the picture. problem: what was wrong; empty if nothing."""

    task: str
    seconds: float
    result: str
    problem: str = ""


def run_tasks(model: InternVLU, out: Path, side: int, steps: int, tokens: int) -> list[Outcome]:
    """Each task once; pictures go into the folder `out`. side: of the pictures in pixels. tokens: of a text."""
    photo, other = sample_picture(side), sample_picture(side, 1.0)
    photo.save(out / "picture.png")
    drawn = {"height": side, "width": side, "steps": steps, "seed": 42}
    boat = "a photo of a red boat on a lake"

    def reasoned():
        return model.generate(boat, reasoning=model.reason(boat, max_new_tokens=tokens), **drawn)

    tasks: dict[str, Callable] = {
        "answer": lambda: model.answer("What is a cat?", max_new_tokens=tokens),
        "answer with a picture": lambda: model.answer("What is in the picture?", photo, max_new_tokens=tokens),
        "reason": lambda: model.reason(boat, max_new_tokens=tokens),
        "draw": lambda: model.generate(boat, **drawn),
        "draw after reasoning": reasoned,
        "edit": lambda: model.generate("Make it night.", photo, **drawn),
        "edit with two references": lambda: model.generate("Blend the pictures.", [photo, other], **drawn),
    }
    return [_run(name, task, out) for name, task in tasks.items()]


def _run(name: str, task: Callable, out: Path) -> Outcome:
    start = time.perf_counter()
    try:
        made = task()
    except ERRORS as error:
        return Outcome(name, time.perf_counter() - start, "", f"{type(error).__name__}: {in_one_line(error)}")
    seconds = time.perf_counter() - start
    if isinstance(made, TextResult):
        return Outcome(name, seconds, " ".join(made.text.split())[:80])
    (picture,) = made.images
    file = f"{name.replace(' ', '_')}.png"
    picture.save(out / file)
    return Outcome(name, seconds, file, _blank(picture))


def _blank(picture: Image.Image) -> str:
    levels = np.asarray(picture)
    return "every pixel of the picture has the same colour" if (levels == levels[0, 0]).all() else ""
