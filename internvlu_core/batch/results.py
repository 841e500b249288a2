"""OUT of a batch run: parts that appear whole or not at all, and which requests are done already."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, need
from .requests_file import Chunk, as_kind, clean

SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}
PICTURES = "pictures"  # the folder of --picture-files


@dataclass
class Result:
    """What becomes of a row. values: its carried columns. images: PNG files. seconds: it took. error: its message."""

    index: int
    id: str
    task: str | None = None
    prompt: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    reasoning: str | None = None
    images: list[bytes] = field(default_factory=list)
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Output:
    """Where results go and in which form.

    format: one of SUFFIXES. picture_files: pictures are files in a folder, and Parquet has their names. carried:
    {column of the requests that is written too: its kind}.
    """

    folder: Path
    format: str = "parquet"
    picture_files: bool = False
    carried: dict[str, str] = field(default_factory=dict)

    def part(self, chunk: Chunk) -> Path:
        """The file of a chunk's results."""
        return self.folder / f"{chunk.name}{SUFFIXES[self.format]}"

    def tries(self, chunk: Chunk) -> Path:
        """A file beside the part for as long as it is not done, which the next run removes."""
        return self.folder / f".{chunk.name}.tries"

    def write(self, chunk: Chunk, results: list[Result]):
        """Write a part. It has its name only when all of it is on the disk. Raises InputError if that fails."""
        try:
            if self.format == "webdataset":
                content = self._tar(results)
            else:
                content = self._parquet([self._columns(result) for result in results])
            write_whole(self.part(chunk), content)
        except OSError as error:
            raise InputError(f"cannot write {self.part(chunk)}: {error}") from error

    def _columns(self, result: Result) -> dict[str, Any]:
        """A result as the columns of Parquet, in their order, or, less the pictures, as JSON."""
        texts = {name: result.__dict__[name] for name in ("id", "task", "prompt")}
        found = {name: result.__dict__[name] for name in ("text", "reasoning", "images", "seconds", "error")}
        carried = {name: as_kind(result.values.get(name), kind) for name, kind in self.carried.items()}
        columns = texts | carried | found
        if self.picture_files:
            columns["images"] = list(self._write_pictures(result))
        return {name: clean(value) if isinstance(value, str) else value for name, value in columns.items()}

    def _write_pictures(self, result: Result) -> Iterator[str]:
        (self.folder / PICTURES).mkdir(exist_ok=True)
        for name, picture in picture_names(result):
            write_whole(self.folder / PICTURES / name, picture)
            yield f"{PICTURES}/{name}"

    def _parquet(self, rows: list[dict[str, Any]]) -> bytes:
        pa = need("pyarrow")
        import pyarrow.parquet as parquet

        target = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(rows, self._schema()), target)
        return target.getvalue()

    def _schema(self):
        """Of every part, whatever values its rows have."""
        pa = need("pyarrow")
        kinds = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(), "json": pa.string()}
        picture = pa.string() if self.picture_files else pa.large_binary()  # large: more than 2 GB in a part
        columns = {name: pa.string() for name in ("id", "task", "prompt")}
        columns |= {name: kinds[kind] for name, kind in self.carried.items()}
        columns |= {"text": pa.string(), "reasoning": pa.string(), "images": pa.list_(picture)}
        columns |= {"seconds": pa.float64(), "error": pa.string()}
        return pa.schema(list(columns.items()))

    def _tar(self, results: list[Result]) -> bytes:
        members = []
        for result in results:
            columns = self._columns(result)
            columns["images"] = [name for name, _ in picture_names(result)]
            described = json.dumps(columns, ensure_ascii=False).encode()
            members += [(f"{key(result)}.json", described), *picture_names(result)]
        return tar_file(members)

    def done(self, ids: dict[str, int]) -> set[int]:
        """The rows that are in parts. ids: {id: row} of the requests.

        Raises InputError if a part is damaged, is of another format, or has ids that are not among these.
        """
        rows: set[int] = set()
        others = [suffix for name, suffix in SUFFIXES.items() if name != self.format]
        for part in sorted(self.folder.glob("part-*")):
            if part.suffix in others:
                raise InputError(f"{self.folder} has results in another format, such as {part.name}")
            for one in self._ids(part) if part.suffix == SUFFIXES[self.format] else ():
                if one not in ids:
                    raise InputError(f"{part} has a result for {one!r}, which is not among the requests")
                rows.add(ids[one])
        return rows

    def _ids(self, part: Path) -> list[str]:
        try:
            if self.format == "webdataset":
                with tarfile.open(part) as tar:
                    return [json.load(tar.extractfile(m))["id"] for m in tar if m.name.endswith(".json")]
            need("pyarrow")
            import pyarrow.parquet as parquet

            file = parquet.ParquetFile(part)
            if not file.schema_arrow.equals(self._schema()):
                raise InputError(f"{part} has other columns than these requests give")
            return file.read(["id"]).column(0).to_pylist()
        except (OSError, ValueError, KeyError, tarfile.TarError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{part} is damaged ({error}); delete it, and its rows are done again") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made if it is not there, for one run at a time; with what a killed run left half written removed.

        Raises InputError if it cannot be made or another run has it.
        """
        with locked(self.folder, (".*.half", f"{PICTURES}/.*.half", ".*.tries")):
            yield


def shards_in(folder: Path) -> list[Path]:
    """The WebDataset shards of a folder, in the order of the rows. The rows of one that is deleted are done again."""
    return sorted(folder.glob(f"part-*{SUFFIXES['webdataset']}"))


def read_shard(part: Path) -> Iterator[Result]:
    """The results in a WebDataset shard, in the order of the rows, without carried columns."""
    with tarfile.open(part) as tar:
        for member in tar:
            if not member.name.endswith(".json"):
                continue
            columns = json.load(tar.extractfile(member))
            images = [tar.extractfile(name).read() for name in columns["images"]]
            texts = {name: columns[name] for name in ("id", "task", "prompt", "text", "reasoning", "error")}
            index = int(member.name.partition(".")[0])
            yield Result(index, images=images, seconds=columns["seconds"], **texts)


def key(result: Result) -> str:
    """What the files of a row are called: its number, since an id can be any text."""
    return f"{result.index:09d}"


def picture_names(result: Result) -> list[tuple[str, bytes]]:
    """(file name, content) of each picture."""
    one = len(result.images) == 1
    return [(f"{key(result)}{'' if one else f'.{i}'}.png", picture) for i, picture in enumerate(result.images)]


@contextmanager
def locked(folder: Path, left_over: Iterable[str]) -> Iterator[None]:
    """A folder, made if it is not there, for one run at a time. left_over: globs of files that are removed first.

    Raises InputError if it cannot be made or another run has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}") from error
    with lock:
        with suppress(ImportError):  # Windows: nothing is locked there
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another run is writing to {folder}") from None
            except OSError:
                pass  # a file system without locks
        for pattern in left_over:
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
        yield


def tar_file(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar file of (name, content). The same members give the same bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def write_whole(path: Path, content: bytes):
    """Write a file so that at any kill or loss of power it is there whole or not at all."""
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the name is on the disk when the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
