"""Training samples from a folder of pictures and texts.

    NAME.png, NAME.txt                     a picture and its caption
    NAME.png, NAME.txt, NAME.before.png    an edit: the picture after it, the instruction, the picture before it

An edit may have several input pictures: NAME.before.png, NAME.before2.png and so on. JPEG and WebP are read too.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from internvlu_core.checkpoints.config import ProcessorConfig
from internvlu_core.errors import InputError
from internvlu_core.imaging import open_image, reference_size, resize_reference

from .sample import Sample

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def open_picture(source: Path | BinaryIO, name: str = "") -> Image.Image:
    """A picture to train on, in 8-bit RGB, on white where it is transparent.

    name: of the source in errors, if it is not a file. Raises InputError as open_image does, and for an animation.
    """
    try:
        return open_image(source, still=True, background="white")
    except InputError as error:
        name = name or str(source)
        raise error if name in str(error) else InputError(f"{name}: {error}") from error


def read_folder(folder: Path, config: ProcessorConfig) -> list[Sample]:
    """One sample per text, in the order of their names. Pictures are resized to sizes that the model draws.

    The result of an edit gets the size of its first input picture, as at inference. Raises InputError for a folder
    without texts, a text that is empty, not in UTF-8 or without a picture, and a picture that has no text or cannot be
    read.
    """
    return [_sample(file, row, config) for file, row in folder_rows(folder)]


def folder_rows(folder: Path) -> Iterator[tuple[Path, dict]]:
    """(NAME.txt, a row as in metadata.jsonl) of each text, and of each picture without a text (its file, the problem).

    Raises InputError for a folder without texts.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    texts = sorted(file for file in folder.glob("*.txt") if not file.name.startswith("."))
    if not texts:
        raise InputError(f"{folder} has no NAME.txt; each picture NAME.png needs one, with its caption or instruction")
    pictures: dict[str, list[Path]] = {}  # by the part of their names before the first dot, for large folders
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in ENDINGS and not file.name.startswith("."):
            pictures.setdefault(file.name.partition(".")[0], []).append(file)
    used = set()
    for text in texts:
        after, before = _pictures_of(text, pictures.get(text.name.partition(".")[0], []))
        used.update(after, before)
        yield text, _row(text, after, before)
    for file in (file for group in pictures.values() for file in group if file not in used):
        yield file, {"problem": f"{file} has no {file.stem}.txt with its caption or instruction"}


def _row(text: Path, after: list[Path], before: list[Path]) -> dict:
    """What is wrong with it is left to the reader of the row, who may skip it."""
    try:
        prompt = text.read_text(encoding="utf-8-sig").strip()  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        return {"problem": f"{text} is not in UTF-8: {error}"}
    except OSError as error:
        return {"problem": f"cannot read {text}: {error}"}
    if not prompt:
        return {"problem": f"{text} is empty"}
    if len(after) != 1:
        wanted = f"{text.stem}.png (or {', '.join(ENDINGS[1:])})"
        return {"problem": f"{text} needs one picture {wanted}, not {len(after)}"}
    return {"file_name": after[0].name, "text": prompt, "images": [file.name for file in before]}


def _pictures_of(text: Path, pictures: list[Path]) -> tuple[list[Path], list[Path]]:
    """The target pictures of a text, and its input pictures in order."""
    after = [file for file in pictures if file.stem == text.stem]
    numbered = {file: re.fullmatch(r"\.before(\d*)", file.stem.removeprefix(text.stem)) for file in pictures}
    return after, [file for _, file in sorted((int(found[1] or 0), file) for file, found in numbered.items() if found)]


def _sample(file: Path, row: dict, config: ProcessorConfig) -> Sample:
    if "problem" in row:
        raise InputError(row["problem"])
    before = [open_picture(file.parent / name) for name in row["images"]]
    picture = open_picture(file.parent / row["file_name"])
    if before:
        height, width = reference_size(before[0].height, before[0].width, config)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    else:
        picture = resize_reference(picture, config)
    arrays = tuple(np.array(image) for image in before)
    return Sample("edit" if before else "draw", "", row["text"], arrays, np.array(picture), "")
