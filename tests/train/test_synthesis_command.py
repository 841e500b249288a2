"""`python -m internvlu_train.synthesis`: the same samples however they are made, and nothing lost."""

import errno
import importlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from internvlu_core import InputError
from internvlu_core.batch import engines, results
from internvlu_train import synthesis
from internvlu_train.sample import Sample
from internvlu_train.synthesis import __main__ as command
from internvlu_train.synthesis import writer
from internvlu_train.synthesis.writer import Output, Plan, write


def patches(choices, task):
    """A sample of few pixels, quickly made."""
    picture = np.full((*choices.size[::-1], 3), choices.number(0, 255), np.uint8)
    prompt = {"en": "draw", "zh": "画"}[choices.language]
    images = (picture, 255 - picture) if task == "edit" else (picture,) if task == "ask" else ()
    level = int(picture[0, 0, 0])
    truth = {"level": np.int64(level)}
    return Sample(task, "text", prompt, images, None if task == "ask" else picture, "yes" * (task == "ask"), truth)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    kinds = {task: {f"{task} patch": lambda c, t=task: patches(c, t)} for task in ("draw", "edit", "ask")}
    monkeypatch.setattr(importlib.import_module("internvlu_train.synthesis.text"), "KINDS", kinds)


def plan(count=10, **settings):
    return Plan("text", count, **{"sizes": ((96, 64), (64, 64)), "shard": 4} | settings)


def parts(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("text-*.tar"))}


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_shards_have_the_agreed_members(tmp_path):
    summary = write(plan(), Output(tmp_path))
    assert (summary.samples, summary.before, summary.failed, summary.bad) == (10, 0, 0, ())
    assert list(parts(tmp_path)) == ["text-000000.tar", "text-000001.tar", "text-000002.tar"]
    seen = set()
    for number in range(10):
        wanted, key = plan().sample(number), f"{number:09d}"
        with tarfile.open(tmp_path / f"text-{number // 4:06d}.tar") as tar:
            row = json.load(tar.extractfile(f"{key}.json"))
            names = {name for name in tar.getnames() if name.startswith(key)}
            read = {
                name: np.asarray(Image.open(io.BytesIO(tar.extractfile(name).read())))
                for name in names
                if "png" in name
            }
        assert row["text"] == wanted.prompt and row["task"] == wanted.task and row["domain"] == "text"
        assert row.get("words", "") == wanted.words and row["truth"]["level"] == wanted.truth["level"]
        inputs = [f"{key}.input{i}.png" for i in range(len(wanted.images))]
        assert names == {f"{key}.json", *inputs, *([f"{key}.png"] if wanted.picture is not None else [])}
        assert all(np.array_equal(read[name], image) for name, image in zip(inputs, wanted.images, strict=True))
        assert wanted.picture is None or np.array_equal(read[f"{key}.png"], wanted.picture)
        seen.add((wanted.task, row["truth"]["language"]))
    assert len(seen) > 3


def test_a_folder_has_pictures_and_rows_in_order(tmp_path):
    write(plan(), Output(tmp_path, "folder"))
    found = rows(tmp_path)
    assert len(found) == 10
    for number, row in enumerate(found):
        wanted = plan().sample(number)
        images = [np.asarray(Image.open(tmp_path / name)) for name in row.get("images", ())]
        assert len(images) == len(wanted.images)
        assert all(np.array_equal(*both) for both in zip(images, wanted.images, strict=True))
        if wanted.picture is None:
            assert "file_name" not in row and row["words"] == "yes"
        else:
            assert np.array_equal(np.asarray(Image.open(tmp_path / row["file_name"])), wanted.picture)


@pytest.mark.parametrize("form", writer.FORMATS)
def test_a_run_that_was_killed_goes_on(tmp_path, monkeypatch, form):
    write(plan(), Output(tmp_path / "whole", form))
    real, calls = writer.write_whole, []

    def kill(path, content):
        calls.append(path)
        if len(calls) > 3:
            (path.parent / f".{path.name}.1.half").write_bytes(content[:5])
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer, "write_whole", kill)
        write(plan(), Output(tmp_path / "killed", form))
    assert list((tmp_path / "killed").rglob("*.half"))
    before = write(plan(), Output(tmp_path / "killed", form)).before
    assert before == {"webdataset": 8, "folder": 0}[form]
    whole, killed = (
        {p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        for top in (tmp_path / "whole", tmp_path / "killed")
    )
    assert whole == killed


def test_more_samples_are_added_and_the_last_shard_is_made_anew(tmp_path):
    write(plan(6), Output(tmp_path / "grown"))
    assert write(plan(11), Output(tmp_path / "grown")).before == 4
    write(plan(11), Output(tmp_path / "new"))
    assert parts(tmp_path / "grown") == parts(tmp_path / "new")
    with pytest.raises(InputError, match="is for 11 samples; the count can only grow"):
        write(plan(10), Output(tmp_path / "grown"))


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"sizes": ((64, 64),)}, {"language": "zh"}, {"task": "ask"}, {"evaluation": True}, {"shard": 5}],
)
def test_another_plan_needs_another_folder(tmp_path, other):
    write(plan(), Output(tmp_path))
    with pytest.raises(InputError, match=f"was made with {next(iter(other))}"):
        write(plan(**other), Output(tmp_path))


def test_samples_of_an_older_version_need_another_folder(tmp_path):
    """A run that goes on after an update must not mix two kinds of samples. The first version was not written down."""
    write(plan(), Output(tmp_path))
    file = tmp_path / "synthesis.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found.pop("version") == synthesis.VERSION > 1
    file.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(InputError, match=f"was made with version 1, not {synthesis.VERSION}"):
        write(plan(), Output(tmp_path))


def test_seeds_and_evaluation_give_other_samples():
    levels = [[Plan("text", 1, ((64, 64),), **s).sample(i).truth["level"] for i in range(30)] for s in
              ({}, {"seed": 1}, {"evaluation": True})]  # fmt: skip
    assert len({tuple(map(int, found)) for found in levels}) == 3


def test_a_bad_sample_ends_the_run_or_is_listed(tmp_path, monkeypatch):
    real = Plan.sample

    def sample(self, number):
        if number in (2, 5):
            raise RuntimeError("no luck")
        return real(self, number)

    monkeypatch.setattr(Plan, "sample", sample)
    with pytest.raises(InputError, match="sample 2 failed: RuntimeError: no luck; --skip-bad"):
        write(plan(), Output(tmp_path / "a"))
    summary = write(plan(), Output(tmp_path / "b", skip_bad=True))
    assert summary.failed == 2 and [path.name for path in summary.bad] == [
        "text-000000.bad.jsonl",
        "text-000001.bad.jsonl",
    ]
    assert json.loads(summary.bad[1].read_text()) == {"sample": 5, "error": "RuntimeError: no luck"}
    again = write(plan(), Output(tmp_path / "b", skip_bad=True))
    assert again.before == 10 and len(again.bad) == 2


def test_a_missing_library_is_named_and_no_bad_sample(tmp_path, monkeypatch, capsys):
    def sample(self, number):
        from internvlu_core.errors import need

        need("no_such_library", "synthesis")

    monkeypatch.setattr(Plan, "sample", sample)
    arguments = [str(tmp_path), "--domain", "text", "--count", "3", "--skip-bad"]
    assert command.main(arguments) == 2
    assert 'pip install ".[synthesis]"' in capsys.readouterr().err


@pytest.mark.parametrize("form", writer.FORMATS)
def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch, capsys, form):
    def full(path, content):
        if path.name != writer.PLAN:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        results.write_whole(path, content)

    monkeypatch.setattr(writer, "write_whole", full)
    assert command.main([str(tmp_path), "--domain", "text", "--count", "3", "--size", "64x64", "--format", form]) == 2
    message = capsys.readouterr().err
    assert "error: cannot write" in message and "No space left on device" in message and "Traceback" not in message
    assert not list(tmp_path.glob("*.tar")) and not (tmp_path / "metadata.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "count is 0"),
        (["--count", "3", "--size", "1024"], "the size is '1024'"),
        (["--count", "3", "--size", "8x8"], "size is 8x8; each side must be from"),
        (["--count", "3", "--task", "fly"], "no samples of text with task fly"),
        (["--count", "3", "--kind", "x"], "there are draw: draw patch"),
        (["--count", "3", "--fonts", "nowhere"], "--fonts: there is no folder nowhere"),
        (["--count", "3", "--sheet", "x.png"], "give either OUT or --sheet"),
        (["--count", "3", "--seed", "-1"], "seed is -1"),
        (["--count", "3", "--workers", "-1"], "workers is -1; it must be from 0"),
        (["--count", "3", "--workers", "2", "--cpus-per-worker", "0"], "cpus per worker is 0"),
        (["--count", "3", "--cpus-per-worker", "2"], "--cpus-per-worker has no effect without --workers"),
        (["--count", "3", "--rewrite-key", "X"], "--rewrite-key has no effect without --rewrite-url"),
        (["--count", "3", "--device", "cpu"], "--device has no effect without --rewrite"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, arguments, message):
    assert command.main([str(tmp_path / "out"), "--domain", "text", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_files_of_something_else_are_not_overwritten(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(InputError, match="choose another folder"):
        write(plan(), Output(tmp_path))
    assert (tmp_path / "metadata.jsonl").read_text() == "{}"


def test_workers_are_made_where_they_work_and_share_the_chunks(tmp_path, monkeypatch):
    """What Ray does with the plan, without its processes: workers are pickled, and take chunks in any order."""
    import pickle

    def run_ray(workers, chunks, options):
        assert options == engines.RayOptions(2, None, cpus=1) and workers.device == "cpu"
        several = [pickle.loads(pickle.dumps(workers)).make() for _ in range(2)]
        for place, chunk in enumerate(reversed(chunks)):
            yield several[place % 2](chunk)

    monkeypatch.setattr(writer, "run_ray", run_ray)
    arguments = ["--domain", "text", "--count", "10", "--size", "96x64", "64x64", "--shard", "4"]
    assert command.main([str(tmp_path / "two"), *arguments, "--workers", "2"]) == 0
    assert command.main([str(tmp_path / "one"), *arguments]) == 0
    assert parts(tmp_path / "one") == parts(tmp_path / "two") and len(parts(tmp_path / "one")) == 3


def test_a_contact_sheet(tmp_path):
    sheet = tmp_path / "sheet.jpg"
    assert command.main(["--sheet", str(sheet), "--domain", "text", "--count", "9", "--size", "640x384"]) == 0
    with Image.open(sheet) as picture:
        assert picture.format == "JPEG" and picture.width > 900
    assert sheet.stat().st_size < 200_000


def test_domains_are_listed():
    assert synthesis.DOMAINS == ("text", "science", "space", "humour", "reasoning")


@pytest.mark.parametrize(
    "option",
    [
        ["--format", "webdataset"],
        ["--shard", "256"],
        ["--workers", "2"],
        ["--rewrite", "x"],
        ["--skip-bad"],
        ["--address", "auto"],
        ["--rewrite-url", "u", "--rewrite-model", "m"],
    ],
)
def test_options_of_files_are_refused_beside_a_sheet(tmp_path, capsys, option):
    sheet = tmp_path / "sheet.png"
    assert command.main(["--sheet", str(sheet), "--domain", "text", "--count", "1", *option]) == 2
    assert f"{option[0]} has no effect on a sheet" in capsys.readouterr().err and not sheet.exists()


def test_a_sample_that_cannot_be_made_ends_a_sheet_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Plan, "sample", lambda self, number: int("x"))
    assert command.main(["--sheet", str(tmp_path / "sheet.png"), "--domain", "text", "--count", "1"]) == 2
    message = capsys.readouterr().err
    assert "error: sample 0 failed: ValueError" in message and message.count("\n") == 1


def test_a_plan_has_a_size():
    with pytest.raises(InputError, match="there is no size"):
        plan(sizes=())


def test_a_broken_picture_is_a_bad_sample(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(b"no picture")
    wanted = Plan(
        "humour", 2, ((256, 192),), "draw", "strip", resources=synthesis.Resources(pictures=tmp_path / "mine")
    )
    with pytest.raises(InputError, match=r"sample 0 failed: .*a\.png.*; --skip-bad leaves it out"):
        write(wanted, Output(tmp_path / "a"))
    assert write(wanted, Output(tmp_path / "b", skip_bad=True)).failed == 2
