"""Where the rows of a source are. Rows and pictures are read when they are needed; only places are kept in memory."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from internvlu_core.errors import InputError

from ..folder import ENDINGS, folder_rows, open_picture

TASKS = "draw", "edit", "ask", "caption", "reason"
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Place:
    """Where a row is. source: its index. offset, size: of its JSON in `file`; size 0: `row` has it.

    members: of a row in a tar file, (ending, offset, size) of each picture.
    """

    source: int
    name: str
    file: Path
    offset: int = 0
    size: int = 0
    row: dict | None = None
    members: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Row:
    """A row that was checked. picture: what to open of the target, None for a question; images: of the inputs."""

    task: str
    domain: str
    prompt: str
    words: str
    picture: Path | tuple[Path, int, int] | None
    images: tuple


def find_places(index: int, path: str) -> Iterator[Place]:
    """The rows of a source, in a fixed order. Raises InputError if it has none, or if its form is not known."""
    folder = Path(path)
    if folder.is_file() and folder.name.endswith(".jsonl"):
        places = _jsonl(index, folder)
    elif (folder / METADATA).is_file():
        places = _jsonl(index, folder / METADATA)
    elif tars := shards_of(path):
        places = (place for tar in tars for place in _tar(index, tar))
    elif folder.is_dir():
        places = (Place(index, file.stem, file, row=row) for file, row in folder_rows(folder))
    else:
        raise InputError(f"{path} is neither a folder, nor a .jsonl file, nor WebDataset shards (.tar)")
    empty = True
    for place in places:
        empty = False
        yield place
    if empty:
        raise InputError(f"{path} has no samples")


def shards_of(path: str) -> list[Path]:
    """The tar files of a folder, of a name with {000000..000099}, or of a single name."""
    ranged = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path)
    if ranged:
        before, first, last, after = ranged.groups()
        return [Path(f"{before}{n:0{len(first)}}{after}") for n in range(int(first), int(last) + 1)]
    file = Path(path)
    if file.is_dir():
        return sorted(file.glob("*.tar"))
    return [file] if file.suffix == ".tar" and file.is_file() else []


def _jsonl(index: int, file: Path) -> Iterator[Place]:
    with file.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Place(index, f"{file}, line {number}", file, offset, len(line))
            offset += len(line)


def _tar(index: int, file: Path) -> Iterator[Place]:
    """A row for each key. The members of a key lie one after another.

    Where a file is damaged or ends too early, the row that lies there has the problem.
    """
    key, members = None, []
    try:
        with tarfile.open(file, "r:") as tar:  # what is compressed cannot be read at an offset
            for member in tar:
                name = member.name.rpartition("/")[2]
                if member.isfile() and not name.startswith("."):  # macOS adds ._NAME
                    stem, _, ending = name.partition(".")
                    found = member.name.removesuffix("." + ending) if ending else stem
                    if found != key and members:
                        yield _of_members(index, file, key, members)
                        members = []
                    key = found
                    members.append((ending.lower(), member.offset_data, member.size))
            # The iteration takes a damaged header for the end, which is a block of zeros.
            if _bytes(file, tar.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no valid header at byte {tar.offset}")
    except (OSError, tarfile.TarError) as error:
        where = f"from {key} on " if members else ""
        problem = f"{file} cannot be read {where}as an uncompressed tar file: {error}"
        yield Place(index, f"{file}, {key}" if members else str(file), file, row={"problem": problem})
        return
    if members:
        yield _of_members(index, file, key, members)


def _of_members(index: int, file: Path, key: str, members: list[tuple[str, int, int]]) -> Place:
    described = next((member for member in members if member[0] == "json"), ("", 0, 0))
    pictures = tuple(member for member in members if "." + member[0].rpartition(".")[2] in ENDINGS)
    row = None if described[2] else {}
    return Place(index, f"{file}, {key}", file, *described[1:], row=row, members=pictures)


def read_row(place: Place) -> Row:
    """Raises InputError, naming the row, if something in it is missing or of another kind than it must be."""
    row = place.row
    if row and "problem" in row:
        raise InputError(row["problem"])
    if place.size:
        try:
            row = json.loads(_bytes(place.file, place.offset, place.size).decode("utf-8-sig"))
        except ValueError as error:
            raise InputError(f"{place.name} is not JSON in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{place.name} is not a JSON object")
    texts = {}
    for name in ("text", "words", "task", "domain", "file_name"):
        texts[name] = row.get(name) or ""
        if not isinstance(texts[name], str):
            raise InputError(f"{place.name}: {name} is {texts[name]!r}; it must be a text")
    if not texts["text"].strip():
        raise InputError(f"{place.name} has no text" + (", and no KEY.json to read it from" if row == {} else ""))
    picture, images = _pictures(place, row, texts["file_name"])
    task = texts["task"] or _task(picture, images, texts["words"])
    _check(place, task, picture, images, texts["words"])
    return Row(task, texts["domain"], texts["text"].strip(), texts["words"].strip(), picture, images)


def _pictures(place: Place, row: dict, file_name: str):
    """What to open of the target (or None) and of the inputs."""
    if place.members:
        members = {ending.rpartition(".")[0]: (place.file, offset, size) for ending, offset, size in place.members}
        inputs = sorted((int(name[5:]), at) for name, at in members.items() if re.fullmatch(r"input\d+", name))
        if missing := set(range(len(inputs))) - {number for number, _ in inputs}:
            raise InputError(f"{place.name} has no picture input{min(missing)}, but a later one")
        return members.get(""), tuple(at for _, at in inputs)
    names = row.get("images") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{place.name}: images is {names!r}; it must be a list of file names")
    files = [place.file.parent / name for name in (*names, *([file_name] if file_name else []))]
    for file in files:
        if not _is_file(file):
            raise InputError(f"{place.name} names the picture {file}, which is not there")
    return (files.pop() if file_name else None), tuple(files)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero in it
        return False


def _task(picture, images, words: str) -> str:
    if picture is None:
        return "ask"
    return "reason" if words else "edit" if images else "draw"


def _check(place: Place, task: str, picture, images: tuple, words: str):
    if task not in TASKS:
        raise InputError(f"{place.name}: task is {task!r}; there are {', '.join(TASKS)}")
    if picture is None and not words:
        raise InputError(f"{place.name} has neither a picture to draw, file_name, nor words, an answer")
    if task == "edit" and not images:
        raise InputError(f"{place.name}: edit needs images, the pictures before it")
    if task in ("ask", "caption") and (picture is not None or not words):
        raise InputError(f"{place.name}: {task} needs words, the answer, and no file_name; its picture is in images")
    if task in ("draw", "edit", "reason") and picture is None:
        raise InputError(f"{place.name}: {task} needs its picture, file_name")
    if task == "reason" and not words:
        raise InputError(f"{place.name}: reason needs words, the reasoning before the picture")


def read_picture(at: Path | tuple[Path, int, int], place: Place) -> Image.Image:
    """Raises InputError, naming the row, for a picture that cannot be read to its end."""
    try:
        if isinstance(at, Path):
            return open_picture(at)
        ending = next(ending for ending, offset, _ in place.members if offset == at[1])
        return open_picture(io.BytesIO(_bytes(*at)), f"its {ending}")
    except InputError as error:
        raise InputError(f"{place.name}: {error}") from error


def _bytes(file: Path, offset: int, size: int) -> bytes:
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error}") from error
