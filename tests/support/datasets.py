"""Data sets for tests, in the forms that other trainers write."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = (48, 48), (64, 48), (48, 64), (96, 64)


def picture(number: int) -> Image.Image:
    levels = np.random.default_rng(number).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize(SIZES[number % len(SIZES)])


def rows(kind: str, count: int) -> list[dict]:
    """Rows without file names; "images" is a number of pictures."""
    row = {
        "draw": {"text": "a red star", "target": True, "images": 0},
        "edit": {"text": "make it blue", "target": True, "images": 1},
        "two": {"text": "put one into the other", "target": True, "images": 2},
        "ask": {"text": "what is it?", "words": "a star", "target": False, "images": 1},
        "reason": {"text": "a star", "words": "a red star on white", "target": True, "images": 0},
    }[kind]
    return [row | {"text": f"{row['text']} {n % 3}"} for n in range(count)]


def write_jsonl(folder: Path, described: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(described):
        row = dict(row)
        inputs = [f"{number}-in{n}.png" for n in range(row.pop("images"))]
        for n, name in enumerate(inputs):
            picture(number + n + 1).save(folder / name)
        if row.pop("target"):
            row["file_name"] = f"{number}.png"
            picture(number).save(folder / row["file_name"])
        lines.append(json.dumps(row | ({"images": inputs} if inputs else {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_shards(folder: Path, described: list[dict], size: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(described), size):
        with tarfile.open(folder / f"part-{first // size:06d}.tar", "w") as tar:
            for number, row in enumerate(described[first : first + size], first):
                row = dict(row)
                members = {f"input{n}.png": picture(number + n + 1) for n in range(row.pop("images"))}
                members |= {"png": picture(number)} if row.pop("target") else {}
                _add(tar, f"{number:08d}.json", json.dumps(row).encode())
                for ending, image in members.items():
                    stream = io.BytesIO()
                    image.save(stream, "PNG")
                    _add(tar, f"{number:08d}.{ending}", stream.getvalue())
    return folder


def _add(tar: tarfile.TarFile, name: str, content: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
