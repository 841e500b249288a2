"""Evaluation: toy scores follow from the pictures and answers, and benchmark files keep their projects' layouts."""

import io
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from internvlu_core import InputError, InternVLU
from internvlu_train.evaluation import TASKS, evaluate, toy
from internvlu_train.evaluation.__main__ import main
from internvlu_train.evaluation.benchmarks import BENCHMARKS, Run, subject
from internvlu_train.evaluation.sampling import Order, Settings, draw_all
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


# Public benchmarks


class Fake:
    """Draws pictures of one colour each and answers with what it was asked."""

    def __init__(self):
        self.asked, self.drawn = [], []

    def generate(self, prompt, *, num_images, width, height, steps, seed):
        self.drawn.append(prompt)
        return SimpleNamespace(images=[Image.new("RGB", (8, 6), (k, 0, 0)) for k in range(num_images)])

    def answer(self, question, images, *, max_tiles, max_new_tokens):
        self.asked.append((question, [image.getpixel((0, 0))[0] for image in images]))
        return SimpleNamespace(text=" the word\tis\nCAT ")


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
    BENCHMARKS["geneval"](model, run)
    assert json.loads((tmp_path / "out/00001/metadata.jsonl").read_text()) == lines[1]
    assert sorted(p.name for p in (tmp_path / "out/00000/samples").iterdir()) == ["00000.png", "00001.png"]
    assert model.drawn == ["a photo of a bench"] * 2
    (tmp_path / "out/00001/samples/00001.png").unlink()
    BENCHMARKS["geneval"](model, run)
    assert len(model.drawn) == 3  # what was there is kept


def test_dpg_files(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/partiprompts0.txt").write_text("a long prompt\n")
    model = Fake()
    BENCHMARKS["dpg"](model, Run(tmp_path / "prompts", tmp_path / "out"))
    sheet = Image.open(tmp_path / "out/partiprompts0.png")
    assert sheet.size == (16, 12) and model.drawn == ["a long prompt"]
    corners = [sheet.getpixel(at)[0] for at in ((0, 0), (8, 0), (0, 6), (8, 6))]
    assert corners == [0, 1, 2, 3]
    with pytest.raises(InputError, match="samples is 3"):
        BENCHMARKS["dpg"](model, Run(tmp_path / "prompts", tmp_path / "out", samples=3))


def test_ocrbench_files(tmp_path):
    picture(tmp_path / "images/IIIT5K/1.png", 5)
    record = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "id": 0, "answers": ["CAT"]}
    record |= {"image_path": "IIIT5K/1.png", "question": "what is written in the image?"}
    (tmp_path / "OCRBench.json").write_text(json.dumps([record]))
    model, run = Fake(), Run(tmp_path / "OCRBench.json", tmp_path / "out/model.json", tmp_path / "images")
    BENCHMARKS["ocrbench"](model, run)
    assert json.loads(run.out.read_text()) == [record | {"predict": "the word\tis\nCAT"}]
    BENCHMARKS["ocrbench"](model, run)
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
        BENCHMARKS["mmmu"](model, run)
    assert len(model.asked) == 1
    (tmp_path / "hidden.png").rename(tmp_path / "2.png")
    BENCHMARKS["mmmu"](model, run)  # goes on with the second
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
    BENCHMARKS["mmmu"](model, Run(tmp_path, tmp_path / "out"))
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
    BENCHMARKS["mme"](model, Run(tmp_path / "questions", tmp_path / "out", tmp_path / "data"))
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
        BENCHMARKS[name](Fake(), Run(tmp_path / "file.json", tmp_path / "out"))


def test_missing_files_are_named(tmp_path, capsys):
    for name in BENCHMARKS:
        with pytest.raises(InputError, match="nowhere"):
            BENCHMARKS[name](Fake(), Run(tmp_path / "nowhere", tmp_path / "out"))
    assert main([str(CHECKPOINT), "--benchmark", "geneval", "x"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main([str(CHECKPOINT), "--benchmark", "quiz", "x", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "'quiz'" in capsys.readouterr().err


def test_the_command_runs_a_benchmark(tmp_path):
    source = tmp_path / "evaluation_metadata.jsonl"
    source.write_text('{"prompt": "a bench"}\n')
    size = ["--width", "64", "--height", "64", "--steps", "1", "--samples", "2", "--device", "cpu"]
    out = tmp_path / "out"
    assert main([str(CHECKPOINT), "--benchmark", "geneval", str(source), "--out", str(out), *size]) == 0
    first, second = (np.asarray(Image.open(out / f"00000/samples/0000{k}.png")) for k in range(2))
    assert first.shape == (64, 64, 3) and not np.array_equal(first, second)
