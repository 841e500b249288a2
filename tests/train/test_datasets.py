"""Training data as people have it: rows and pictures on disk, ratios, sizes, and what cannot be used."""

import errno
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import InputError
from internvlu_core.imaging import reference_size
from internvlu_train import __main__ as command
from internvlu_train import objectives
from internvlu_train.data import FULL
from internvlu_train.datasets import mixture, prepare, sizes
from internvlu_train.datasets.mixture import Facts
from internvlu_train.datasets.sources import find_places, read_picture, read_row
from internvlu_train.loop import Run
from internvlu_train.released import STAGES
from internvlu_train.settings import TextStage
from support.datasets import rows, write_jsonl, write_shards
from support.training import LEARN, entries, picture_stage


def read(path: Path | str) -> list[tuple]:
    """(task, prompt, words, size of the target, sizes of the inputs) of each sample."""
    found = []
    for place in find_places(0, str(path)):
        row = read_row(place)
        target = row.picture and read_picture(row.picture, place).size
        inputs = [read_picture(at, place).size for at in row.images]
        found.append((row.task, row.prompt, row.words, target, inputs))
    return found


def test_jsonl_and_shards_say_the_same(tmp_path):
    described = [row for kind in ("draw", "edit", "two", "ask", "reason") for row in rows(kind, 2)]
    lines = read(write_jsonl(tmp_path / "jsonl", described))
    assert lines == read(write_shards(tmp_path / "shards", described))
    assert lines == read(tmp_path / "jsonl" / "metadata.jsonl")
    assert lines[:4] == read(f"{tmp_path}/shards/part-{{000000..000000}}.tar")
    assert [task for task, *_ in lines] == [
        *("draw", "draw", "edit", "edit", "edit", "edit"),
        *("ask", "ask", "reason", "reason"),
    ]
    assert [len(inputs) for *_, inputs in lines] == [0, 0, 1, 1, 2, 2, 1, 1, 0, 0]
    assert lines[0][1:4] == ("a red star 0", "", (48, 48)) and lines[6][2:4] == ("a star", None)


def test_a_folder_of_pictures_and_texts_is_a_source(pictures):
    assert read(pictures) == [
        ("draw", "a red star", "", (48, 48), []),
        ("draw", "a ring", "", (64, 48), []),
        ("edit", "make it blue", "", (96, 80), [(96, 80)]),
    ]


def spoil_row(folder: Path, number: int, **changes):
    file = folder / "metadata.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    file.write_text("\n".join(lines), encoding="utf-8")


def animate(file: Path):
    frames = [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue")]
    frames[0].save(file, save_all=True, append_images=frames[1:])


def spoil_exif(file: Path):
    """It says to turn the picture, and has a text where a number belongs, which cannot be written again."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "a date"
    data = exif.tobytes().replace(b"\x01\x32\0\x02", b"\x01\x07\0\x02")
    Image.new("RGB", (48, 48)).save(file, "JPEG", exif=data)


def stage_on(*sources: tuple[Path, int], **changes):
    data = tuple((str(path), share) for path, share in sources)
    return picture_stage(data=data, **{"tasks": (), "area": (32, 128), **changes})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "1.png").unlink(), r"line 2 names the picture .*1\.png, which is not there"),
        (lambda folder: (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:90]), "line 2: cannot read"),
        (lambda folder: spoil_row(folder, 1, text=""), "line 2 has no text"),
        (lambda folder: spoil_row(folder, 1, text="star " * 300), "line 2 is .* tokens long; max_tokens is 200"),
        (lambda folder: spoil_row(folder, 1, task="sing"), "task is 'sing'; there are draw, edit"),
        (lambda folder: spoil_row(folder, 1, images="a.png"), "must be a list"),
        (lambda folder: spoil_row(folder, 1, file_name=None), "line 2 has neither a picture to draw"),
        (lambda folder: spoil_row(folder, 1, task="edit"), "line 2: edit needs images"),
        (lambda folder: spoil_row(folder, 1, file_name="x" * 3000), "line 2 names the picture .*, which is not there"),
        (lambda folder: (folder / "1.png").write_bytes(b""), r"line 2: cannot read the image .*1\.png: its format"),
        (lambda folder: Image.new("RGB", (400, 9)).save(folder / "1.png"), r"line 2: .* 400 × 9 pixels is too small"),
        (lambda folder: animate(folder / "1.png"), r"line 2: the image .*1\.png is an animation of 2 frames"),
        (lambda folder: spoil_exif(folder / "1.png"), r"line 2: .*1\.png: its EXIF data is damaged"),
    ],
)
def test_a_bad_sample_is_an_error_or_left_out_and_listed(fresh, tmp_path, spoil, words, capsys):
    folder = write_jsonl(tmp_path / "data", rows("draw", 4))
    spoil(folder)
    stage = stage_on((folder, 1), max_tokens=200, steps=1)
    with pytest.raises(InputError, match=words + r".*--skip-bad"):
        Run(stage, fresh, tmp_path / "run")
    run = Run(replace(stage, skip_bad=True), fresh, tmp_path / "skipping")
    assert len(run.feed.prepared.facts) == 3
    listed = [json.loads(line) for line in (tmp_path / "skipping" / "bad.jsonl").read_text("utf-8").splitlines()]
    assert len(listed) == 1 and "line 2" in listed[0]["sample"]
    assert "1 of 4 samples are left out" in capsys.readouterr().err


def test_skip_bad_goes_on_where_a_bad_sample_ended_the_run(fresh, tmp_path, monkeypatch):
    """After hours in which other samples were encoded."""
    monkeypatch.setattr(prepare, "CHUNK", 2)
    folder = write_jsonl(tmp_path / "data", rows("draw", 4))
    spoil_row(folder, 3, text="")
    stage = stage_on((folder, 1), max_tokens=200, steps=1)
    with pytest.raises(InputError, match=r"line 4 has no text.*--skip-bad"):
        Run(stage, fresh, tmp_path / "run")
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "cache").iterdir()}
    assert len(made) == 2
    run = Run(replace(stage, skip_bad=True), fresh, tmp_path / "run")
    assert len(run.feed.prepared.facts) == 3
    assert all(file.stat().st_mtime_ns == time for file, time in made.items())
    with pytest.raises(InputError, match=r"line 4 has no text.*--skip-bad"):
        Run(stage, fresh, tmp_path / "run")


def test_a_shard_that_is_missing_is_a_bad_sample(fresh, tmp_path):
    write_shards(tmp_path, rows("draw", 2))
    (tmp_path / "part-000001.tar").unlink(missing_ok=True)
    stage = stage_on((f"{tmp_path}/part-{{000000..000001}}.tar", 1), steps=1)
    with pytest.raises(InputError, match=r"part-000001\.tar cannot be read"):
        Run(stage, fresh, tmp_path / "run")
    run = Run(replace(stage, skip_bad=True), fresh, tmp_path / "run")
    assert len(run.feed.prepared.facts) == 2


def test_files_that_macos_adds_are_passed_over(tmp_path):
    write_shards(tmp_path, rows("draw", 2))
    with tarfile.open(tmp_path / "part-000000.tar") as old, tarfile.open(tmp_path / "mac.tar", "w") as new:
        for member in old:
            folder, _, name = member.name.rpartition("/")
            hidden = tarfile.TarInfo(f"{folder}/._{name}" if folder else f"._{name}")
            hidden.size = 5
            new.addfile(hidden, io.BytesIO(b"\0\5\x16\7\0"))
            new.addfile(member, old.extractfile(member))
    found = [
        [(place.name.rpartition(", ")[2], len(place.members)) for place in find_places(0, str(tmp_path / name))]
        for name in ("part-000000.tar", "mac.tar")
    ]
    assert found[0] == found[1] and len(found[0]) == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("a star")
    (folder / "._a.png").write_bytes(b"\0\5")
    (folder / "._a.txt").write_bytes(b"\0\5")
    assert [place.row.get("text") for place in find_places(0, str(folder))] == ["a star"]


def test_a_source_that_is_none_is_named(tmp_path):
    for path, words in ((tmp_path / "missing", "neither a folder"), (tmp_path, "has no NAME.txt")):
        with pytest.raises(InputError, match=words):
            list(find_places(0, str(path)))
    (tmp_path / "a.tar").write_text("no tar")
    (place,) = find_places(0, str(tmp_path))
    with pytest.raises(InputError, match=r"a\.tar cannot be read as an uncompressed tar"):
        read_row(place)


def test_pictures_are_read_as_they_are_seen(tmp_path):
    """Turned as EXIF says, on white where they are transparent, in 8 bits; by names of all kinds."""
    seen = {}

    def add(name: str, picture: Image.Image, expected: tuple[int, int, int], **options):
        picture.save(tmp_path / name, **options)
        seen[name] = expected

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    add("turned.jpg", Image.new("RGB", (64, 32), "white"), (255, 255, 255), exif=exif)
    add("transparent.png", Image.new("RGBA", (32, 64), (0, 0, 0, 0)), (255, 255, 255))
    add("half.png", Image.new("LA", (32, 64), (0, 51)), (204, 204, 204))
    palette = Image.new("P", (32, 64), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    add("palette.png", palette, (255, 255, 255), transparency=1)
    add("cmyk.jpg", Image.new("CMYK", (32, 64), (0, 255, 255, 0)), (254, 0, 0))
    add("deep.png", Image.fromarray(np.full((64, 32), 32768, np.uint16)), (128, 128, 128))
    add("红色 的 月亮.png", Image.new("1", (32, 64), 1), (255, 255, 255))
    lines = [{"file_name": name, "text": name, "author": "a user", "extra": {"score": 1}} for name in seen]
    lines[0]["file_name"] = str(tmp_path / "turned.jpg")  # absolute
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for place, (name, expected) in zip(find_places(0, str(tmp_path)), seen.items(), strict=True):
        row = read_row(place)
        picture = read_picture(row.picture, place)
        assert (row.prompt, picture.size) == (name, (32, 64))
        assert np.abs(np.array(picture, int) - expected).max() <= 3, name


def test_a_folder_says_what_is_left_over(tmp_path):
    """A picture without a text, and two pictures for one."""
    for name in ("a.png", "b.png", "b.jpg", "c.png"):
        Image.new("RGB", (48, 48)).save(tmp_path / name)
    for name in ("b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    places = {place.name: place for place in find_places(0, str(tmp_path))}
    assert read_row(places.pop("c")).prompt == "c" and set(places) == {"a", "b"}
    for name, words in (("a", r"a\.png has no a\.txt"), ("b", r"b\.txt needs one picture .*, not 2")):
        with pytest.raises(InputError, match=words):
            read_row(places[name])


def test_what_is_before_the_damage_in_a_shard_is_used(fresh, tmp_path):
    file = write_shards(tmp_path / "data", rows("draw", 4)) / "part-000000.tar"
    places = list(find_places(0, str(file)))
    whole, last = file.read_bytes(), places[2].members[0]
    for damaged in (
        whole[: last[1] - 1],
        whole[: last[1] - 512],
        whole[: last[1] - 500] + b"x" + whole[last[1] - 499 :],
    ):
        file.write_bytes(damaged)
        found = list(find_places(0, str(file)))
        assert len(found) == 3 and "from 00000002 on" in found[2].row["problem"]
    file.write_bytes(whole[: last[1] + 100])
    (tmp_path / "data" / "part-000001.tar").touch()
    stage = stage_on((tmp_path / "data", 1), steps=1, skip_bad=True)
    assert len(Run(stage, fresh, tmp_path / "run").feed.prepared.facts) == 2
    listed = (tmp_path / "run" / "bad.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["sample"].rpartition("/")[2] for line in listed] == [
        "part-000000.tar, 00000002",
        "part-000001.tar",
    ]
    assert "from 00000002 on" in listed[0]


def test_a_picture_in_a_shard_is_named(tmp_path):
    file = write_shards(tmp_path / "data", rows("two", 1)) / "part-000000.tar"
    content = file.read_bytes()
    (place,) = find_places(0, str(file))
    offset = dict((ending, at) for ending, at, _ in place.members)["input1.png"]
    file.write_bytes(content[:offset] + bytes(60) + content[offset + 60 :])
    with pytest.raises(InputError, match=r"part-000000\.tar, 00000000: its input1\.png: cannot read .* not known"):
        read_picture(read_row(place).images[1], place)
    members = tuple(member for member in place.members if member[0] != "input0.png")
    with pytest.raises(InputError, match="no picture input0, but a later one"):
        read_row(replace(place, members=members))


# Ratios


def facts_of(*counts: tuple[int, str, int]) -> list[Facts]:
    """(source, task, number) each."""
    made = []
    for source, task, number in counts:
        text, picture = (9, None) if task in ("ask", "caption") else (0, (64, 64))
        branches = {} if picture is None else {FULL: (20, ())}
        made += [Facts(source, task, text, False, picture, (), branches)] * number
    return made


def test_ratios_hold_at_any_time_and_over_any_number_of_processes():
    stage = picture_stage(
        batch=3, data=(("a", 1), ("b", 3)), tasks=STAGES["stage3"].tasks, drop_prompt=0.0, drop_all=0.0
    )
    facts = facts_of((0, "draw", 40), (0, "edit", 7), (1, "reason", 50), (1, "ask", 30), (1, "caption", 11))
    plan = list(islice(mixture.sequence(mixture.make_groups(facts, stage), facts, stage), 4000))
    for end in (400, 4000):
        count = Counter()
        for item in (item for items in plan[:end] for item in items):
            count[facts[item.index].task] += 1
            count[facts[item.index].source, facts[item.index].task] += 1
        total = sum(count[task] for task in ("draw", "reason", "edit", "ask", "caption"))
        assert count["draw"] + count["reason"] == pytest.approx(total / 4, abs=6)
        assert count["edit"] == pytest.approx(total / 4, abs=6)
        assert count[1, "reason"] == pytest.approx(3 * count[0, "draw"], abs=12)


def test_each_sample_of_a_group_occurs_once_in_an_epoch():
    stage = picture_stage(batch=3, data=(("a", 1),), tasks=(("draw", 4), ("edit", 1)), drop_prompt=0.0, drop_all=0.0)
    facts = facts_of((0, "draw", 10), (0, "edit", 4))
    drawn = []
    for items in islice(mixture.sequence(mixture.make_groups(facts, stage), facts, stage), 40):
        drawn += [item.index for item in items if facts[item.index].task == "draw"]
    for epoch in range(3):
        assert sorted(drawn[10 * epoch : 10 * (epoch + 1)]) == list(range(10))
    assert drawn[:10] != drawn[10:20]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": (("draw", 4), ("edit", 1))}, "gives 'edit' the share 1, but no sample"),
        ({"data": (("a", 1), ("b", 2))}, "b has no sample of draw: its share"),
        ({"held_out": 5}, "held_out is 5, but there are only 5"),
    ],
)
def test_a_ratio_that_cannot_be_held_is_refused(changes, words):
    stage = picture_stage(**{"data": (("a", 1),), "tasks": (("draw", 1),), **changes})
    with pytest.raises(InputError, match=words):
        mixture.make_groups(facts_of((0, "draw", 5)), stage)
    with pytest.raises(InputError, match="share 0"):
        picture_stage(data=(("a", 0),))


# Sizes


def test_sizes_are_few_and_those_that_the_model_reads(awake):
    config = replace(awake.config.processor, reference_min_pixels=512**2, reference_max_pixels=1024**2)
    config = replace(config, reference_max_side=1024)
    random = np.random.default_rng(0)
    found = {sizes.bucket(*map(int, random.integers(200, 3000, 2)), config) for _ in range(2000)}
    assert 20 < len(found) < 70
    for size in found:
        assert reference_size(*size, config) == size
        assert size[0] % 16 == size[1] % 16 == 0 and 512**2 <= size[0] * size[1] <= 1024**2 and max(size) <= 1024
    assert sizes.bucket(512, 512, config) == (512, 512) and sizes.bucket(3000, 3000, config) == (1024, 1024)
    assert sizes.bucket(720, 1280, config)[1] / sizes.bucket(720, 1280, config)[0] == pytest.approx(16 / 9, rel=0.06)


def test_an_area_that_the_checkpoint_never_reads_is_refused(fresh, tmp_path, capsys):
    """The default is for the released checkpoint; this one reads 32² to 128² pixels. One size for all may be any."""
    folder = write_jsonl(tmp_path / "data", rows("draw", 2))
    start = ["finetune", str(tmp_path), "--preset", "released", "--base", str(fresh), "--data", str(folder)]
    for area in ("[512,1024]", "[8,16]"):
        assert command.main([*start, "--set", f"area={area}"]) == 2
        assert f"area is {area.replace(',', ', ')}; this checkpoint takes" in capsys.readouterr().err
    tiny = ["--set", "area=[256,256]", "--set", "steps=1", "--set", "accumulate=1", "--set", "ema=0"]
    assert command.main([*start, *tiny]) == 0


def test_a_picture_is_cut_around_its_middle():
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (100, 0, 200, 100))
    assert np.abs(np.array(sizes.fitted(image, (64, 64)), int) - (0, 0, 255)).max() < 20  # red is next to it


# Runs


class Killed(Exception):
    pass


def test_a_killed_run_on_data_goes_on_with_the_samples_that_are_left(fresh, tmp_path, monkeypatch):
    sources = [
        (write_jsonl(tmp_path / "a", rows("draw", 5) + rows("reason", 2)), 2),
        (write_shards(tmp_path / "b", rows("edit", 5)), 1),
    ]
    stage = stage_on(*sources, steps=7, save_every=2, drop_prompt=0.2, drop_all=0.2)
    Run(stage, fresh, tmp_path / "whole").train()
    seen, original = [], objectives.losses

    def losses(networks, batch, stage, step):
        if step == 5 and not any(step > 5 for step in seen):
            seen.append(6)
            raise Killed
        return original(networks, batch, stage, step)

    monkeypatch.setattr(objectives, "losses", losses)
    with pytest.raises(Killed):
        Run(stage, fresh, tmp_path / "killed").train()
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed" / "cache").iterdir()}
    resumed = Run(stage, fresh, tmp_path / "killed")
    assert resumed.step == 4 and made == {file: file.stat().st_mtime_ns for file in made}
    resumed.train()
    whole, killed = entries(tmp_path / "whole"), entries(tmp_path / "killed")
    assert [entry["loss"] for entry in killed] == pytest.approx([entry["loss"] for entry in whole], abs=1e-5)


@pytest.mark.parametrize("cached", [True, False])
def test_the_cache_on_disk_is_what_the_networks_compute(awake_checkpoint, tmp_path, cached):
    folder = write_jsonl(tmp_path / "data", rows("two", 1))
    stage = stage_on((folder, 1), batch=1, drop_prompt=0.0, drop_all=0.0, cache_hidden=cached)
    run = Run(stage, awake_checkpoint, tmp_path / "run")
    batch = run.feed.batch(0)
    assert (batch.context is not None) == cached and len(batch.references) == 2
    with torch.no_grad():
        fresh_one = Run(replace(stage, cache_hidden=not cached), awake_checkpoint, tmp_path / "other")
        other = fresh_one.feed.batch(0)
        losses = [float(objectives.flow_loss(run.networks, each, stage)) for each in (batch, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_samples_of_other_tasks_are_passed_over(fresh, tmp_path, capsys):
    """Those that the ratio leaves out; without a ratio, those from which the stage learns nothing."""
    folder = write_jsonl(tmp_path / "data", rows("draw", 2) + rows("ask", 2))
    for name, tasks in {"named": (("draw+reason", 1),), "all": ()}.items():
        run = Run(stage_on((folder, 1), tasks=tasks), fresh, tmp_path / name)
        assert [each.task for each in run.feed.prepared.facts] == ["draw", "draw"]
        assert "2 of 4 samples have a task that this stage does not learn" in capsys.readouterr().err
        assert not (tmp_path / name / "bad.jsonl").exists()
    both = Run(stage_on((folder, 1), trained=("mmdit.", "vlm.")), fresh, tmp_path / "both")
    assert len(both.feed.prepared.facts) == 4 and "does not learn" not in capsys.readouterr().err
    with pytest.raises(InputError, match="'ask', from which a stage that trains"):
        Run(stage_on((folder, 1), tasks=(("ask", 1),)), fresh, tmp_path / "other")
    with pytest.raises(InputError, match="none of 4 samples can be used; none has a task"):
        Run(stage_on((folder, 1), tasks=(("edit", 1),)), fresh, tmp_path / "none")


def test_words_are_trained_on_data(fresh, tmp_path):
    folder = write_shards(tmp_path / "data", rows("ask", 4))
    settings = LEARN | {"steps": 2, "batch": 2, "evaluate_every": 2, "held_out": 1}
    Run(
        TextStage(trained=("vlm.",), tasks=(("ask", 1),), data=((str(folder), 1),), **settings), fresh, tmp_path / "run"
    ).train()
    last = entries(tmp_path / "run")[-1]
    assert last["text"] > 0 and last["held out text"] > 0


def test_evaluation_in_between_draws_what_is_held_out_and_changes_nothing(fresh, tmp_path):
    folder = write_jsonl(tmp_path / "data", rows("draw", 4))
    stage = stage_on((folder, 1), steps=3, held_out=1)
    ends = []
    for name, every in (("with", 2), ("without", 0)):
        Run(replace(stage, evaluate_every=every), fresh, tmp_path / name).train()
        ends.append([entry["loss"] for entry in entries(tmp_path / name)])
    assert ends[0] == ends[1]
    assert [("held out flow" in entry) for entry in entries(tmp_path / "with")] == [False, True, True]
    assert sorted(file.name for file in (tmp_path / "with" / "drawings").iterdir()) == ["000002.jpg", "000003.jpg"]


def test_a_full_disk_is_an_error_that_loses_nothing(fresh, tmp_path, monkeypatch):
    folder = write_jsonl(tmp_path / "data", rows("draw", 3))
    stage = stage_on((folder, 1), steps=4, save_every=2)
    run, save, calls = Run(stage, fresh, tmp_path / "run"), torch.save, []

    def full(state, file):
        calls.append(file)
        if len(calls) == 2:
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"disk of .* is full"):
        run.train()
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 2
    assert not [file for file in (tmp_path / "run").iterdir() if file.name.startswith(".")]
    Run(stage, fresh, tmp_path / "run").train()
    assert len(entries(tmp_path / "run")) == 4


def test_tensorboard_shows_what_the_log_says(fresh, tmp_path, monkeypatch):
    """Also of a run that was killed, of whose steps some were taken twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage, original, killed = picture_stage(tracker="tensorboard", steps=4, save_every=2), objectives.losses, []

    def losses(networks, batch, stage, step):
        if step == 3 and not killed:
            killed.append(step)
            raise Killed
        return original(networks, batch, stage, step)

    monkeypatch.setattr(objectives, "losses", losses)
    with pytest.raises(Killed):
        Run(stage, fresh, tmp_path / "run").train()
    Run(stage, fresh, tmp_path / "run").train()
    logged, shown = entries(tmp_path / "run"), EventAccumulator(str(tmp_path / "run" / "tracker"))
    shown.Reload()
    names = set(logged[0]) - {"step"}
    assert killed and names >= {"loss", "flow"} and set(shown.Tags()["scalars"]) == names
    for name in names:
        events = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in events] == [1, 2, 3, 4] == [entry["step"] for entry in logged]
        assert [value for _, value in events] == pytest.approx([entry[name] for entry in logged], rel=1e-6)


def test_a_tracker_that_is_not_installed_is_named(fresh, tmp_path, monkeypatch):
    import builtins

    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tensorboard":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install tensorboard"):
        Run(picture_stage(tracker="tensorboard"), fresh, tmp_path / "run")
    with pytest.raises(InputError, match="'wandb'"):
        Run(picture_stage(tracker="wandb"), fresh, tmp_path / "run")


# The command


def test_one_command_fine_tunes_on_data(fresh, tmp_path, capsys):
    folder = write_jsonl(tmp_path / "data", rows("draw", 3) + rows("edit", 1))
    tiny = ["--set", "steps=1", "--set", "area=[32,64]", "--set", "accumulate=1", "--set", "ema=0"]
    start = ["--preset", "released", "--base", str(fresh), "--data", f"{folder}=2"]
    assert command.main(["finetune", str(tmp_path), *start, *tiny]) == 0
    assert (tmp_path / "finetune" / "checkpoint" / "generation_decoder").is_dir()
    assert command.main(["lora", str(tmp_path), "--base", str(fresh), "--data", str(folder), *tiny[:4]]) == 0
    assert (tmp_path / "lora" / "lora.safetensors").is_file()
    for arguments, words in (
        (["stage9", str(tmp_path), *start], "no stage 'stage9'; it has stage1, stage2"),
        (["stage1", str(tmp_path), *start[:4]], "stage1 needs --data"),
        (["stage1", str(tmp_path), *start[:2], *start[4:]], "stage1 needs --base"),
    ):
        assert command.main(arguments) == 2
        assert words in capsys.readouterr().err


def test_the_reports_numbers():
    stages = STAGES
    assert [stages[f"stage{n}"].steps for n in (1, 2, 3)] == [250_000, 60_000, 20_000]
    assert [stages[f"stage{n}"].area for n in (1, 2, 3)] == [(512, 512), (512, 1024), (512, 1024)]
    assert stages["stage3"].flow_weight / stages["stage3"].text_weight == 20
    assert [share for _, share in stages["stage1"].tasks] == [4, 1]
    assert [share for _, share in stages["stage3"].tasks] == [1, 1, 2]
