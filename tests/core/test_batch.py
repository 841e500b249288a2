"""`internvlu batch`: rows, errors, parts, resuming, and results that depend on the row alone."""

import base64
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from internvlu_core import CheckpointError, InputError, errors
from internvlu_core.batch import BatchOptions, ModelOptions, engines, pictures, run_batch
from internvlu_core.batch.requests_file import scan
from internvlu_core.batch.results import Output
from internvlu_core.batch.worker import Work, Worker
from internvlu_core.cli import main
from support.checkpoints import CHECKPOINT, GOLDEN

ROOT = Path(__file__).resolve().parents[2]
PHOTO = GOLDEN / "photo.png"
MODEL = ModelOptions(str(CHECKPOINT), "cpu", torch.float32)
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders, no flock and no SIGKILL")
ANSWER = {"task": "answer", "max_new_tokens": 2}
DRAW = {"task": "generate", "size": "32x32", "steps": 1}


@pytest.fixture(autouse=True)
def loaded(model, monkeypatch):
    """Every run in this process uses the tests' model."""
    monkeypatch.setattr(ModelOptions, "load", lambda self: model)


def write(path: Path, rows: list) -> Path:
    """Requests as JSONL (a text is a line as it is), or as Parquet by the file's name."""
    if path.suffix == ".parquet":
        parquet.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path, row_group_size=3)
    else:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(requests: Path, out: Path, **options):
    return run_batch(BatchOptions(requests, out, MODEL, **options))


def read(out: Path) -> dict[str, dict]:
    """{id: row} of all parts, which have one schema and no id twice."""
    tables = [parquet.read_table(part) for part in sorted(out.glob("part-*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()  # raises if schemas differ
    twice = [one for one, count in Counter(row["id"] for row in rows).items() if count > 1]
    assert not twice
    return {row["id"]: row for row in rows}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)), dtype=int)


def uri(content: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(content).decode()


# Rows

SIX = [
    ANSWER | {"id": "a", "prompt": "What?", "images": str(PHOTO)},
    {"id": "b", "task": "reason", "prompt": "a cat", "max_new_tokens": 3, "temperature": 1.0},
    DRAW | {"id": "c", "prompt": "a cat", "n": 2, "seed": 5},
    DRAW | {"id": "d", "task": "edit", "prompt": "blue", "images": [str(PHOTO)], "size": "64x32"},
    DRAW | {"id": "e", "task": "reason+generate", "prompt": "a dog", "max_new_tokens": 3, "seed": 2},
    DRAW | {"id": "f", "task": "reason+edit", "prompt": "red", "images": PHOTO.as_uri()[7:], "max_new_tokens": 3},
]


def test_each_task_is_the_call_of_the_same_name(model, photo, tmp_path):
    """--together 1: to the bit."""
    run(write(tmp_path / "r.jsonl", SIX), tmp_path / "out", together=1)
    rows = read(tmp_path / "out")
    assert all(row["error"] is None and row["seconds"] > 0 for row in rows.values())
    assert rows["a"]["text"] == model.answer("What?", photo, max_new_tokens=2, seed=0).text
    assert rows["b"]["reasoning"] == model.reason("a cat", max_new_tokens=3, temperature=1.0, seed=0).text
    thought = model.reason("a dog", max_new_tokens=3, seed=2)
    seen = model.reason("red", photo, max_new_tokens=3, seed=0)
    assert (rows["e"]["reasoning"], rows["f"]["reasoning"]) == (thought.text, seen.text)
    expected = {
        "c": model.generate("a cat", height=32, width=32, steps=1, num_images=2, seed=5),
        "d": model.generate("blue", photo, height=32, width=64, steps=1),
        "e": model.generate("a dog", height=32, width=32, steps=1, seed=2, reasoning=thought),
        "f": model.generate("red", photo, height=32, width=32, steps=1, reasoning=seen),
    }
    for one, result in expected.items():
        assert len(rows[one]["images"]) == len(result.images)
        for content, picture in zip(rows[one]["images"], result.images, strict=True):
            assert np.array_equal(pixels(content), picture), one


def test_a_row_is_the_same_in_any_company(tmp_path):
    many = [dict(row, id=f"{row['id']}{i}") for i in range(2) for row in SIX]
    run(write(tmp_path / "one.jsonl", SIX), tmp_path / "one", together=1, chunk=1)
    run(write(tmp_path / "many.jsonl", many), tmp_path / "many", chunk=7)
    alone, together = read(tmp_path / "one"), read(tmp_path / "many")
    for row in alone.values():
        for i in range(2):
            other = together[f"{row['id']}{i}"]
            assert (other["text"], other["reasoning"]) == (row["text"], row["reasoning"])
            for one, two in zip(other["images"], row["images"], strict=True):
                assert np.abs(pixels(one) - pixels(two)).max() <= 1


def test_a_damaged_line_takes_no_id_of_another_row(tmp_path):
    lines = [json.dumps(ANSWER | {"prompt": "hi", "max_new_tokens": 1, "id": number}) for number in (1, 2)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"id": "x"']))
    run(tmp_path / "in.jsonl", tmp_path / "out")
    errors = {name: row["error"] for name, row in read(tmp_path / "out").items()}
    assert errors["1"] is None and errors["2"] is None
    assert "no JSON" in errors["unreadable row 2"]


BAD = {  # what is wrong with a row, and what its error says
    '{"id": "x"': "no JSON",
    "\\xff\x00[": "no JSON",
    '["a"]': "must be a JSON object",
    "[" * 100_000: "no JSON",
}
BAD_ROWS = [
    ({"prompt": "no task"}, "the task is None"),
    ({"task": ["answer"], "prompt": "x"}, "the task is ['answer']"),
    (ANSWER, "prompt must be a string, not NoneType"),
    (ANSWER | {"prompt": 3}, "prompt must be a string"),
    (ANSWER | {"prompt": "\ud800"}, "prompt is not valid text"),
    (ANSWER | {"prompt": "x", "steps": 3}, "the task answer has no setting steps"),
    (DRAW | {"prompt": "x", "max_new_tokens": 3}, "the task generate has no setting max_new_tokens"),
    (ANSWER | {"prompt": "x", "max_new_tokens": 0}, "max_new_tokens is 0"),
    (ANSWER | {"prompt": "x", "max_new_tokens": "3"}, "max_new_tokens"),
    (ANSWER | {"prompt": "x", "history": [{"question": 1}]}, "turn 1 of the conversation"),
    (DRAW | {"prompt": "x", "size": "32"}, "the size is '32'"),
    (DRAW | {"prompt": "x", "size": "99999x32"}, "width is 99999"),
    (DRAW | {"prompt": "x", "width": 32}, "size or width, not both"),
    (DRAW | {"prompt": "x", "n": 0}, "num_images is 0"),
    (DRAW | {"prompt": "x", "seed": -1}, "seed is -1"),
    (DRAW | {"prompt": "x", "steps": 1.5}, "steps is 1.5"),
    (DRAW | {"prompt": "x", "task": "edit"}, "there is no image to edit"),
    (ANSWER | {"prompt": "x " * 9000}, "tokens"),
    (ANSWER | {"prompt": "x", "images": "no.png"}, "missing file"),
    (ANSWER | {"prompt": "x", "images": "."}, "a folder, not a regular file"),
    (ANSWER | {"prompt": "x", "images": "pipe.png"}, "a named pipe, not a regular file"),
    (ANSWER | {"prompt": "x", "images": "text.png"}, "cannot read the image text.png"),
    (ANSWER | {"prompt": "x", "images": "cut.png"}, "cannot read the image cut.png"),
    (ANSWER | {"prompt": "x", "images": "a\0b.png"}, "cannot read the image"),
    (ANSWER | {"prompt": "x", "images": [3]}, "must be a path"),
    (ANSWER | {"prompt": "x", "images": "data:image/png;base64,?"}, "damaged data: URI"),
    (ANSWER | {"prompt": "x", "images": uri(b"abc")}, "cannot read the image of the request"),
    (ANSWER | {"prompt": "x", "images": "http://127.0.0.1:9/a.png"}, "give --allow-urls"),
    (ANSWER | {"prompt": "x", "images": "file:///etc/passwd"}, "only http and https"),
]


@POSIX
@pytest.mark.parametrize("together", [1, 16])
def test_a_bad_row_is_an_error_in_that_row(tmp_path, together):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(PHOTO.read_bytes()[:2000])
    os.mkfifo(tmp_path / "pipe.png")
    good = [ANSWER | {"prompt": "good"}, DRAW | {"prompt": "good"}]
    rows = [*good, *(row for row, _ in BAD_ROWS), "", *BAD, *good]
    summary = run(write(tmp_path / "r.jsonl", rows), tmp_path / "out", chunk=50, together=together)
    found = read(tmp_path / "out")
    said = ["", "", *(text for _, text in BAD_ROWS), *BAD.values(), "", ""]
    # Rows without an id; the blank line is none.
    unreadable = range(len(said) - 2 - len(BAD), len(said) - 2)
    assert list(found) == [f"unreadable row {i}" if i in unreadable else str(i) for i in range(len(said))]
    for row, text in zip(found.values(), said, strict=True):
        assert bool(row["error"]) == bool(text), row
        assert text in (row["error"] or ""), row
        assert bool(row["text"] or row["images"]) != bool(text)
    assert (summary.rows, summary.errors) == (len(said), sum(map(bool, said)))


def test_an_error_of_all_together_is_that_of_one(model, tmp_path, monkeypatch):
    """Such as memory that does not suffice for what one row asks for."""
    sample, large = model._sample, model.noise(32, 32, seed=9)

    def run_out(contexts, noises, *args):
        if any(torch.equal(noise, large) for noise in noises):
            raise MemoryError("too large")
        return sample(contexts, noises, *args)

    monkeypatch.setattr(model, "_sample", run_out)
    rows = [DRAW | {"prompt": "x"}, DRAW | {"prompt": "x", "seed": 9}, DRAW | {"prompt": "y"}]
    run(write(tmp_path / "r.jsonl", rows), tmp_path / "out")
    found = read(tmp_path / "out").values()
    assert [row["error"] for row in found] == [None, "MemoryError: too large", None]
    assert [len(row["images"]) for row in found] == [1, 0, 1]


def test_columns_of_json_lines(model, photo, tmp_path):
    """Null is absent; ours are read, whole floats too; others are carried, each with one type."""
    history = [{"question": "What?", "answer": "A cat."}]
    rows = [
        ANSWER | {"id": 7, "prompt": "x", "a": 1, "b": 1, "c": 1, "d": True, "e": {"k": [1]}, "f": "t", "g": 2**80},
        ANSWER | {"prompt": "x", "a": None, "b": 0.5, "c": "s", "d": False, "seed": None, "max_new_tokens": 2.0},
        ANSWER | {"prompt": "And?", "history": history, "images": uri(PHOTO.read_bytes()), "f": "\udcff"},
        "not JSON",
    ]
    run(write(tmp_path / "r.jsonl", rows), tmp_path / "out", chunk=1)
    found = read(tmp_path / "out")
    assert list(found) == ["7", "1", "2", "unreadable row 3"]
    carried = [tuple(row[name] for name in "abcdefg") for row in found.values()]
    assert carried == [
        (1, 1.0, "1", True, '{"k": [1]}', "t", str(2**80)),
        (None, 0.5, '"s"', False, None, None, None),
        (None, None, None, None, None, "\\udcff", None),
        (None,) * 7,
    ]
    assert found["7"]["text"] == found["1"]["text"] == model.answer("x", max_new_tokens=2).text
    turns = [dict(question="What?", answer="A cat.", images=(photo,))]
    from internvlu_core import Turn

    expected = model.answer("And?", history=[Turn(**turn) for turn in turns], max_new_tokens=2)
    assert found["2"]["text"] == expected.text


def test_columns_of_parquet(model, photo, tmp_path):
    """Pictures as bytes, as Hugging Face's structs, as paths and lists; missing numbers as pandas writes them."""
    content = PHOTO.read_bytes()
    columns = {
        "id": pa.array(["a", "b", "c", "d", "e"]),
        "task": pa.array(["answer", "generate", "answer", "answer", "answer"]),
        "prompt": pa.array(["x"] * 5),
        "images": pa.array(
            [[{"bytes": content, "path": None}], None, [{"bytes": None, "path": "photo.png"}], [], None]
        ),
        "max_new_tokens": pa.array([2.0, float("nan"), 2.0, 2.0, 2.0]),
        "steps": pa.array([None, 1, None, None, None]),
        "size": pa.array([None, "32x32", None, None, None]),
        "score": pa.array([0.5, None, float("nan"), 1, 2], pa.float32()),
        "tags": pa.array([["u", "v"], None, [], [], []]),
        "big": pa.array([2**64 - 1, 1, 1, 1, 1], pa.uint64()),
    }
    (tmp_path / "photo.png").write_bytes(content)
    run(write(tmp_path / "r.parquet", pa.table(columns)), tmp_path / "out", chunk=2)
    found = read(tmp_path / "out")
    assert [row["error"] for row in found.values()] == [None] * 5
    expected = model.answer("x", photo, max_new_tokens=2).text
    assert found["a"]["text"] == found["c"]["text"] == expected
    assert found["d"]["text"] == found["e"]["text"] == model.answer("x", max_new_tokens=2).text
    assert found["a"]["tags"] == '["u", "v"]'
    assert found["a"]["big"] == str(2**64 - 1)
    assert np.isnan(found["c"]["score"])
    assert found["b"]["score"] is None

    plain = {"task": ["answer"] * 2, "prompt": ["x"] * 2, "max_new_tokens": [2] * 2, "images": [content, None]}
    run(write(tmp_path / "plain.parquet", pa.table(plain)), tmp_path / "plain")
    assert read(tmp_path / "plain")["0"]["text"] == expected


@pytest.fixture
def web(monkeypatch):
    """A server's address; its paths are a picture, a redirection to a file, too much, and nothing."""
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 2**20)
    monkeypatch.setenv("no_proxy", "*")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response({"/photo": 200, "/big": 200, "/away": 302}.get(self.path, 404))
            if self.path == "/away":
                self.send_header("Location", PHOTO.as_uri())
            self.end_headers()
            if self.path in ("/photo", "/big"):
                self.wfile.write(PHOTO.read_bytes() if self.path == "/photo" else bytes(2**21))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls(model, photo, web, tmp_path):
    rows = [ANSWER | {"prompt": "x", "images": f"{web}/{name}"} for name in ("photo", "away", "big", "no")]
    run(write(tmp_path / "r.jsonl", rows), tmp_path / "out", allow_urls=True)
    good, *bad = read(tmp_path / "out").values()
    assert good["text"] == model.answer("x", photo, max_new_tokens=2).text
    for row, said in zip(bad, ("HTTP Error 302", "larger than 1 MB", "HTTP Error 404"), strict=True):
        assert said in row["error"]


# Parts


def requests_of(tmp_path: Path, count: int = 10) -> Path:
    return write(tmp_path / "r.jsonl", [ANSWER | {"id": f"r{i}", "prompt": f"{i}", "i": i} for i in range(count)])


def test_picture_files(tmp_path):
    rows = [DRAW | {"id": "../x", "prompt": "x"}, DRAW | {"prompt": "y", "n": 2}]
    run(write(tmp_path / "r.jsonl", rows), tmp_path / "out", picture_files=True)
    run(tmp_path / "r.jsonl", tmp_path / "bytes")
    files, inside = read(tmp_path / "out"), read(tmp_path / "bytes")
    assert files["../x"]["images"] == ["pictures/000000000.png"]
    assert files["1"]["images"] == ["pictures/000000001.0.png", "pictures/000000001.1.png"]
    for one, row in files.items():
        assert [(tmp_path / "out" / name).read_bytes() for name in row["images"]] == inside[one]["images"]


def test_web_dataset(tmp_path):
    rows = [DRAW | {"id": "a/b", "prompt": "x", "k": [1]}, ANSWER | {"prompt": "y"}, DRAW | {"prompt": "z", "n": 2}]
    run(write(tmp_path / "r.jsonl", rows), tmp_path / "out", format="webdataset", chunk=2)
    members = {}
    for part in sorted((tmp_path / "out").glob("part-*")):
        with tarfile.open(part) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}
    numbers = [f"{i:09d}" for i in range(3)]
    pictures = [f"{numbers[0]}.png", f"{numbers[2]}.0.png", f"{numbers[2]}.1.png"]
    assert set(members) == {*(f"{n}.json" for n in numbers), *pictures}
    first, second, third = (json.loads(members[f"{n}.json"]) for n in numbers)
    assert (first["id"], first["images"], first["k"]) == ("a/b", pictures[:1], "[1]")
    assert second["text"]
    assert third["images"] == pictures[1:]
    run(tmp_path / "r.jsonl", tmp_path / "parquet")
    inside = read(tmp_path / "parquet")
    assert [members[name] for name in pictures] == [*inside["a/b"]["images"], *inside["2"]["images"]]
    assert run(tmp_path / "r.jsonl", tmp_path / "out", format="webdataset").before == 3


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    requests, out = requests_of(tmp_path), tmp_path / "out"
    run(requests, out, chunk=3)
    whole, parts = read(out), sorted(out.glob("part-*"))
    assert [part.name[:14] for part in parts] == [f"part-{i:09d}" for i in (0, 3, 6, 9)]
    parts[1].unlink()
    (out / ".part-000000003-00000000.parquet.1.half").write_text("half")
    before = parts[0].stat().st_mtime_ns
    summary = run(requests, out, chunk=4)
    assert (summary.rows, summary.before) == (10, 7)
    assert parts[0].stat().st_mtime_ns == before
    again = read(out)
    assert {one: row["text"] for one, row in again.items()} == {one: row["text"] for one, row in whole.items()}
    assert not list(out.glob(".*.half"))

    monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("a model for nothing"))
    assert run(requests, out).before == 10


def test_other_results_are_in_the_way(tmp_path):
    requests, out = requests_of(tmp_path, 4), tmp_path / "out"
    run(requests, out, chunk=2)
    with pytest.raises(InputError, match="another format"):
        run(requests, out, format="webdataset")
    with pytest.raises(InputError, match="other columns"):
        run(requests, out, picture_files=True)
    with pytest.raises(InputError, match="'r0', which is not among the requests"):
        run(write(tmp_path / "other.jsonl", [ANSWER | {"prompt": "x", "i": 1}]), out)
    part = next(out.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"is damaged .* delete it"):
        run(requests, out)
    with pytest.raises(InputError, match="cannot write to"):
        run(requests, part)


@POSIX
def test_one_run_at_a_time(tmp_path):
    requests, out = requests_of(tmp_path, 2), tmp_path / "out"
    refused = []

    def meanwhile(done, total):
        with pytest.raises(InputError, match="another run is writing"):
            run(requests, out)
        refused.append(done)

    run_batch(BatchOptions(requests, out, MODEL, chunk=1), meanwhile)
    assert refused == [0, 1, 2]


BAD_FILES = [
    ([{"id": "a"}, {"id": "b"}, {"id": "a"}], "'a' is in rows 0 and 2"),
    ([{"id": "1"}, {}], "'1' is in rows 0 and 1"),
    ([{"id": [1]}], r"row 0: the id is \[1\]"),
    ([{"text": "x"}], "column 'text'"),
]


@pytest.mark.parametrize(("rows", "said"), BAD_FILES)
def test_bad_requests_end_before_the_start(rows, said, tmp_path):
    with pytest.raises(InputError, match=said):
        run(write(tmp_path / "r.jsonl", rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_files_of_requests(tmp_path, capfd):
    (tmp_path / "r.parquet").write_text("no Parquet")
    for name, said in (("r.csv", "must be called"), ("no.jsonl", "missing file"), ("r.parquet", "as Parquet")):
        with pytest.raises(InputError, match=said):
            run(tmp_path / name, tmp_path / "out")
    assert main(["batch", str(tmp_path / "no.jsonl"), str(tmp_path / "out"), "--checkpoint", str(CHECKPOINT)]) == 2
    assert main(["batch", str(tmp_path / "no.jsonl"), str(tmp_path / "out")]) == 2
    assert "give a checkpoint or ComfyUI servers" in capfd.readouterr().err
    with pytest.raises(CheckpointError, match="does not exist"):
        run_batch(BatchOptions(requests_of(tmp_path), tmp_path / "out", ModelOptions(str(tmp_path / "nowhere"))))


def test_a_file_that_changes_meanwhile(tmp_path):
    requests = requests_of(tmp_path, 4)
    with pytest.raises(InputError, match="was changed"):
        run_batch(BatchOptions(requests, tmp_path / "out", MODEL, chunk=2), lambda *_: write(requests, [{}] * 4))


def test_chunks_do_not_depend_on_what_is_done(tmp_path):
    found = scan(requests_of(tmp_path, 10))
    whole = {chunk.name: chunk for chunk in found.chunks(set(), 4)}
    assert [(c.first, c.count) for c in whole.values()] == [(0, 4), (4, 4), (8, 2)]
    assert all(whole[chunk.name] == chunk for chunk in found.chunks(set(range(4)), 4))
    assert [(c.first, c.count) for c in found.chunks({1, 5, 6}, 4)] == [(0, 1), (2, 2), (4, 1), (7, 1), (8, 2)]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'pip install "\.\[batch\]"'):
        run(requests_of(tmp_path), tmp_path / "out")
    run(tmp_path / "r.jsonl", tmp_path / "tar", format="webdataset")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "\.\[batch\]"'):
        run(tmp_path / "r.jsonl", tmp_path / "ray", format="webdataset", ray=engines.RayOptions(1))
    assert errors.need("json") is json


@pytest.mark.parametrize("port", [9, 70000])
def test_a_cluster_that_is_not_there_is_told_at_once(port):
    """Before Ray is asked, which here is None."""
    with pytest.raises(InputError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        engines._start(None, f"127.0.0.1:{port}", 1, ())


def test_a_chunk_that_ends_its_workers_ends_the_run(tmp_path):
    """Ray would give it to another worker for ever."""
    work = Work(requests_of(tmp_path), Output(tmp_path, carried={"i": "int"}))
    (chunk,) = scan(work.requests).chunks(set(), 64)
    workers = engines.Workers(partial(Worker, work, MODEL.load), work.output.tries, hint="; look there")
    worker = engines.RayWorker(workers, 1)
    batch = {name: np.array([value]) for name, value in asdict(chunk).items()}
    assert worker(batch) == {"rows": [10], "errors": [0]}
    assert not work.output.tries(chunk).exists()
    work.output.tries(chunk).write_bytes(b"." * engines.ATTEMPTS)
    with pytest.raises(InputError, match=r"5 workers have died during rows 0 to 9; look there$"):
        worker(batch)
    with work.output.locked():
        assert not work.output.tries(chunk).exists()


def test_nothing_of_it_is_imported_with_the_core():
    code = "import internvlu_core, sys; print([m for m in sys.modules if 'batch' == m.split('.')[-1] or 'ray' == m])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# Processes

FAULTS = 1000  # rows, of which every tenth is bad


@pytest.fixture
def processes():
    """start(*options) → a run of the command in a process of its own. Nothing that one of them started outlives it."""
    started, seen = [], {}

    def start(*options) -> psutil.Process:
        # Ray gives its workers a low priority, which on a busy machine takes minutes to start them.
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        command = [sys.executable, "-m", "internvlu_core", "batch", *map(str, options)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell's background jobs do not hear SIGINT, nor would what they start.
        process = psutil.Popen(
            command, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes
        )
        started.append(process)
        return process

    def note():
        for process in started:
            if process.is_running():
                seen.update({child.pid: child for child in process.children(recursive=True)})
        return seen.values()

    start.note = note
    yield start
    left = [*note(), *started]
    for process in left:
        if process.is_running():
            process.kill()
    psutil.wait_procs(left, timeout=20)


def wait_for(condition, seconds: float = 500):
    """The first true value of condition()."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def workers(processes) -> dict[int, psutil.Process]:
    """{pid: process} of Ray's actors."""
    found = {}
    for process in processes.note():
        try:
            if process.is_running() and "ray::MapWorker" in " ".join(process.cmdline()):
                found[process.pid] = process
        except psutil.Error:
            pass
    return found


@pytest.mark.slow
@POSIX
def test_killed_workers_and_drivers_lose_nothing(processes, tmp_path):
    """A worker is killed, then the driver; the next run does what is left."""
    rows = [ANSWER | {"id": f"r{i}", "prompt": f"row {i}", "max_new_tokens": 1 + i % 4} for i in range(FAULTS)]
    rows[::10] = [ANSWER | {"id": f"r{i}", "prompt": "bad", "images": "no.png"} for i in range(0, FAULTS, 10)]
    requests, out = write(tmp_path / "r.jsonl", rows), tmp_path / "out"
    options = requests, out, "--checkpoint", CHECKPOINT, "--dtype", "fp32", "--workers", 2, "--chunk", 10

    def parts() -> int:
        return len(list(out.glob("part-*")))

    driver = processes(*options)
    wait_for(lambda: driver.poll() is not None or parts() >= 2)
    first = workers(processes)
    assert len(first) == 2, driver.poll()
    os.kill(next(iter(first)), signal.SIGKILL)
    wait_for(lambda: driver.poll() is not None or set(workers(processes)) - set(first))  # another in its place
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not workers(processes))  # Ray ends with its driver
    assert 2 <= parts() < FAULTS / 10

    driver = processes(*options)
    printed, said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    assert printed.startswith(f"{FAULTS} rows done, ")
    lines = [line for line in said.replace("\r", "\n").splitlines() if line and "logging.cc" not in line]
    assert all("row/s]" in line or "s/row]" in line for line in lines), said  # the bar alone

    run(requests, tmp_path / "alone", together=1)
    found, alone = read(out), read(tmp_path / "alone")
    assert set(found) == set(alone) == {f"r{i}" for i in range(FAULTS)}
    for one, row in found.items():
        assert (row["text"], row["error"]) == (alone[one]["text"], alone[one]["error"])
    assert sum(row["error"] is not None for row in found.values()) == FAULTS / 10


@POSIX
def test_interrupted(processes, tmp_path):
    rows = [ANSWER | {"prompt": f"row {i}", "max_new_tokens": 7} for i in range(200)]
    requests, out = write(tmp_path / "r.jsonl", rows), tmp_path / "out"
    process = processes(requests, out, "--checkpoint", CHECKPOINT, "--dtype", "fp32", "--chunk", 5)
    wait_for(lambda: process.poll() is not None or list(out.glob("part-*")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert said.endswith("internvlu_core: cancelled\n")
    assert 5 <= len(read(out)) < len(rows)
    assert run_batch(BatchOptions(write(tmp_path / "r.jsonl", rows), out, MODEL, chunk=100)).rows == len(rows)
