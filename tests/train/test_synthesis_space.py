"""Samples of space at full resolution: whole, repeatable, legible, and true to the kernel."""

import numpy as np
import pytest

from internvlu_train.choices import Choices
from internvlu_train.synthesis import make
from internvlu_train.synthesis.drawing import HEX
from internvlu_train.synthesis.space import check, kernel, space
from internvlu_train.synthesis.space.pictures import shades
from internvlu_train.synthesis.space.tasks import TURNING, a_lopsided_block, opposite, profile, section_words, turned
from support.drawn import SIZES, every, in_chinese, is_whole, jpeg, texts_collide

KINDS = every("space")
BOX = [["+", "box", 0, 0, 0, 4, 3, 2]]
L_BLOCK = [["+", "box", 0, 0, 0, 5, 3, 4], ["-", "box", 2, -1, 2, 9, 9, 9]]
DRILLED = [["+", "box", 0, 0, 0, 4, 3, 2], ["-", "cylinder", 2, 1.5, -1, "z", 1, 9]]
PYRAMID = [["+", "pyramid", 4, 2, 3]]


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_samples_are_whole_and_repeatable(task, kind):
    is_whole("space", task, kind, KINDS.index((task, kind)))


def test_no_text_leaves_the_picture_or_covers_another():
    for i, (task, kind) in enumerate(KINDS):
        size = SIZES[i % 3]
        sample = make("space", task, i, size, kind)
        spec = sample.truth.get("spec") or sample.truth["before"]
        assert not texts_collide(space.paper(spec, size)), (task, kind, i, size)


def test_prompts_are_in_the_language_and_the_rest_is_the_same():
    for task, kind in KINDS[::4]:
        en, zh = (make("space", task, 4, (128, 128), kind, language) for language in ("en", "zh"))
        assert not in_chinese(en.prompt + en.words) and in_chinese(zh.prompt), (en.prompt, zh.prompt)
        assert en.truth.keys() == zh.truth.keys()


@pytest.mark.parametrize(
    ("parts", "volume", "faces", "edges", "vertices"),
    [
        (BOX, 24, 6, 12, 8),
        (L_BLOCK, 42, 8, 18, 12),
        (DRILLED, 24 - 2 * np.pi, 7, 14, 8),
        (PYRAMID, 8, 5, 8, 5),
        ([["+", "cylinder", 0, 0, 0, "z", 2, 3]], 12 * np.pi, 3, 2, 0),
    ],
)
def test_the_kernel_measures(parts, volume, faces, edges, vertices):
    assert kernel.volume(parts) == pytest.approx(volume)
    assert kernel.counts(parts) == {"faces": faces, "edges": edges, "vertices": vertices}


def test_views_have_the_lines_of_a_drawing():
    """A through hole is two dashed lines from the side; a view from above shows its circle."""
    counted = {}
    for name in ("front", "top", "right", "left"):
        found = kernel.lines(DRILLED, kernel.VIEWS[name])
        counted[name] = (len(found["visible"]), len(found["hidden"]))
    assert counted == {"front": (4, 2), "top": (5, 0), "right": (4, 2), "left": (4, 2)}
    slot = kernel.lines(L_BLOCK, kernel.VIEWS["left"])  # the step lies behind the high part
    assert (len(slot["visible"]), len(slot["hidden"])) == (4, 1)
    dashed = slot["hidden"][0]
    assert np.allclose(sorted(dashed[:, 0]), [-3, 0]) and np.allclose(dashed[:, 1], 2)


def test_a_full_turn_changes_nothing_and_half_a_turn_swaps_left_and_right():
    whole, half = (kernel.lines(L_BLOCK, kernel.slanted(a, 0))["visible"] for a in (0, 180))
    assert len(whole) == len(half) == 6

    def edges(lines, sign):
        return sorted(sorted((round(sign * x, 3) + 0.0, round(y, 3) + 0.0) for x, y in line) for line in lines)

    assert edges(whole, 1) == edges(half, -1) != edges(half, 1)
    spec = make("space", "edit", 0, (128, 128), "turn").truth["before"]
    assert np.array_equal(space.picture(spec, (128, 128)), space.picture(turned(spec, 360), (128, 128)))


def test_a_turn_goes_the_way_that_is_said():
    """Seen from above, a solid that turns clockwise by 90° shows at the front what was at its right."""
    before = {"azimuth": 0}
    front = kernel.lines(L_BLOCK, kernel.slanted(turned(before, -90)["azimuth"], 0))["visible"]
    right = kernel.lines(L_BLOCK, kernel.VIEWS["right"])["visible"]
    assert sorted(line.round(3).tolist() for line in front) == sorted(line.round(3).tolist() for line in right)


def test_cuts():
    parts = [["+", "cylinder", 0, 0, 0, "z", 2, 4], ["-", "half", 0, 0, 2, 0, 0, 1]]
    assert kernel.section(parts) == (1, 1, True, 0, pytest.approx(4 * np.pi))
    assert kernel.volume(parts) == pytest.approx(8 * np.pi)
    assert kernel.section([*BOX, ["-", "half", 2, 1.5, 1, 0, -1, 0]]) == (1, 4, False, 0, pytest.approx(8))
    assert kernel.cut_faces([*BOX, ["-", "half", 2, 1.5, 9, 0, 0, 1]]) == []


def test_a_cut_through_a_hole_has_all_its_faces():
    upright, level = [*DRILLED, ["-", "half", 2, 1.5, 1, 0, -1, 0]], [*DRILLED, ["-", "half", 2, 1.5, 1, 0, 0, 1]]
    assert kernel.section(upright) == (2, 4, False, 0, pytest.approx(4))
    assert kernel.section(level) == (1, 4, False, 1, pytest.approx(12 - np.pi))
    assert section_words(upright)[0] == "two quadrilaterals"
    assert section_words(level)[0] == "a quadrilateral with a hole"
    spec = {"parts": upright, "unified": True, "colour": "orange", "cut": "green"}
    assert shades(spec).count(HEX["green"]) == 2


@pytest.mark.parametrize(
    ("sides", "plane", "words", "area"),
    [(4, (0, 0, 1.5, 0, 0, 1), "a quadrilateral", 2), (6, (0, 0, 1, 0, -1, 0), "a triangle", 6)],
)
def test_the_section_of_a_pyramid_is_straight(sides, plane, words, area):
    """Also where its sides are edges of the pyramid, which are Bezier curves of the kernel."""
    parts = [["+", "pyramid", sides, 2, 3], ["-", "half", *plane]]
    assert section_words(parts)[0] == words and kernel.section(parts).area == pytest.approx(area, rel=1e-3)


def test_half_a_turn_shows():
    """A slot in the middle would look the same from the front and from the back."""
    families = [family for family in TURNING if "slot" in family(Choices("any", 0, (64, 64)))[1][0]]
    assert families == [a_lopsided_block]
    for seed in range(40):
        block, slot = a_lopsided_block(Choices("slots", seed, (64, 64)))[0]
        left, right = slot[2], block[5] - slot[2] - slot[5]
        assert left != right and min(left, right) > 0


@pytest.mark.parametrize("parts", [BOX, PYRAMID, [["+", "prism", 6, 2, 3]]])
def test_a_net_has_the_faces_of_the_solid_side_by_side(parts):
    flat, faces = kernel.unfolded(parts), kernel.polygons(parts)
    sides = [
        [sorted(np.linalg.norm(face - np.roll(face, 1, axis=0), axis=-1).round(4)) for face in some]
        for some in (flat, faces)
    ]
    assert sides[0] == sides[1]
    sample = make("space", "draw", 3, (512, 512), "net")
    assert check(sample, sample.picture).right


def test_opposite_faces():
    pairs = opposite(BOX)
    assert sorted(pairs) == list(range(6)) and all(pairs[pairs[i]] == i != pairs[i] for i in range(6))


def test_profiles_of_cubes():
    heights = [[1, 0], [3, 2]]
    assert profile(heights, "front") == [3, 2] and profile(heights, "right") == [1, 3]


def test_the_nearest_face_is_seen():
    """From the front, whatever the order of the faces."""
    spec = make("space", "edit", 2, (256, 256), "colour").truth["spec"]
    spec |= {"parts": BOX, "hidden": False, "azimuth": 0, "elevation": 0, "pale": False}
    normals = [kernel.normal(face) for face in kernel.polygons(BOX)]
    names = ["red" if normal[1] < -0.9 else "blue" for normal in normals]
    middle = space.picture(spec | {"faces": names}, (256, 256))[128, 128].astype(int)
    assert middle[0] > 2 * middle[2]


@pytest.mark.parametrize(("task", "kind"), [pair for pair in KINDS if pair[0] in ("edit", "reason")])
def test_results_are_judged_by_the_renderer(task, kind):
    sample = make("space", task, 12, (512, 512), kind)
    assert check(sample, jpeg(sample.picture)).right
    assert not check(sample, np.full_like(sample.picture, 255)).right
    if sample.images:
        assert not check(sample, sample.images[0]).right


def test_another_angle_is_refused():
    sample = make("space", "edit", 6, (512, 512), "turn")
    spec = sample.truth["spec"]
    assert not check(sample, space.picture(spec | {"azimuth": spec["azimuth"] + 5}, (512, 512))).right


def test_answers():
    for task, kind in KINDS:
        if task == "ask":
            sample = make("space", task, 5, (128, 128), kind)
            assert check(sample, f" {sample.words.upper()}.").right and not check(sample, "").right
