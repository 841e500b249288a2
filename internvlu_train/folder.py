"""Training samples from a folder of pictures and texts.

    NAME.png, NAME.txt                     a picture and its caption
    NAME.png, NAME.txt, NAME.before.png    an edit: the picture after it, the instruction, the picture before it

An edit may have several input pictures: NAME.before.png, NAME.before2.png and so on. JPEG and WebP are read too.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from internvlu_core.checkpoints.config import ProcessorConfig
from internvlu_core.errors import InputError
from internvlu_core.imaging import open_image, reference_size, resize_reference

from .sample import Sample

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def read_folder(folder: Path, config: ProcessorConfig) -> list[Sample]:
    """One sample per text, in the order of their names. Pictures are resized to sizes that the model draws.

    The result of an edit gets the size of its first input picture, as at inference. Raises InputError for a folder
    without texts, a text that is empty, not in UTF-8 or without a picture, and a picture that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    texts = sorted(folder.glob("*.txt"))
    if not texts:
        raise InputError(f"{folder} has no NAME.txt; each picture NAME.png needs one, with its caption or instruction")
    pictures = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in ENDINGS]
    return [_sample(text, pictures, config) for text in texts]


def folder_rows(folder: Path) -> Iterator[tuple[Path, dict]]:
    """(NAME.txt, a row as in metadata.jsonl) of each text. Raises InputError for a folder without texts."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    texts = sorted(folder.glob("*.txt"))
    if not texts:
        raise InputError(f"{folder} has no NAME.txt; each picture NAME.png needs one, with its caption or instruction")
    pictures: dict[str, list[Path]] = {}  # by the part of their names before the first dot, for large folders
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in ENDINGS:
            pictures.setdefault(file.name.partition(".")[0], []).append(file)
    for text in texts:
        yield text, _row(text, pictures.get(text.name.partition(".")[0], []))


def _row(text: Path, pictures: list[Path]) -> dict:
    """What is wrong with it is left to the reader of the row, who may skip it."""
    try:
        prompt = text.read_text(encoding="utf-8-sig").strip()  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        return {"problem": f"{text} is not in UTF-8: {error}"}
    after, before = _pictures_of(text, pictures)
    name = after[0].name if len(after) == 1 else f"{text.stem}.png"
    return {"file_name": name, "text": prompt, "images": [file.name for file in before]}


def _pictures_of(text: Path, pictures: list[Path]) -> tuple[list[Path], list[Path]]:
    """The target pictures of a text, and its input pictures in order."""
    after = [file for file in pictures if file.stem == text.stem]
    numbered = {file: re.fullmatch(r"\.before(\d*)", file.stem.removeprefix(text.stem)) for file in pictures}
    return after, [file for _, file in sorted((int(found[1] or 0), file) for file, found in numbered.items() if found)]


def _sample(text: Path, pictures: list[Path], config: ProcessorConfig) -> Sample:
    try:
        prompt = text.read_text(encoding="utf-8-sig").strip()  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{text} is not in UTF-8: {error}") from error
    if not prompt:
        raise InputError(f"{text} is empty")
    after, inputs = _pictures_of(text, pictures)
    if len(after) != 1:
        raise InputError(f"{text} needs one picture {text.stem}.png (or {', '.join(ENDINGS[1:])}), not {len(after)}")
    before = [open_image(file) for file in inputs]
    picture = open_image(after[0])
    if before:
        height, width = reference_size(before[0].height, before[0].width, config)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    else:
        picture = resize_reference(picture, config)
    arrays = tuple(np.array(image) for image in before)
    return Sample("edit" if before else "draw", "", prompt, arrays, np.array(picture), "")
