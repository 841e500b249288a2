"""Evaluation: toy scores follow from the pictures and answers, and benchmark files keep their projects' layouts."""

import io
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import InputError, InternVLU
from internvlu_core.batch import ModelOptions
from internvlu_core.batch.pictures import read_pictures
from internvlu_core.batch.results import Result
from internvlu_core.batch.worker import to_png
from internvlu_train.evaluation import TASKS, evaluate, rows, toy
from internvlu_train.evaluation.__main__ import main
from internvlu_train.evaluation.benchmarks import BENCHMARKS, Run, subject
from internvlu_train.evaluation.rows import Asked, Runner
from internvlu_train.evaluation.sampling import Order, Settings, draw_all
from internvlu_train.evaluation.workers import Workers
from internvlu_train.toy.world import make
from support.checkpoints import CHECKPOINT

SIZE = (64, 64)
SETTINGS = Settings(SIZE, steps=2, batch=3)


# Toy scores


def test_batches_draw_what_generate_draws(model):
    edit = make("objects", "edit", 1, (64, 64))
    orders = [
        Order("a red star", seed=3),
        Order("please draw a very large blue circle", seed=4),
        Order("a red ring", seed=5),
        Order(edit.prompt, edit.images, seed=6),
        Order(edit.prompt, (edit.images[0][:48],), seed=9),  # as many tokens of context, but another reference's size
        Order("a sad face", seed=7),
    ]
    thought = model.reason("a red star", max_new_tokens=8)
    orders.append(Order("a red star", reasoning=thought, seed=8))
    pictures = draw_all(model, orders, SETTINGS)
    for order, picture in zip(orders, pictures, strict=True):
        images = [Image.fromarray(image) for image in order.images]
        size = {"width": 64, "height": 64}
        alone = model.generate(
            order.prompt, images, steps=2, seed=order.seed, reasoning=order.reasoning, **size
        ).images[0]
        assert np.abs(picture.astype(int) - np.asarray(alone)).max() <= 1


@pytest.fixture
def painter(monkeypatch):
    """A stand-in for the model that paints the target wherever paint(sample) says so, else nothing."""

    def use(paint=lambda sample, thought: True):
        def draw(model, samples, settings, thoughts=None):
            thoughts = thoughts or [None] * len(samples)
            blank = np.full((*settings.size[::-1], 3), 255, np.uint8)
            return [s.picture if paint(s, t) else blank for s, t in zip(samples, thoughts, strict=True)]

        monkeypatch.setattr(toy, "draw", draw)

    return use


def test_perfect_and_empty_pictures_score_one_and_nought(painter):
    for paint, score in ((True, 1.0), (False, 0.0)):
        painter(lambda sample, thought, paint=paint: paint)
        result = TASKS["geneval"](None, 6, SETTINGS)
        assert result["score"] == score and set(result["tasks"]) == set(toy.GENEVAL)
        assert TASKS["words"](None, 6, SETTINGS)["score"] == score


def test_the_mean_is_of_the_six_kinds(painter):
    painter(lambda sample, thought: sample.truth.kind in ("single", "two", "position"))
    result = TASKS["geneval"](None, 4, SETTINGS)
    assert result["score"] == 0.5 and result["tasks"]["position"]["score"] == 1.0
    assert result["tasks"]["single"]["shuffled"] < 0.5


def test_questions_are_judged_by_their_answers(monkeypatch):
    monkeypatch.setattr(
        toy, "replies", lambda model, samples: [s.words if s.truth.kind == "colour" else "what?" for s in samples]
    )
    result = TASKS["ask"](None, 60, SETTINGS)["domains"]["objects"]
    assert result["kinds"]["colour"] == 1.0 and result["kinds"]["shape"] == 0.0
    assert 0 < result["score"] < 1


def test_the_gain_of_reasoning_is_with_less_without(painter, monkeypatch):
    painter(lambda sample, thought: thought is not None)
    monkeypatch.setattr(
        toy, "think_all", lambda model, samples: [SimpleNamespace(text=f"{sample.words}\n") for sample in samples]
    )
    result = TASKS["reason"](None, 6, SETTINGS)
    assert (result["score"], result["without"]["score"], result["gain"], result["thoughts"]) == (1.0, 0.0, 1.0, 1.0)


def test_edits_are_measured_where_nothing_should_change(painter, monkeypatch):
    painter()
    monkeypatch.setattr(toy, "reconstruct", lambda model, picture: picture)
    good = TASKS["edit"](None, 5, SETTINGS)
    assert good["score"] == 1.0 and good["psnr"] > 60 and good["psnr_at_least_25"] == 1.0
    monkeypatch.setattr(toy, "reconstruct", lambda model, picture: 255 - picture)
    assert TASKS["edit"](None, 5, SETTINGS)["psnr"] < 10


def test_figures_and_sizes_have_scores_of_their_own(painter):
    painter(lambda sample, thought: sample.truth.kind != "stacks" and sample.picture.shape[:2] != (48, 96))
    result = TASKS["figures"](None, 7, SETTINGS)
    assert {name: (task["score"], task["count"]) for name, task in result["tasks"].items()} == {
        "diagrams": (1.0, 7),
        "blocks": (pytest.approx(3 / 7, abs=1e-3), 7),
        "memes": (1.0, 7),
    }
    result = TASKS["sizes"](None, 2, SETTINGS)
    assert {size: found["score"] for size, found in result["sizes"].items()} == {
        "64x64": 1.0,
        "96x48": 0.0,
        "48x96": 1.0,
        "80x80": 1.0,
    }
    assert result["score"] == 0.0


def test_several_processes_find_the_same(model):
    tasks = ("geneval", "words")
    found = toy.evaluate_in(2, partial(InternVLU.from_pretrained, CHECKPOINT), tasks, 2, replace(SETTINGS, steps=1))
    assert found == evaluate(model, tasks, 2, replace(SETTINGS, steps=1))


def test_the_changed_area_has_no_say():
    sample = make("objects", "edit", 1, SIZE, "recolour")
    same = toy.unchanged(sample.images[0], sample.picture)
    changed = (sample.images[0] != sample.picture).any(-1)
    assert changed.any() and not (same & changed).any() and 0.3 < same.mean() < 1
    painted = sample.picture.copy()
    painted[~same] = 7
    model = SimpleNamespace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "reconstruct", lambda model, picture: picture)
        assert toy.unchanged_psnr(model, sample, painted) > 60


def test_the_command_writes_json(tmp_path, capsys):
    out = tmp_path / "new" / "scores.json"
    tasks = ["--tasks", "words", "ask", "edit", "reason", "--count", "1", "--steps", "1"]
    size = ["--width", "64", "--height", "64", "--device", "cpu"]
    assert main([str(CHECKPOINT), *tasks, *size, "--dtype", "bf16", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["dtype"] == "torch.bfloat16"  # the checkpoint's own is float32
    assert set(report["scores"]) == {"words", "ask", "edit", "reason"} and report["size"] == [64, 64]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--count", "0"], "--count is 0"), (["--width", "32"], "32×"), (["--width", "72", "--height", "70"], "72×70")],
)
def test_what_cannot_be_judged_is_refused_before_it_is_drawn(capsys, arguments, message):
    assert main([str(CHECKPOINT), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_needs_a_model_for_all_tasks(model):
    results = evaluate(model, ("geneval", "domains"), 1, Settings(SIZE, steps=1))
    assert set(results) == {"geneval", "domains"} and len(results["domains"]["domains"]) == 10


def test_workers_give_the_scores_of_the_model(model, tmp_path):
    """In this process; with Ray's workers as below."""
    settings = Settings(SIZE, steps=2, batch=3, all_scale=2.5)
    workers = Workers(Runner(ModelOptions(str(CHECKPOINT), "cpu", torch.float32), tmp_path / "work", together=3))
    edit = make("objects", "edit", 1, SIZE)
    thought = toy.think(model, edit)
    orders = [Order("a red star", seed=3), Order(edit.prompt, edit.images, seed=6)]
    orders.append(Order(edit.prompt, edit.images, thought, seed=5))
    assert workers.draw(orders, settings, toy.MAX_TOKENS)[0].min() == 255
    assert toy.think_all(workers, [edit])[0].text == toy.replies(workers, [edit])[0] == ""
    workers.run()
    expected, found = draw_all(model, orders, settings), workers.draw(orders, settings, toy.MAX_TOKENS)
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(expected, found, strict=True))
    assert toy.think_all(workers, [edit])[0].text == thought.text
    assert toy.replies(workers, [edit]) == [toy.reply(model, edit)]
    assert not workers.asked

    arguments = ["--tasks", "words", "ask", "edit", "reason", "--count", "2", "--steps", "1", "--dtype", "fp32"]
    arguments += ["--width", "64", "--height", "64", "--device", "cpu", "--out"]
    for name, more in (("model", []), ("workers", ["--workers", "0"])):
        assert main([str(CHECKPOINT), *arguments, str(tmp_path / name), *more]) == 0
    first, second = (json.loads((tmp_path / name).read_text())["scores"] for name in ("model", "workers"))
    assert first["edit"].pop("psnr") == pytest.approx(second["edit"].pop("psnr"), abs=0.1)
    assert first == second


# Public benchmarks


class Fake:
    """Draws pictures of one colour each and answers with what it was asked."""

    def __init__(self):
        self.asked, self.drawn = [], []

    def __call__(self, asked):
        """As Runner."""
        failed = []
        for one in list(asked):
            try:
                one.keep(self.result(**one.row))
            except InputError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def result(self, task, prompt, n=0, images=(), **settings):
        pictures = read_pictures(list(images), Path(), False)
        if task == "generate":
            self.drawn.append(prompt)
            return Result(0, "", images=[to_png(Image.new("RGB", (8, 6), (k, 0, 0))) for k in range(n)])
        self.asked.append((prompt, [picture.getpixel((0, 0))[0] for picture in pictures]))
        return Result(0, "", text=" the word\tis\nCAT ")


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, 0, 0)).save(path)


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_geneval_files(tmp_path):
    lines = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}] * 2
    source = tmp_path / "evaluation_metadata.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)) + "\n")
    model, run = Fake(), Run(source, tmp_path / "out", samples=2)
    model(BENCHMARKS["geneval"](run))
    assert json.loads((tmp_path / "out/00001/metadata.jsonl").read_text()) == lines[1]
    assert sorted(p.name for p in (tmp_path / "out/00000/samples").iterdir()) == ["00000.png", "00001.png"]
    assert model.drawn == ["a photo of a bench"] * 2
    (tmp_path / "out/00001/samples/00001.png").unlink()
    model(BENCHMARKS["geneval"](run))
    assert len(model.drawn) == 3  # what was there is kept


def test_dpg_files(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/partiprompts0.txt").write_text("a long prompt\n")
    model = Fake()
    model(BENCHMARKS["dpg"](Run(tmp_path / "prompts", tmp_path / "out")))
    sheet = Image.open(tmp_path / "out/partiprompts0.png")
    assert sheet.size == (16, 12) and model.drawn == ["a long prompt"]
    corners = [sheet.getpixel(at)[0] for at in ((0, 0), (8, 0), (0, 6), (8, 6))]
    assert corners == [0, 1, 2, 3]
    with pytest.raises(InputError, match="samples is 3"):
        model(BENCHMARKS["dpg"](Run(tmp_path / "prompts", tmp_path / "out", samples=3)))


def test_ocrbench_files(tmp_path):
    picture(tmp_path / "images/IIIT5K/1.png", 5)
    record = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "id": 0, "answers": ["CAT"]}
    record |= {"image_path": "IIIT5K/1.png", "question": "what is written in the image?"}
    (tmp_path / "OCRBench.json").write_text(json.dumps([record]))
    model, run = Fake(), Run(tmp_path / "OCRBench.json", tmp_path / "out/model.json", tmp_path / "images")
    model(BENCHMARKS["ocrbench"](run))
    assert json.loads(run.out.read_text()) == [record | {"predict": "the word\tis\nCAT"}]
    model(BENCHMARKS["ocrbench"](run))
    assert model.asked == [("what is written in the image?", [5])]


MMMU = [
    {
        "id": "validation_Computer_Science_3",
        "question": "What is in <image 2> after <image 1>?",
        "options": "['a bench', 'it\\'s <image 1>']",
        "answer": "A",
        "question_type": "multiple-choice",
    },
    {"id": "validation_Art_1", "question": "Who made <image 1>?", "options": "[]", "answer": "['me', 'I']"},
]


def check_mmmu(model, out):
    entry = json.loads((out / "Computer_Science/output.json").read_text())[0]
    assert entry["all_choices"] == ["A", "B"] and entry["index2ans"]["A"] == "a bench" and entry["answer"] == "A"
    assert entry["response"] == "the word\tis\nCAT" and entry["question_type"] == "multiple-choice"
    entry = json.loads((out / "Art/output.json").read_text())[0]
    assert entry["question_type"] == "short-answer" and "all_choices" not in entry and entry["answer"] == ["me", "I"]
    question, levels = model.asked[0]
    assert question.startswith("What is in <image> after <image>?\n(A) a bench\n(B) it's <image>\n")
    assert levels == [2, 1, 1]


def test_mmmu_json(tmp_path):
    for n in (1, 2):
        picture(tmp_path / f"{n}.png", n)
    records = [record | {"image_1": "1.png", "image_2": {"path": "2.png"}} for record in MMMU]
    (tmp_path / "questions.json").write_text(json.dumps(records))
    model = Fake()
    (tmp_path / "2.png").rename(tmp_path / "hidden.png")
    records.insert(0, records.pop())
    (tmp_path / "questions.json").write_text(json.dumps(records))
    run = Run(tmp_path / "questions.json", tmp_path / "out")
    with pytest.raises(InputError, match="cannot read the image"):
        model(BENCHMARKS["mmmu"](run))
    assert len(model.asked) == 1  # the good one is kept
    (tmp_path / "hidden.png").rename(tmp_path / "2.png")
    model(BENCHMARKS["mmmu"](run))  # goes on with the second
    assert len(model.asked) == 2
    model.asked.reverse()
    check_mmmu(model, tmp_path / "out")


def test_mmmu_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    images = {f"image_{n}": {"bytes": png(n), "path": None} for n in (1, 2)}
    for k, record in enumerate(MMMU):
        parquet.write_table(pyarrow.Table.from_pylist([record | images]), tmp_path / f"{k}.parquet")
    model = Fake()
    model(BENCHMARKS["mmmu"](Run(tmp_path, tmp_path / "out")))
    check_mmmu(model, tmp_path / "out")


def test_mmmu_subjects():
    assert subject("test_Basic_Medical_Science_12") == "Basic_Medical_Science"
    with pytest.raises(InputError, match="'x3'"):
        subject("x3")


def test_mme_files(tmp_path):
    picture(tmp_path / "data/color/a.png", 1)
    picture(tmp_path / "data/OCR/images/b.png", 2)
    (tmp_path / "questions").mkdir()
    line = "a.png\tIs it red? Please answer yes or no.\tYes\n"
    (tmp_path / "questions/color.txt").write_text(line)
    (tmp_path / "questions/OCR.txt").write_text(line.replace("a.png", "b.png") * 2)
    model = Fake()
    model(BENCHMARKS["mme"](Run(tmp_path / "questions", tmp_path / "out", tmp_path / "data")))
    said = (tmp_path / "out/color.txt").read_text()
    assert said == line.replace("\n", "\tthe word is CAT\n")
    assert len((tmp_path / "out/OCR.txt").read_text().splitlines()) == 2
    assert sorted(levels for _, levels in model.asked) == [[1], [2], [2]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("geneval", "{]", "line 1 is not JSON"),
        ("geneval", '{"tag": "x"}', "no 'prompt'"),
        ("ocrbench", '[{"image_path": "x.png", "question": "?"}]', "cannot read the image"),
        ("mmmu", '[{"id": "a_B_1", "question": "<image 9>"}]', "<image 9>"),
        ("mmmu", '[{"id": "a_B_1", "question": "<image 1>"}]', "does not hold"),
        ("mmmu", '[{"id": "a_B_1"}]', "no 'question'"),
        ("mmmu", '[{"id": "a_B_1", "question": "?", "options": "[oops"}]', "which is not a list"),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Fake()(BENCHMARKS[name](Run(tmp_path / "file.json", tmp_path / "out")))


def test_cancelled_in_one_line(monkeypatch, capsys):
    def cancel(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("internvlu_train.evaluation.__main__.evaluate_toy", cancel)
    assert main([str(CHECKPOINT), "--device", "cpu"]) == 130
    assert capsys.readouterr().err == "internvlu_train.evaluation: cancelled\n"


def test_missing_files_are_named(tmp_path, capsys):
    for name in BENCHMARKS:
        with pytest.raises(InputError, match="nowhere"):
            Fake()(BENCHMARKS[name](Run(tmp_path / "nowhere", tmp_path / "out")))
    assert main([str(CHECKPOINT), "--benchmark", "geneval", "x"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main([str(CHECKPOINT), "--benchmark", "quiz", "x", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "'quiz'" in capsys.readouterr().err


SMALL = ["--width", "64", "--height", "64", "--steps", "1", "--samples", "2", "--device", "cpu"]


def drawn(folder) -> dict:
    return {path.relative_to(folder): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


def test_the_command_runs_a_benchmark_on_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 1)
    source = tmp_path / "evaluation_metadata.jsonl"
    source.write_text('{"prompt": "a bench"}\n{"prompt": "a red bus"}\n{"prompt": "a bench"}\n')
    for workers in (0, 2):
        out = tmp_path / str(workers)
        arguments = ["--benchmark", "geneval", str(source), "--out", str(out), "--workers", str(workers)]
        assert main([str(CHECKPOINT), *arguments, *SMALL]) == 0
        assert len(list(out.glob("*/metadata.jsonl"))) == 3 and not list(tmp_path.glob("*.unfinished"))
    alone, many = drawn(tmp_path / "0"), drawn(tmp_path / "2")
    assert alone.keys() == many.keys() and len(alone) == 6
    assert all(np.abs(alone[name].astype(int) - many[name]).max() <= 1 for name in alone)
    first, second, other = (
        alone[Path(name)] for name in ("00000/samples/00000.png", "00000/samples/00001.png", "00001/samples/00000.png")
    )
    assert first.shape == (64, 64, 3) and not np.array_equal(first, second) and not np.array_equal(first, other)
    assert np.array_equal(first, alone[Path("00002/samples/00000.png")])


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_and_an_error_is_told_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 1)
    picture(tmp_path / "a.png", 3)
    records = [{"image_path": name, "question": f"{i}?"} for i, name in enumerate(("a.png", "b.png", "a.png"))]
    (tmp_path / "OCRBench.json").write_text(json.dumps(records))
    run = Run(tmp_path / "OCRBench.json", tmp_path / "out.json", max_new_tokens=3)
    seen = []

    def kill(done, total):
        seen.append((done, total))
        if done == 2:
            raise Killed

    runner = Runner(ModelOptions(str(CHECKPOINT), "cpu"), tmp_path / "work", on_rows=kill)
    with pytest.raises(Killed):
        runner(BENCHMARKS["ocrbench"](run))
    assert seen == [(0, 3), (1, 3), (2, 3)] and not run.out.exists()
    runner = replace(runner, on_rows=lambda *rows: seen.append(rows))
    with pytest.raises(InputError, match=r"1 of 3 requests failed, such as '1\?': cannot read the image"):
        runner(BENCHMARKS["ocrbench"](run))
    assert seen[3:] == [(2, 3), (3, 3)]
    assert ["predict" in record for record in json.loads(run.out.read_text())] == [True, False, True]
    picture(tmp_path / "b.png", 3)
    runner(BENCHMARKS["ocrbench"](run))
    assert seen[5:] == [(2, 3), (3, 3)] and not (tmp_path / "work").exists()
    assert all("predict" in record for record in json.loads(run.out.read_text()))


def test_an_error_costs_no_answer_of_a_file_that_is_written_whole(tmp_path, monkeypatch):
    """MME's answers are in memory until all of a file are there."""
    monkeypatch.setattr(rows, "CHUNK", 1)
    picture(tmp_path / "a.png", 3)
    (tmp_path / "count.txt").write_text("a.png\tone?\tyes\nb.png\ttwo?\tno\n\n", encoding="utf-8-sig")
    run = Run(tmp_path, tmp_path / "out", images=tmp_path, max_new_tokens=3)
    seen = []
    runner = Runner(ModelOptions(str(CHECKPOINT), "cpu"), tmp_path / "work", on_rows=lambda *rows: seen.append(rows))
    with pytest.raises(InputError, match="1 of 2 requests failed"):
        runner(BENCHMARKS["mme"](run))
    picture(tmp_path / "b.png", 3)
    runner(BENCHMARKS["mme"](run))
    assert seen[-2:] == [(1, 2), (2, 2)]
    lines = (tmp_path / "out/count.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[:3] for line in lines] == [["a.png", "one?", "yes"], ["b.png", "two?", "no"]]


def test_what_another_checkpoint_has_answered_is_asked_again(tmp_path, monkeypatch):
    """Also one that has taken the place of the first."""
    first = tmp_path / "first"
    shutil.copytree(CHECKPOINT, first)
    names = {rows.identity(model) for model in (ModelOptions(str(CHECKPOINT)), ModelOptions(str(first)))}
    names.add(rows.identity(ModelOptions(str(first), dtype="bfloat16")))
    weights = next(first.glob("vlm/*.safetensors"))
    weights.write_bytes(weights.read_bytes())
    names.add(rows.identity(ModelOptions(str(first))))
    assert len(names) == 4
    ids = []

    def note(runner, found):
        ids.append(list(found))
        raise Killed

    monkeypatch.setattr(Runner, "_prepare", note)
    for checkpoint in (CHECKPOINT, first):
        with pytest.raises(Killed):
            asked = [Asked({"task": "answer", "prompt": "x", "max_new_tokens": 1}, print)]
            Runner(ModelOptions(str(checkpoint), "cpu"), tmp_path / "work")(asked)
    assert ids[0] != ids[1]


def test_rows_of_another_run_are_not_taken_for_these(tmp_path):
    runner = Runner(ModelOptions(str(CHECKPOINT), "cpu"), tmp_path / "work")
    (first,) = runner._prepare({"a": '{"prompt": "x"}', "b": '{"prompt": "y"}'}).read_text().splitlines()[:1]
    assert json.loads(first) == {"id": "a", "prompt": "x"}
    (tmp_path / "work/results").mkdir()
    runner._prepare({"b": '{"prompt": "y"}'})
    assert (tmp_path / "work/results").exists()
    runner._prepare({"c": '{"prompt": "z"}'})
    assert not (tmp_path / "work/results").exists()
