"""Samples of science at full resolution: whole, repeatable, legible, and judged by their truth."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from internvlu_core.errors import InputError
from internvlu_train.synthesis import LanguageChoices, make
from internvlu_train.synthesis.figures import Figures, alike, content, is_evaluations
from internvlu_train.synthesis.science import check, science
from internvlu_train.synthesis.science.charts import SERIES
from internvlu_train.synthesis.science.chemistry import MOLECULES, formula, groups_of
from internvlu_train.synthesis.science.computing import SORTS, grow, orders, run
from internvlu_train.synthesis.science.mathematics import some_equation, triangle_points, values_of
from internvlu_train.synthesis.science.physics import image_of, lengths, refracted, some_slope
from internvlu_train.synthesis.wording import puzzle, say
from support.drawn import SIZES, every, in_chinese, is_whole, jpeg, texts_collide

KINDS = every("science")


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_samples_are_whole_and_repeatable(task, kind):
    is_whole("science", task, kind, KINDS.index((task, kind)))


@pytest.mark.parametrize("turn", range(3))
def test_no_text_leaves_the_picture_or_covers_another(turn):
    for i, (task, kind) in enumerate(KINDS[turn::3]):
        size = SIZES[i % 3]
        sample = make("science", task, 7 * i + turn, size, kind)
        spec = sample.truth.get("spec") or sample.truth["before"]
        assert not texts_collide(science.paper(spec, size)), (task, kind, 7 * i + turn, size)


def test_prompts_are_in_the_language_and_the_rest_is_the_same():
    for task, kind in KINDS[::4]:
        en, zh = (make("science", task, 4, (512, 512), kind, language) for language in ("en", "zh"))
        assert not in_chinese(en.prompt + en.words) and in_chinese(zh.prompt), (en.prompt, zh.prompt)
        assert en.truth.keys() == zh.truth.keys()


def middles(spec, size=(640, 480)) -> tuple[dict, object]:
    """{text: (x, y) of its middle}, and the paper."""
    paper = science.paper(spec, size)
    return {text: ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for text, box in paper.words()}, paper


def test_labels_keep_away_from_lines_and_points():
    look = {"paper": "#ffffff", "ink": "#111111", "face": "sans", "line": 1.0, "fill": "red"}
    nodes = {"nodes": list("ABCD"), "weighted": True, "directed": False, "marked": [], "mark": "blue"}
    edges = [["A", "C", 7], ["B", "D", 8]]  # which cross in the middle
    graph = {"figure": "graph", "style": look | {"start": 45, "order": [0, 1, 2, 3]}, "edges": edges} | nodes
    words, paper = middles(graph)
    for weight in "78":
        assert math.dist(words[weight], (320, 240)) > paper.unit

    triangle = make("science", "draw", 2, (64, 64), "triangle", "en").truth["spec"]
    triangle |= {"angles": [110, 40, 30], "names": "ABC", "marked": [0], "line": "bisector", "room": False}
    words, paper = middles(triangle | {"style": triangle["style"] | {"turn": 0}})
    angles = [math.atan2(*np.subtract(words[text], words["A"])[::-1]) for text in ("110°", "B", "C")]
    spread = [abs(math.remainder(angles[0] - angle, math.tau)) for angle in angles[1:]]
    assert abs(spread[0] - spread[1]) > math.radians(30)  # not in the middle, where the line is

    look |= {"grid": True, "dashed": False, "wide": 5}
    parabola = {"functions": [{"family": "parabola", "factors": [1, 0, -4]}], "colours": ["purple"]}
    words, _ = middles({"figure": "plot", "style": look, **parabola, "points": [[0, -4, "(0, −4)", -1]]}, (640, 640))
    assert "−4" not in words or words["−4"][0] < 200  # that of the axis across
    assert {"−3", "(0, −4)"} <= words.keys()

    slope = {"figure": "slope", "style": look | {"names": False}, "language": "en", "angle": 40, "mass": 7}
    for forces in (["weight", "normal", "friction"], ["weight", "normal", "friction", "pull"]):
        words, paper = middles(slope | {"forces": forces, "plain": False})
        assert words["G"][0] - words["7 kg"][0] > paper.measure("7 kg") / 2  # the arrow is above the letter


def test_prompts_have_many_forms():
    for language in ("en", "zh"):
        prompts = [make("science", "edit", seed, (64, 64), "cells", language).prompt for seed in range(20)]
        forms = {"".join(letter for letter in prompt if not letter.isdigit()) for prompt in prompts}
        assert len(forms) >= 8


class Fixed(LanguageChoices):
    def __init__(self, language="en", seed=0):
        super().__init__("wording", seed, (64, 64), language)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a 8 kg block", "An 8 kg block"),
        ("a 18 V, a 11 V", "An 18 V, an 11 V"),
        ("a 4.5 V battery", "A 4.5 V battery"),
        ("a orange bar", "An orange bar"),
        ("q0 is not", "q0 is not"),
        ("x = 2", "x = 2"),
        ("Sat 12", "Sat 12"),
    ],
)
def test_sentences_in_english(text, right):
    assert say(Fixed(), text, "") == right


def test_sentences_keep_names_and_symbols():
    found = {puzzle(Fixed(seed=seed), ("{name} 3, {name} 4.",), "", name="Sat") for seed in range(20)}
    assert len(found) > 2 and not any("sat" in text for text in found)
    assert say(Fixed("zh"), "", "x等于多少？") == "x等于多少？"


# Alternatives of which one does not go with the words around it, as they once were.
MISPRINTS = re.compile(
    r"\(s\)| [,.?]|\ba (8|1[18]\b|[aeio])|\bthe \w+'s? |\b1 (steps|atoms|lines|times)\b|leave out \w+ any more"
    r"|number \w+ to|Let the \w+ \d|Make the \w+ be |(Make|Turn) every \w+ a|(Compute|Find|Name)[^.]*\?"
    r"|and take the \w+ part away,|Put in|Put [^.]* to the|数的|^[XQ]\d?(等|读)|^Q\d"
)


@pytest.mark.parametrize("domain", ["science", "space"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompts_have_no_misprints(monkeypatch, domain, language):
    noise = np.random.default_rng(0)
    monkeypatch.setattr(Figures, "picture", lambda self, spec, size: noise.integers(0, 255, (2, 2, 3)).astype(np.uint8))
    for task, kind in every(domain):
        for seed in range(8):
            sample = make(domain, task, seed, (64, 64), kind, language)
            assert not MISPRINTS.search(sample.prompt), sample.prompt


def test_molecules_of_evaluation_are_not_in_training():
    found = [
        {drawn("molecule", seed=n, size=(64, 64)).truth["spec"]["smiles"] for n in range(odd, 30, 2)} for odd in (0, 1)
    ]
    assert not found[0] & found[1] and len(found[0]) > 5


def test_figures_of_evaluation_are_not_in_training(monkeypatch):
    """Of every kind, and whatever they look like."""
    monkeypatch.setattr(Figures, "picture", lambda self, spec, size: np.zeros((1, 1, 3), np.uint8))
    found = set(), set()
    for task, kind in KINDS:
        for seed in range(12):
            truth = make("science", task, seed, (64, 64), kind, "en").truth
            first = truth.get("before") or truth["spec"]
            found[seed % 2].add(content(first))
            if first["figure"] not in ("molecule", "formula"):  # of which some are told apart by their names
                assert is_evaluations(first | {"style": {}, "colours": []}) == bool(seed % 2), (task, kind, seed)
    assert len(found[0]) > 200 and len(found[1]) > 200 and not found[0] & found[1]


def test_a_figure_is_on_the_same_side_in_both_languages(monkeypatch):
    monkeypatch.setattr(Figures, "picture", lambda self, spec, size: np.zeros((1, 1, 3), np.uint8))
    for task, kind in KINDS:
        truths = [make("science", task, 3, (64, 64), kind, language).truth for language in ("en", "zh")]
        one, other = (content(truth.get("before") or truth["spec"]) for truth in truths)
        assert one == other, (task, kind)


def drawn(kind, task="draw", seed=2, size=(512, 512)):
    return make("science", task, seed, size, kind)


def seen_by_readers(sample):
    """Of a graph only how many nodes of which colour there are."""
    spec = sample.truth["spec"]
    return (len(spec["nodes"]), spec["style"]["fill"]) if spec["figure"] == "graph" else spec


@pytest.mark.parametrize(
    "kind", ["bar chart", "pie chart", "scatter plot", "histogram", "search tree", "graph", "automaton"]
)
def test_readers_take_what_is_right_and_refuse_other_pictures(kind):
    samples = [drawn(kind, seed=seed) for seed in range(4)]
    for i, sample in enumerate(samples):
        assert check(sample, sample.picture).right, (kind, i)
        assert kind == "scatter plot" or check(sample, jpeg(sample.picture)).right, (kind, i, "JPEG")
        wrong = [other for other in samples if seen_by_readers(other) != seen_by_readers(sample)]
        assert wrong and not any(check(sample, other.picture).right for other in wrong), (kind, i)
        assert not check(sample, np.full_like(sample.picture, 255)).right


def test_readers_leave_the_arrangement_free():
    sample = drawn("bar chart")
    spec = sample.truth["spec"]
    for style in ({"lying": not spec["style"]["lying"]}, {"grid": True, "written": True}):
        assert check(sample, science.picture(spec | {"style": spec["style"] | style}, (1024, 576))).right
    values = [spec["values"][0] * 1.2, *spec["values"][1:]]
    assert not check(sample, science.picture(spec | {"values": values}, (512, 512))).right


@pytest.mark.parametrize(("task", "kind"), [pair for pair in KINDS if pair[0] == "edit"])
def test_edits_are_judged_by_the_renderer(task, kind):
    sample = make("science", task, 12, (512, 512), kind)
    assert check(sample, jpeg(sample.picture)).right
    assert not check(sample, sample.images[0]).right


def test_a_digit_is_a_difference():
    sample = drawn("circuit")
    spec = sample.truth["spec"]
    other = science.picture(spec | {"ohms": [7, *spec["ohms"][1:]]}, (512, 512))
    assert spec["ohms"][0] != 7 and not alike(sample.picture, other)


def test_answers():
    for task, kind in KINDS:
        if task == "ask":
            sample = make("science", task, 5, (512, 512), kind)
            assert check(sample, f" {sample.words.upper()}.").right
            assert not check(sample, f"not {sample.words}").right and not check(sample, "").right


def test_physics():
    assert image_of(4, 12) == (6, -0.5)
    assert image_of(-4, 4) == (-2, 0.5)
    assert refracted({"upper": 0, "lower": 3, "angle": 30}) == pytest.approx(19.47, abs=0.01)
    assert refracted({"upper": 5, "lower": 0, "angle": 45}) is None


@pytest.mark.parametrize("angle", [15, 45])
def test_the_arrows_of_a_block_at_rest_balance(angle):
    """Along the slope: friction holds the weight, and with a pull holds what is more."""
    slope, sine = {"angle": angle, "forces": ["weight", "normal", "friction"]}, math.sin(math.radians(angle))
    assert lengths(slope)["friction"] == pytest.approx(3 * sine)
    long = lengths(slope | {"forces": [*slope["forces"], "pull"]})
    assert long["friction"] < 0 and long["friction"] + long["pull"] == pytest.approx(long["weight"] * sine)


def test_nothing_is_held_on_level_ground_without_a_pull():
    for seed in range(120):
        spec = some_slope(LanguageChoices("slopes", seed, (64, 64)))
        assert spec["angle"] or "pull" in spec["forces"], seed


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("glycine", {"carboxylic acid": 1, "amino group": 1}),
        ("serotonin", {"hydroxyl group": 1, "amino group": 1, "aromatic ring": 2}),
        ("paracetamol", {"amide": 1, "hydroxyl group": 1, "aromatic ring": 1}),
        ("aspirin", {"carboxylic acid": 1, "ester": 1, "aromatic ring": 1}),
        ("furan", {"aromatic ring": 1}),
        ("urea", {}),
    ],
)
def test_groups_of_molecules(name, groups):
    smiles = {names[0]: smiles for names, smiles in MOLECULES}[name]
    assert {names[0]: len(found) for names, found in groups_of(smiles)} == groups


def test_a_number_of_a_formula_is_found():
    """The one that an edit changes stands in the formula once."""
    for seed in range(200):
        line, other = some_equation(LanguageChoices("equations", seed, (64, 64)))
        ((old, new),) = [pair for pair in zip(line, other, strict=True) if pair[0] != pair[1]]
        assert line.count(old) == 1 and new not in line.replace("2", ""), (line, other)


def test_chemistry():
    formulas = {names[0]: formula(smiles) for names, smiles in MOLECULES}
    assert formulas["caffeine"] == "C8H10N4O2" and formulas["glucose"] == "C6H12O6"
    assert len(set(formulas.values())) > 40


def test_computing():
    tree = grow([5, 2, 8, 1, 9])
    assert tree == {5: (2, 8), 2: (1, None), 8: (None, 9), 1: (None, None), 9: (None, None)}
    assert orders(tree, 5)["post"] == [1, 2, 9, 8, 5]
    for _, sort in SORTS:
        rows = sort([3, 1, 2, 5, 4])
        assert rows[0] == [3, 1, 2, 5, 4] and rows[-1] == [1, 2, 3, 4, 5]
    even = {"moves": [[0, "0", 0], [0, "1", 1], [1, "0", 1], [1, "1", 0]]}
    assert run(even, "0110") == [0, 0, 1, 0, 0]


def test_mathematics():
    points = triangle_points({"angles": [50, 60, 70], "style": {"turn": 12}})
    for i, angle in enumerate((50, 60, 70)):
        a, b = points[(i + 1) % 3] - points[i], points[(i + 2) % 3] - points[i]
        assert np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))) == pytest.approx(angle)
    assert values_of({"family": "parabola", "factors": [2, 1, -3]}, [0, 1, 3]).tolist() == [-1, -3, 5]


def test_the_lists_have_both_languages():
    assert all(len(word) == 2 for title, unit, names in SERIES for word in (title, unit, *names))


def test_a_users_settings_of_matplotlib_change_nothing(tmp_path):
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\naxes.facecolor: red\nfont.size: 30\ntext.color: blue\n")
    code = (
        "import hashlib; from internvlu_train.synthesis import make\n"
        "pair = [make('science', 'draw', 2, (512, 512), kind).picture for kind in ('bar chart', 'function')]\n"
        "print(hashlib.sha256(b''.join(p.tobytes() for p in pair)).hexdigest())"
    )
    hashes = set()
    for environment in ({}, {"MATPLOTLIBRC": str(tmp_path)}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
        )
        assert not done.returncode, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_a_missing_library_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("internvlu_train.synthesis.science")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "schemdraw", None)
    with pytest.raises(InputError, match=r'schemdraw is missing.*pip install "\.\[synthesis\]"'):
        make("science", "draw", 0)
