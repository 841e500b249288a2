"""REQUESTS of a batch run: JSONL or Parquet, a row a request. The file is scanned once; workers read their own rows.

See docs/batch.md for the columns.
"""

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checkpoints.files import check_regular
from ..errors import CheckpointError, InputError, need
from ..requests import DrawRequest, TextRequest

SETTINGS = frozenset(f.name for kind in (TextRequest, DrawRequest) for f in fields(kind)) - {"prompt", "images"}
KNOWN = SETTINGS | {"id", "task", "prompt", "images", "size", "n"}
UNREADABLE = "unreadable row {}"  # the id of a row that has none: one that no number of another row equals
RESULTS = ("text", "seconds", "error")  # columns of the output that no column of the requests may be called
KINDS = ("bool", "int", "float", "text", "json")  # of carried columns; json: JSON as text
INT64 = range(-(2**63), 2**63)

Values = dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Rows that one worker does at once and that become one part of the output.

    first, count: of rows. offset: in bytes, of the first row in a JSONL file. name: of the part, without its suffix; it
    holds a hash of the rows' ids, so that other requests never have the same name.
    """

    first: int
    count: int
    offset: int
    name: str


@dataclass(frozen=True)
class Row:
    """A row of the requests. values: its columns that are not null. error: why it cannot be read."""

    index: int
    id: str
    values: Values = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Scan:
    """What is known of a file of requests after one look at every row.

    ids: {id: row}, in the order of the rows. offsets: of the rows of a JSONL file, in bytes. carried: {column that is
    not ours: one of KINDS}. columns: all of them.
    """

    ids: dict[str, int]
    offsets: array
    carried: dict[str, str]
    columns: frozenset[str]

    def chunks(self, done: set[int], size: int) -> list[Chunk]:
        """The rows that are not done, in chunks of at most so many neighbours. The cuts do not depend on done."""
        chunks, ids = [], list(self.ids)
        for begin in range(0, len(ids), size):
            run: list[int] = []
            for index in (*range(begin, min(begin + size, len(ids))), None):
                if index is not None and index not in done:
                    run.append(index)
                elif run:
                    offset = self.offsets[run[0]] if self.offsets else 0
                    name = part_name(run[0], ids[run[0] : run[-1] + 1])
                    chunks.append(Chunk(run[0], len(run), offset, name))
                    run = []
        return chunks


def part_name(first: int, ids: Iterable[str]) -> str:
    """The name of a part with these ids, whose first row has this number."""
    digest = hashlib.sha256()
    for one in ids:
        digest.update(one.encode() + b"\0")
    return f"part-{first:09d}-{digest.hexdigest()[:8]}"


def is_parquet(path: Path) -> bool:
    """Whether a file of requests is Parquet, by its name; otherwise it is JSONL. Raises InputError for other names."""
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".jsonl", ".ndjson"):
        raise InputError(f"{path} must be called *.jsonl or *.parquet")
    return suffix == ".parquet"


def scan(path: Path) -> Scan:
    """Look at every row.

    Raises InputError if the file cannot be read, an id is there twice, or a column is called like one of the results.
    """
    read = _scan_parquet if is_parquet(path) else _scan_jsonl
    _check_file(path)
    ids, offsets, kinds = read(path)
    if taken := sorted(set(RESULTS) & kinds.keys()):
        raise InputError(f"{path} has a column {taken[0]!r}, which is a column of the results: rename it")
    carried = {name: kind for name, kind in kinds.items() if name not in KNOWN}
    return Scan(ids, offsets, carried, frozenset(kinds))


def read_rows(path: Path, chunk: Chunk) -> list[Row]:
    """The rows of a chunk. Raises InputError if the file is not the one that was scanned."""
    if is_parquet(path):
        rows = [_row(chunk.first + i, values) for i, values in enumerate(_parquet_rows(path, chunk))]
    else:
        with path.open("rb") as file:
            file.seek(chunk.offset)
            lines = _lines(file)
            rows = [_parse(chunk.first + i, line) for i, (_, line) in zip(range(chunk.count), lines, strict=False)]
    if part_name(chunk.first, [row.id for row in rows]) != chunk.name:
        raise InputError(f"{path} was changed while its requests were being done")
    return rows


def clean(text: str) -> str:
    """A text that can be written: unpaired surrogates, which are no characters, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_kind(value, kind: str):
    """A value of a carried column, as its kind wants it."""
    if value is None:
        return None
    if kind == "json":
        return clean(json.dumps(value, ensure_ascii=False, default=_as_json))
    return clean(value) if kind == "text" else float(value) if kind == "float" else value


def _check_file(path: Path):
    try:
        check_regular(path)
    except CheckpointError as error:
        raise InputError(f"cannot read the requests: {error}") from error


def _row(index: int, values: Values) -> Row:
    """Null and NaN, which pandas writes where a number is missing, mean that there is no value."""
    absent = [name for name, value in values.items() if value is None or (value != value and name in KNOWN)]
    values = {name: value for name, value in values.items() if name not in absent}
    given = values.get("id", index)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise InputError(f"row {index}: the id is {given!r}; it must be a text or an integer")
    return Row(index, clean(str(given)), values)


def _parse(index: int, line: bytes) -> Row:
    """A line of JSONL."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Row(index, UNREADABLE.format(index), error=f"the line is no JSON: {error}")
    if not isinstance(values, dict):
        error = f"the line must be a JSON object, not {type(values).__name__}"
        return Row(index, UNREADABLE.format(index), error=error)
    return _row(index, {clean(name): value for name, value in values.items()})


def _lines(file) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that are not blank."""
    offset = file.tell()
    for line in file:
        if line.strip():
            yield offset, line
        offset += len(line)


def _scan_jsonl(path: Path) -> tuple[dict[str, int], array, dict[str, str]]:
    ids, offsets, kinds = {}, array("q"), {}
    with path.open("rb") as file:
        for index, (offset, line) in enumerate(_lines(file)):
            row = _parse(index, line)
            _add_id(ids, row.id, index)
            offsets.append(offset)
            for name, value in row.values.items():
                kinds[name] = _merge(kinds.get(name), _kind(value))
    return ids, offsets, kinds


def _add_id(ids: dict[str, int], new: str, index: int):
    if ids.setdefault(new, index) != index:
        raise InputError(f"the id {new!r} is in rows {ids[new]} and {index}; each row needs an id of its own")


def _kind(value) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in INT64 else "json"
    return {float: "float", str: "text"}.get(type(value), "json")


def _merge(one: str | None, other: str) -> str:
    """The kind of a column with values of both kinds."""
    if one in (None, other):
        return other
    return "float" if {one, other} == {"int", "float"} else "json"


def _as_json(value):
    """Values of Parquet that JSON does not have: bytes as a text of latin-1 would be unreadable, so by length."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


# Parquet


def _scan_parquet(path: Path) -> tuple[dict[str, int], array, dict[str, str]]:
    file, pa = _open_parquet(path), need("pyarrow")
    is_ = pa.types
    kinds = {}
    for column in file.schema_arrow:
        kind = column.type
        text = is_.is_string(kind) or is_.is_large_string(kind)
        signed = is_.is_integer(kind) and not is_.is_uint64(kind)
        found = (is_.is_boolean(kind), signed, is_.is_floating(kind), text, True)
        kinds[column.name] = KINDS[found.index(True)]
    ids: dict[str, int] = {}
    if "id" in kinds:
        for batch in file.iter_batches(columns=["id"]):
            for value in batch.column(0).to_pylist():
                _add_id(ids, _row(len(ids), {"id": value}).id, len(ids))
    else:
        ids = {str(index): index for index in range(file.metadata.num_rows)}
    return ids, array("q"), kinds


def _open_parquet(path: Path):
    need("pyarrow")
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


_last_group: tuple = (None, None)  # (what was read, its rows): neighbouring chunks are often of one row group


def _parquet_rows(path: Path, chunk: Chunk) -> Iterator[Values]:
    global _last_group
    file = _open_parquet(path)
    begin, end = 0, chunk.first + chunk.count
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        low, high = max(begin, chunk.first), min(begin + count, end)
        if low < high:
            key = path, path.stat().st_mtime_ns, group
            if _last_group[0] != key:
                _last_group = key, file.read_row_group(group)
            yield from _last_group[1].slice(low - begin, high - low).to_pylist()
        begin += count


def integral(value):
    """A float without a fraction as an integer: pandas makes floats of integers where one is missing."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else value
