"""The toy world: its samples are deterministic and split, and its checker takes what is right and nothing else."""

import io
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from internvlu_train.toy.world import (
    COLOURS,
    DOMAINS,
    HELD_OUT_PAIRS,
    SHAPES,
    TASKS,
    Label,
    Placed,
    Thing,
    Truth,
    check,
    check_answer,
    draw,
    make,
)
from internvlu_train.toy.world.canvas import polygon
from internvlu_train.toy.world.figures import FIGURES
from internvlu_train.toy.world.reading import background_of, objects_in
from internvlu_train.toy.world.scene import PLACES, QUESTION_FRAMES, REQUEST_FRAMES, frames
from internvlu_train.toy.world.words import read_word

PAIRS = [(domain, task) for domain in DOMAINS for task in TASKS[domain]]
WORDED = "ask", "caption"  # what is answered in words
PICTURED = [(domain, task) for domain, task in PAIRS if task not in WORDED]
COUNT = 30  # samples of each pair


def samples(domain, task, count=COUNT, odd=None, size=(64, 64), kind=None):
    seeds = range(count) if odd is None else range(odd, 2 * count, 2)
    return [make(domain, task, seed, size, kind) for seed in seeds]


@pytest.mark.parametrize(("domain", "task"), PAIRS)
def test_samples_are_whole_and_deterministic(domain, task):
    for seed in range(12):
        one, again = make(domain, task, seed, (80, 64)), make(domain, task, seed, (80, 64))
        assert (one.domain, one.task, one.prompt, one.words) == (domain, task, again.prompt, again.words)
        assert one.truth == again.truth and Truth.from_json(one.truth.to_json()) == one.truth
        pictures = [*one.images, *([] if one.picture is None else [one.picture])]
        for picture, other in zip(pictures, [*again.images, again.picture], strict=False):
            assert picture.shape == (64, 80, 3) and picture.dtype == np.uint8
            assert np.array_equal(picture, other)
        assert (one.picture is None) == (task in WORDED)
        assert bool(one.words) == (task in (*WORDED, "reason"))
        assert len(one.images) == 1 or (not one.images and (task in ("draw", "reason") or domain == "reasoning"))


def test_other_seeds_make_other_samples():
    assert len({s.prompt for s in samples("objects", "draw")}) > 0.8 * COUNT
    assert len({s.images[0].tobytes() for s in samples("objects", "edit")}) == COUNT


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_drawing_prompt_of_evaluation_is_in_training(domain):
    task = "reason" if domain == "reasoning" else "draw"
    prompts = [{s.prompt for s in samples(domain, task, 300, odd) if not s.images} for odd in (0, 1)]
    assert not prompts[0] & prompts[1]


def test_words_of_evaluation_are_new():
    """Those that are drawn, and those of which a picture is changed or asked about."""

    def words(odd):
        made = [s for task in ("draw", "edit", "ask") for s in samples("text", task, 200, odd)]
        drawn = {s.truth.label.word for s in made if s.truth.label}
        alone = [s.images[0] for s in made if s.images and s.truth.kind != "change caption"]
        read = {read_word(picture, np.full(3, 255.0))[0] for picture in alone}
        return (drawn | read) - {""}

    train, unseen = words(0), words(1)
    assert len(unseen) > 100 and not train & unseen


def test_training_shows_no_held_out_pair():
    def pairs(odd):
        drawn = [s for task in ("draw", "edit") for s in samples("objects", task, 200, odd)]
        return {(thing.shape, thing.colour) for s in drawn for thing in s.truth.things}

    assert not pairs(0) & HELD_OUT_PAIRS
    asked = " ".join(make("objects", "ask", seed, kind="whether").prompt for seed in range(0, 400, 2))
    assert not any(f"{colour} {shape}" in asked for shape, colour in HELD_OUT_PAIRS)
    assert HELD_OUT_PAIRS & pairs(1)
    assert any(s.truth.held_out for s in samples("objects", "draw", 60, 1))


def sentences(task, kind, odd):
    return [s.prompt for s in samples("objects", task, 150, odd, kind=kind)]


@pytest.mark.parametrize(
    ("task", "kind", "form"),
    [
        ("edit", "remove", r"please remove the \w+"),
        ("edit", "move", r"please move the \w+ to the .+"),
        ("edit", "replace", r"please replace the \w+ with an? \w+"),
        ("ask", "where", r"what is the place of the \w+\?"),
        ("ask", "describe", r"what is there\?"),
    ],
)
def test_one_sentence_form_is_evaluations_alone(task, kind, form):
    assert not any(re.fullmatch(form, prompt) for prompt in sentences(task, kind, 0))
    assert any(re.fullmatch(form, prompt) for prompt in sentences(task, kind, 1))


def test_training_says_the_same_in_many_ways():
    for task, kind in (("edit", "remove"), ("ask", "describe")):
        forms = [{re.sub("|".join(SHAPES), "*", prompt) for prompt in sentences(task, kind, odd)} for odd in (0, 1)]
        assert len(forms[0]) > 10 and len(forms[1]) in (3, 4)


def test_a_form_is_framed_by_what_it_is():
    assert frames("where is the {}?") == QUESTION_FRAMES
    assert frames("remove the {old}") == REQUEST_FRAMES
    for alone in ("{}", "a picture of {}", "please add {new}", "the {old} must go"):
        assert frames(alone) == ("{}",)


@pytest.mark.parametrize("kind", ["two", "attribution"])
def test_two_objects_stand_in_the_order_in_which_they_are_named(kind):
    def shows(sample, relation):
        return check(sample.picture, replace(sample.truth, relations=((0, relation, 1),))).right

    made = samples("objects", "draw", 60, kind=kind)
    rights = [[shows(sample, relation) for sample in made] for relation in ("left of", "above")]
    assert all(map(any, zip(*rights, strict=True))) and all(20 < sum(right) < 40 for right in rights)


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (64, 48)])
def test_several_objects_stand_in_a_row_where_a_picture_is_not_square(size):
    """In the order of their names along the longer side, or along the side that the relation in the prompt is about."""
    long, order = int(size[0] < size[1]), ("left of", "above")[size[0] < size[1]]
    for kind in ("two", "attribution", "counting", "position"):
        for sample in samples("objects", "draw", COUNT, kind=kind, size=size):
            count = len(sample.truth.things)
            said = [relation for _, relation, _ in sample.truth.relations]
            axis = long if not said else int(said[0] in ("above", "below"))
            relations = () if kind == "counting" else ((0, said[0] if said else order, 1),)
            assert check(sample.picture, replace(sample.truth, relations=relations)).right, sample.prompt
            if count > 1:
                seen = objects_in(sample.picture, background_of(sample.picture))
                along = sorted((one.x, one.y)[axis] for one in seen)
                assert np.allclose(along, (np.arange(count) + 0.5) / count, atol=0.06)
                assert all(abs((one.x, one.y)[1 - axis] - 0.5) < 0.14 for one in seen)
                boxes = np.array([one.box for one in seen])
                assert boxes[:, :2].min() > 0 and (boxes[:, 2:] < size).all(), "all of each is in the picture"


def test_backgrounds_are_practised_more_than_evaluated():
    shares = [
        np.mean([bool(s.truth.background) for s in samples("objects", "draw", 300, odd, kind="single")])
        for odd in (0, 1)
    ]
    assert 0.5 < shares[0] < 0.7 and 0.18 < shares[1] < 0.32


def test_what_is_hard_to_draw_is_practised_more_than_evaluated():
    """Shares of small objects, stars and crosses."""
    for odd, small, armed in ((0, 0.5, 6 / 13), (1, 0.25, 1 / 4)):
        things = [s.truth.things[0] for s in samples("objects", "draw", 400, odd, kind="single")]
        assert np.mean([thing.size == "small" for thing in things]) == pytest.approx(small, abs=0.06)
        assert np.mean([thing.shape in ("star", "cross") for thing in things]) == pytest.approx(armed, abs=0.06)


def test_kinds_can_be_chosen():
    kinds = {make("objects", "draw", seed, kind="counting").truth.kind for seed in range(6)}
    assert kinds == {"counting"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("objects", "reason", 0), "no samples of objects/reason"),
        (("space", "draw", 0), "no samples of space/draw"),
        (("objects", "draw", 0, (64, 20)), "64 × 20 is too small"),
        (("objects", "draw", 0, (64, 64), "none"), "of the kind 'none'"),
    ],
)
def test_what_cannot_be_made_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


# The checker


def jpeg(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=50)
    return np.array(Image.open(file))


def noise(picture):
    return np.clip(picture + np.random.default_rng(0).normal(0, 8, picture.shape), 0, 255).astype(np.uint8)


def blur(picture):
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.7)))


def rescale(picture):
    image = Image.fromarray(picture)
    small = image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.BICUBIC)
    return np.array(small.resize(image.size, Image.Resampling.BICUBIC))


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("damage", [np.copy, jpeg, *map(slow, (noise, blur, rescale))])
def test_right_pictures_are_accepted_after_damage(damage):
    right = [check(damage(s.picture), s.truth).right for pair in PICTURED for s in samples(*pair)]
    assert np.mean(right) >= (1 if damage is np.copy else 0.98)


def test_other_sizes_are_accepted():
    for size in ((48, 48), (96, 64), (64, 96), (128, 128)):
        right = [check(s.picture, s.truth).right for pair in PICTURED for s in samples(*pair, 6, size=size)]
        assert np.mean(right) >= 0.98, size


def others(value, known):
    return [other for other in known if other != value]


def wrong_truths(truth):
    """Truths that the picture of this one does not show, by what is wrong."""
    things, label = truth.things, truth.label
    for i, thing in enumerate(things):
        swap = lambda new, i=i: replace(truth, things=(*things[:i], new, *things[i + 1 :]), relations=())  # noqa: E731
        if thing.colour:
            yield "colour", swap(replace(thing, colour=others(thing.colour, COLOURS)[i]))
        if thing.shape in SHAPES:
            yield "shape", swap(replace(thing, shape=others(thing.shape, SHAPES)[i]))
        if thing.place:
            yield "place", swap(replace(thing, place=others(thing.place, PLACES)[i]))
        if thing.size:
            yield "size", swap(replace(thing, size=others(thing.size, ("small", "large"))[0]))
        if thing.radius:
            yield "resized", swap(replace(thing, radius=1.6 * thing.radius))
        if thing.turn >= 0:
            yield "turn", swap(replace(thing, turn=(thing.turn + 1) % 4))
        if thing.at:
            yield "moved", swap(replace(thing, at=(thing.at[0] + (0.2 if thing.at[0] < 0.5 else -0.2), thing.at[1])))
    if things:
        yield "more", replace(truth, things=(*things, things[0]))
        yield "fewer", replace(truth, things=things[1:], relations=())
    if len(things) == 2 and all(a.colour and a.colour != b.colour for a, b in (things, things[::-1])):
        exchanged = tuple(replace(a, colour=b.colour) for a, b in (things, things[::-1]))
        yield "exchanged colours", replace(truth, things=exchanged)
    if truth.relations:
        yield "relation", replace(truth, relations=tuple((j, said, i) for i, said, j in truth.relations))
    if truth.background:
        yield "background", replace(truth, background=others(truth.background, ("white", "grey", "black"))[0])
    if label:
        yield (
            "word",
            replace(truth, label=replace(label, word=label.word[::-1] + "A" * (label.word == label.word[::-1]))),
        )
        for letter in "AEIOU":
            if letter not in label.word and label.word[1] in "AEIOU":
                yield "letter", replace(truth, label=replace(label, word=label.word[0] + letter + label.word[2]))
        if label.colour:
            yield "word's colour", replace(truth, label=replace(label, colour=others(label.colour, COLOURS)[0]))
    for i, value in enumerate(truth.values):
        yield "value", replace(truth, values=(*truth.values[:i], value + 1, *truth.values[i + 1 :]))
    if truth.colours:
        yield "figure's colour", replace(truth, colours=(others(truth.colours[0], COLOURS)[0], *truth.colours[1:]))


@pytest.mark.parametrize("damage", [np.copy, slow(blur)])
def test_wrong_pictures_are_refused(damage):
    accepted = {}
    for pair in PICTURED:
        for sample in samples(*pair, 8):
            picture = damage(sample.picture)
            for name, truth in wrong_truths(sample.truth):
                accepted.setdefault(name, []).append(check(picture, truth).right)
    rates = {name: float(np.mean(verdicts)) for name, verdicts in accepted.items()}
    assert len(rates) >= 15
    assert np.mean([verdict for verdicts in accepted.values() for verdict in verdicts]) <= 0.01, rates
    assert max(rates.values()) <= 0.05, rates


def test_edits_are_refused_where_nothing_was_done():
    edits = [s for domain, task in PICTURED for s in samples(domain, task, 30) if s.images]
    assert len(edits) > 100
    assert np.mean([check(s.images[0], s.truth).right for s in edits]) <= 0.01


def test_a_verdict_names_what_is_wrong():
    picture = draw([Placed("star", "red", 16, 16, 9), Placed("circle", "blue", 46, 44, 9)], (64, 64))

    def wrong(*things):
        return {name for name, right in check(picture, Truth("two", things)).parts.items() if not right}

    assert not wrong(Thing("star", "red", "top left"), Thing("circle", "blue"))
    assert wrong(Thing("star", "green"), Thing("circle", "blue")) == {"colour", "together"}
    assert wrong(Thing("heart", "red"), Thing("circle", "blue")) == {"shape", "together"}
    assert wrong(Thing("star", "blue"), Thing("circle", "red")) == {"together"}
    assert wrong(Thing("star", "red", "right"), Thing("circle", "blue")) == {"place", "together"}
    assert wrong(Thing("star", "red")) == {"count"}


def test_what_an_edit_leaves_must_be_as_it_was():
    sample = next(s for s in samples("objects", "edit", 60, 1, kind="remove") if len(s.truth.things) == 1)
    assert check(sample.picture, sample.truth).right
    thing, white = sample.truth.things[0], np.all(sample.picture > 250, axis=-1)
    grey = np.where(white[..., None], np.uint8(128), sample.picture)
    assert not check(grey, sample.truth).parts["background"]
    at = Placed(thing.shape, thing.colour, thing.at[0] * 64, thing.at[1] * 64, 5)
    assert not check(draw([at], (64, 64)), sample.truth).parts["size"]
    ghost = (0.55 * sample.picture + 0.45 * sample.images[0]).astype(np.uint8)
    assert not check(ghost, sample.truth).parts["count"]


@pytest.mark.parametrize("rgb", [(255, 190, 190), (200, 220, 255), (210, 210, 210), (255, 255, 170)])
def test_pale_objects_are_seen(rgb):
    picture = draw([Placed("circle", "red", 16, 16, 9)], (64, 64))
    truth = Truth("single", (Thing("circle", "red"),))
    assert check(picture, truth).right
    picture[34:58, 34:58] = rgb
    assert not check(picture, truth).parts["count"]


def test_a_word_of_two_colours_has_none():
    def word(colour):
        return draw((), (64, 64), words=[("CAT", colour, 4, 20, 3)])

    truth = Truth("word", label=Label("CAT", "blue"))
    mixed = word("blue")
    assert check(mixed, truth).right
    mixed[:, :21] = word("red")[:, :21]
    assert check(mixed, truth).parts == {"word": True, "word colour": False}
    assert check(word("red"), Truth("word", label=Label("CAT"))).right


def test_figures_are_read_only_where_their_parts_are():
    white, line = np.full(3, 255.0), FIGURES["number line"].draw((2,), ("red",), (64, 64))
    assert FIGURES["number line"].read(line, white) == ((2,), ("red",))
    bunched = line.copy()
    bunched[38:49] = 255
    bunched[42:45, 6:58] = 0
    for x in range(6, 24, 3):
        bunched[38:49, x] = 0
    assert FIGURES["number line"].read(bunched, white) is None
    for colour, rgb in COLOURS.items():
        for count in (2, 4):
            stack = FIGURES["stacks"].draw((count,), (colour,), (64, 64))
            assert FIGURES["stacks"].read(stack, white) == ((count,), (colour,))
            stack[(stack < 250).any(-1)] = rgb
            assert FIGURES["stacks"].read(stack, white) is None
    places = (("red", 6, 6), ("red", 16, 6), ("blue", 48, 58), ("blue", 58, 58))
    disc = Placed("circle", "black", 32, 40, 9)
    picture = draw([disc, *(Placed("circle", colour, x, y, 3.7) for colour, x, y in places)], (64, 64))
    assert FIGURES["balance"].read(picture, white) is None


def test_a_polygon_beside_the_picture_is_not_drawn():
    """As the checker tries where a picture is far from what was asked for."""
    canvas = np.zeros((8, 8, 3), np.float32)
    for shift in ((-9, 0), (20, 0), (0, -9), (0, 20)):
        polygon(canvas, "red", np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float) + shift)
    assert not canvas.any()
    polygon(canvas, "red", np.array([[-2, -2], [4, -2], [4, 4], [-2, 4]], float))
    assert canvas[:4, :4].any(-1).all() and not canvas[4:].any()


def test_touching_and_two_coloured_objects_are_refused():
    one = [Placed("circle", "red", 30, 30, 12)]
    truth = Truth("single", (Thing("circle", "red"),))
    assert check(draw(one, (64, 64)), truth).right
    assert not check(draw([*one, Placed("square", "red", 40, 30, 12)], (64, 64)), truth).right
    picture = draw(one, (64, 64))
    half = draw([replace(one[0], colour="blue")], (64, 64))
    picture[:, :30] = half[:, :30]
    assert not check(picture, truth).right


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_an_empty_picture_is_refused(colour):
    empty = np.full((64, 64, 3), colour, np.uint8)
    assert not any(check(empty, s.truth).right for pair in PICTURED for s in samples(*pair, 10))


def test_noise_is_refused_without_a_fuss():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert not any(check(picture, s.truth).right for pair in PICTURED for s in samples(*pair, 2))


def test_answers():
    for domain in DOMAINS:
        for sample in samples(domain, "ask", 20):
            assert check_answer(f" {sample.words.upper()}. ", sample.truth).right
            assert not check_answer(f"not {sample.words}", sample.truth).right
            assert not check_answer("", sample.truth).right


def test_questions_are_about_the_picture():
    """Yes and no are as frequent; no answer to a kind of question is always right."""
    words = [make("objects", "ask", seed, kind="whether").words for seed in range(100)]
    assert 35 <= words.count("yes") <= 65
    for kind in ("colour", "shape", "where", "count"):
        words = [make("objects", "ask", seed, kind=kind).words for seed in range(60)]
        assert max(map(words.count, words)) < 30


def test_single_objects_are_fast():
    """500 a second on one core, in time of this process, the best of three runs."""

    def seconds():
        start = time.process_time()
        for seed in range(100):
            make("objects", "draw", 2 * seed, kind="single")
        return time.process_time() - start

    assert 100 / min(seconds() for _ in range(3)) >= 500
