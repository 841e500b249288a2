"""A contact sheet: samples beside each other, each with its pictures in their order and the prompt below them."""

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

from internvlu_core.errors import InputError

from ..sample import Sample
from .fonts import faces, load
from .layout import wrap

CELL, GAP, LETTERS, LINES = 300, 8, 13, 4  # pixels, and lines of a prompt
PAPER, INK = "white", "black"


def sheet(samples: Iterable[Sample], width: int = 1280) -> Image.Image:
    """The picture of a sheet that is about so many pixels wide."""
    cells = [cell(sample) for sample in samples]
    rows, row = [], []
    for one in cells:
        if row and sum(c.width + GAP for c in row) + one.width > width:
            rows.append(row)
            row = []
        row.append(one)
    rows.append(row)
    across = max(sum(c.width + GAP for c in row) for row in rows) - GAP
    result = Image.new("RGB", (across, sum(max(c.height for c in row) + GAP for row in rows) - GAP), PAPER)
    top = 0
    for row in rows:
        left = 0
        for one in row:
            result.paste(one, (left, top))
            left += one.width + GAP
        top += max(c.height for c in row) + GAP
    return result


def cell(sample: Sample) -> Image.Image:
    """One sample: before and after beside each other."""
    arrays = [*sample.images, *([] if sample.picture is None else [sample.picture])]
    pictures = [Image.fromarray(array) for array in arrays]
    for picture in pictures:
        picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    across = max(sum(p.width + 2 for p in pictures) - 2, CELL // 2)
    height = max((p.height for p in pictures), default=0)
    said = f"{sample.prompt} → {sample.words}" if sample.words else sample.prompt
    said = " ".join(said.split())
    font = load(faces(said + "永", ("sans",))[0], LETTERS)
    lines = wrap(said, font, across)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1][:-2] + "…"]
    result = Image.new("RGB", (across, height + (LETTERS + 5) * LINES), PAPER)
    left = 0
    for picture in pictures:
        result.paste(picture, (left, 0))
        left += picture.width + 2
    ImageDraw.Draw(result).multiline_text((0, height + 2), "\n".join(lines), INK, font, spacing=2)
    return result


def save(picture: Image.Image, path: Path, largest: int = 200_000):
    """Write a sheet: a JPEG of at most so many bytes, or another picture. Raises InputError if it cannot be written."""
    try:
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            picture.save(path)
            return
        for quality in range(90, 0, -5):
            target = io.BytesIO()
            picture.save(target, "JPEG", quality=quality, optimize=True)
            if target.tell() <= largest:
                break
        path.write_bytes(target.getvalue())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
