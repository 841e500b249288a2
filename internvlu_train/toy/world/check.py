"""Judge a picture, or an answer, by the truth of its sample."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .figures import FIGURES
from .reading import Detection, background_name, background_of, objects_in
from .scene import RELATIONS, Thing, Truth, bands, place_of
from .words import read_word

MOVED = 0.07  # largest distance of an unmoved object from its place, as a fraction of the picture's side
RESIZED = 0.25  # largest change of the radius of an object that must keep it, as a fraction of the radius
SMALL, LARGE = 0.1425, 0.22  # limits between the radii that are drawn
MOST_OBJECTS = 12  # a picture with more is wrong in any case


@dataclass(frozen=True)
class Verdict:
    """right: the picture shows everything that was asked for, and nothing else. parts: each aspect on its own."""

    right: bool
    parts: dict[str, bool]


def check(picture: np.ndarray, truth: Truth) -> Verdict:
    """Judge a picture, uint8 [H, W, 3]."""
    background = background_of(picture)
    parts = {}
    if truth.background:
        parts["background"] = background_name(background) == truth.background
    if truth.figure:
        parts |= judge_figure(picture, background, truth)
    elif truth.label:
        parts |= judge_label(picture, background, truth)
    else:
        parts |= judge_things(objects_in(picture, background), truth, picture.shape[1::-1])
    return Verdict(all(parts.values()), parts)


def judge_figure(picture: np.ndarray, background: np.ndarray, truth: Truth) -> dict[str, bool]:
    read = FIGURES[truth.figure].read(picture, background)
    values, colours = read or ((), ())
    return {"figure": read is not None, "values": values == truth.values, "colour": colours == truth.colours}


def judge_label(picture: np.ndarray, background: np.ndarray, truth: Truth) -> dict[str, bool]:
    """Judge the word, and the objects in the rest of the picture."""
    height, width = picture.shape[:2]
    top, bottom = bands(truth.label.where, height)
    word, colour = read_word(picture[top:bottom], background)
    parts = {"word": word == truth.label.word, "word colour": truth.label.colour in ("", colour)}
    if truth.label.where:
        rest = picture.copy()
        rest[top:bottom] = background
        parts |= judge_things(objects_in(rest, background), truth, (width, height))
    return parts


def judge_things(seen: list[Detection], truth: Truth, size: tuple[int, int]) -> dict[str, bool]:
    """Judge objects. The part "together" says that all other parts hold for the same assignment of objects."""
    things = truth.things
    tests: dict[str, Callable[[Thing, Detection], bool]] = {
        "shape": lambda thing, one: not thing.shape or thing.shape == one.shape,
        "colour": lambda thing, one: bool(one.colour) and thing.colour in ("", one.colour),
        "place": lambda thing, one: is_at(thing, one, size),
        "size": has_size,
        "turn": lambda thing, one: thing.turn in (-1, one.turn),
    }
    if not things:
        return {"count": not seen}
    asked = {
        "place": any(thing.place or thing.at for thing in things),
        "size": any(thing.size or thing.radius for thing in things),
        "turn": any(thing.turn >= 0 for thing in things),
    }
    tests = {name: test for name, test in tests.items() if asked.get(name, True)}
    if truth.relations:
        tests["relation"] = tests["shape"]
    tests["together"] = lambda thing, one: all(tests[name](thing, one) for name in tests if name != "together")
    if len(seen) > MOST_OBJECTS:
        return {"count": False} | dict.fromkeys(tests, False)
    parts = {"count": len(seen) == len(things)}
    for name, test in tests.items():
        parts[name] = assign(things, seen, test, truth.relations if name in ("relation", "together") else (), size)
    return parts


def is_at(thing: Thing, one: Detection, size: tuple[int, int]) -> bool:
    if thing.at:
        return max(abs(one.x - thing.at[0]), abs(one.y - thing.at[1])) <= MOVED
    return not thing.place or place_of(one.x * size[0], one.y * size[1], size) == thing.place


def has_size(thing: Thing, one: Detection) -> bool:
    if thing.radius:
        return abs(one.radius - thing.radius) <= RESIZED * thing.radius
    return thing.size in ("", size_of(one))


def size_of(one: Detection) -> str:
    return "small" if one.radius < SMALL else "large" if one.radius > LARGE else ""


def assign(things, seen, fits, relations=(), size=(1, 1)) -> bool:
    """Whether objects can be assigned to all things one to one, so that each fits and all relations hold."""

    def extend(chosen: tuple[int, ...]) -> bool:
        number = len(chosen)
        if number == len(things):
            return all(holds(seen[chosen[i]], relation, seen[chosen[j]], size) for i, relation, j in relations)
        free = (k for k in range(len(seen)) if k not in chosen and fits(things[number], seen[k]))
        return any(extend((*chosen, k)) for k in free)

    return extend(())


def holds(one: Detection, relation: str, other: Detection, size: tuple[int, int]) -> bool:
    """Whether the relation holds: "left of", for example, if it is further left than it is above or below."""
    dx, dy = RELATIONS[relation]
    x, y = (one.x - other.x) * size[0], (one.y - other.y) * size[1]
    return dx * x + dy * y > abs(dy * x + dx * y)


def check_answer(answer: str, truth: Truth) -> Verdict:
    """Whether an answer is right, ignoring letter case, final punctuation and surrounding spaces."""
    said = answer.strip().rstrip(".!").strip().casefold()
    right = said in [known.casefold() for known in truth.answers]
    return Verdict(right, {"answer": right})
