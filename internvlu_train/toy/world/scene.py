"""What a picture shows, in a form that can be drawn, judged and written as JSON, and the random choices of a sample."""

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from ... import choices
from . import canvas, glyphs

# The places that a prompt can name, as fractions of the picture's width and height.
PLACES = {
    "top left": (0.22, 0.22),
    "top": (0.5, 0.22),
    "top right": (0.78, 0.22),
    "left": (0.22, 0.5),
    "centre": (0.5, 0.5),
    "right": (0.78, 0.5),
    "bottom left": (0.22, 0.78),
    "bottom": (0.5, 0.78),
    "bottom right": (0.78, 0.78),
}
IN_PLACE = {  # in words
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Radii as fractions of the picture's shorter side. Named sizes differ from the usual one by more than a blur.
RADII = {"": (0.155, 0.195), "small": (0.115, 0.13), "large": (0.25, 0.28)}
MARGIN = 1.5  # pixels between an object and the edge of the picture
DIRECTIONS = ("right", "down", "left", "up")  # of an arrow, by quarter turns
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

QUESTION_FRAMES = ("now {}", "please tell me: {}", "look at the picture: {}", "and {}")
REQUEST_FRAMES = ("please {}", "{}, please", "now {}", "I want you to {}")

# Pairs that no prompt or question of training names, in any domain: 7 of 64, spread over shapes and colours.
HELD_OUT_PAIRS = frozenset(
    {
        ("star", "green"),
        ("circle", "purple"),
        ("heart", "blue"),
        ("square", "yellow"),
        ("triangle", "cyan"),
        ("cross", "red"),
        ("ring", "orange"),
    }
)
HELD_OUT_SHARE = 8  # one of so many prompts is held out for evaluation


@dataclass(frozen=True)
class Thing:
    """One object that a picture must show. An empty field means that anything is right.

    place: a key of PLACES. at: the centre (x, y) of an object that must not move, as fractions of the picture's sides.
    size: "small" or "large". radius: of an object that must keep its size, as a fraction of the picture's shorter side.
    turn: quarter turns clockwise; −1 for any.
    """

    shape: str = ""
    colour: str = ""
    place: str = ""
    at: tuple[float, float] | tuple[()] = ()
    size: str = ""
    radius: float = 0.0
    turn: int = -1


@dataclass(frozen=True)
class Label:
    """A word. where: "" if it is alone in the picture, "top" or "bottom" if objects are in the rest of it."""

    word: str
    colour: str = ""
    where: str = ""


@dataclass(frozen=True)
class Truth:
    """What the picture must show, and nothing else.

    kind: of the prompt; scores are grouped by it. relations: (i, relation, j) between things. figure: "" or the
    diagram, whose numbers are `values` and whose colours are `colours`. answers: right answers to a question, in any
    letter case. held_out: whether the sample has a pair that training never shows.
    """

    kind: str
    things: tuple[Thing, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str = ""
    label: Label | None = None
    figure: str = ""
    values: tuple[int, ...] = ()
    colours: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    held_out: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Truth":
        values = json.loads(text)
        values["things"] = tuple(Thing(**(thing | {"at": tuple(thing["at"])})) for thing in values["things"])
        values["relations"] = tuple(tuple(relation) for relation in values["relations"])
        values["label"] = values["label"] and Label(**values["label"])
        for name in ("values", "colours", "answers"):
            values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True)
class Plan:
    """A sample before it is drawn. paint() returns (input pictures, target picture or None).

    keys: texts that must all belong to the sample's split (Choices.wants); empty if both splits may have the sample,
    because no two of its scenes are equal.
    """

    prompt: str
    truth: Truth
    paint: Callable[[], tuple[tuple[np.ndarray, ...], np.ndarray | None]]
    words: str = ""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placed:
    """An object where it is drawn: centre and radius in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: int = 0


def frames(template: str) -> tuple[str, ...]:
    """The sentences in which a template can be embedded: those of a question, of a request, or none."""
    if template.endswith("?"):
        return QUESTION_FRAMES
    return ("{}",) if template.startswith(("{", "a ", "the ", "I ", "please ")) else REQUEST_FRAMES


class Choices(choices.Choices):
    """The random choices of one sample. Training may show less than evaluation."""

    def template(self, templates: tuple[str, ...], practised: tuple[str, ...] = ()) -> str:
        """One of the templates. The last one is for evaluation only, those in `practised` for training only.

        Training also embeds it in frames ("now …"): trained on two forms of a sentence, a model did not understand a
        third one.
        """
        if self.evaluates:
            return self.pick(templates)
        while True:
            chosen = self.pick((*templates[:-1], *practised))
            framed = self.pick(frames(chosen)).format(chosen) if self.flip(0.5) else chosen
            if framed != templates[-1]:
                return framed

    def pair(self, background: str = "white", shapes=canvas.SHAPES, colours=tuple(canvas.COLOURS)) -> tuple[str, str]:
        """A shape and a colour that this split may show together, on this background."""
        while True:
            pair = self.pick(shapes), self.pick(colours)
            if pair[1] != background and (self.evaluates or pair not in HELD_OUT_PAIRS):
                return pair

    def pairs(self, count: int, background: str = "white") -> list[tuple[str, str]]:
        """Pairs without a common shape or colour."""
        pairs = []
        while len(pairs) < count:
            pair = self.pair(background)
            if all(pair[0] != other[0] and pair[1] != other[1] for other in pairs):
                pairs.append(pair)
        return pairs

    def colour_for(self, shape: str, background: str = "white", other_than=()) -> str:
        """A colour that this split may show the shape in."""
        allowed = tuple(c for c in canvas.COLOURS if c not in other_than)
        return self.pair(background, (shape,), allowed)[1]

    def shape_for(self, colour: str, other_than=()) -> str:
        """A shape that this split may show in the colour."""
        return self.pair("", tuple(s for s in canvas.SHAPES if s not in other_than), (colour,))[0]

    def background(self) -> str:
        """Training has rare backgrounds more often: shapes on black were learnt later than those on white."""
        return self.pick(("grey", "black")) if self.flip(0.25 if self.evaluates else 0.6) else "white"

    def wants(self, keys: tuple[str, ...]) -> bool:
        """Whether all texts belong to this split: by its checksum, one of HELD_OUT_SHARE is for evaluation."""
        return all((zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0) == self.evaluates for key in keys)

    # Places

    def radius(self, size: str = "", shrink: float = 1.0) -> float:
        return self.uniform(*RADII[size]) * min(self.size) * shrink

    def at(self, place: str, radius: float) -> tuple[float, float]:
        """A point in pixels at the place, or anywhere, such that the whole object is in the picture."""
        width, height = self.size
        margin = radius + MARGIN
        if not place:
            x, y = self.uniform(margin, width - margin), self.uniform(margin, height - margin)
        else:
            fraction = PLACES[place]
            x, y = ((f + self.uniform(-0.03, 0.03)) * side for f, side in zip(fraction, self.size, strict=True))
        return self.inside(x, y, radius)

    def inside(self, x: float, y: float, radius: float) -> tuple[float, float]:
        """The centre nearest to this one, in pixels, such that the whole object is in the picture."""
        width, height = self.size
        margin = radius + MARGIN
        return min(max(x, margin), width - margin), min(max(y, margin), height - margin)

    def scatter(self, parts: list[tuple[str, str]], shrink: float = 1.0, taken=()) -> list[Placed]:
        """Place objects (shape, colour) so that none touches another or one of `taken`; they shrink if necessary."""
        while True:
            placed = list(taken)
            for shape, colour in parts:
                for _ in range(30):
                    radius = self.radius(shrink=shrink)
                    one = Placed(shape, colour, *self.at("", radius), radius)
                    if not any(touch(one, other, self.gap) for other in placed):
                        placed.append(one)
                        break
                else:
                    break
            if len(placed) == len(taken) + len(parts):
                return placed[len(taken) :]
            shrink *= 0.95

    def row(self, parts: list[tuple[str, str]], axis: int) -> list[Placed]:
        """Place objects (shape, colour) in a row through the middle, from left to right (axis 0) or downwards (axis 1).

        They shrink if necessary.
        """
        pitch, shrink = self.size[axis] / len(parts), 1.0
        while True:
            placed = []
            for index, (shape, colour) in enumerate(parts):
                radius = self.radius(shrink=shrink)
                along, across = (self.uniform(-most, most) * min(self.size) for most in (0.03, 0.08))
                centre = [side / 2 + across for side in self.size]
                centre[axis] = (index + 0.5) * pitch + along
                placed.append(Placed(shape, colour, *self.inside(*centre, radius), radius))
            if not any(touch(one, other, self.gap) for one, other in pairwise(placed)):
                return placed
            shrink *= 0.99

    @property
    def gap(self) -> float:
        """Least distance between two objects, in pixels."""
        return max(3.0, 0.06 * min(self.size))


def touch(one: Placed, other: Placed, gap: float) -> bool:
    """Whether the bounding squares of two objects are nearer than gap pixels."""
    reach = one.radius + other.radius + gap
    return abs(one.x - other.x) < reach and abs(one.y - other.y) < reach


def draw(objects, size: tuple[int, int], background: str = "white", words=()) -> np.ndarray:
    """Draw objects, and words as `written` places them, to a picture, uint8 [H, W, 3]."""
    picture = canvas.blank(size, background)
    for o in objects:
        canvas.paint(picture, o.shape, o.colour, o.x, o.y, o.radius, o.turn)
    for word in words:
        paint_word(picture, *word)
    return canvas.finish(picture)


def written(word: str, colour: str, choices: Choices, where: str = "") -> tuple[str, str, int, int, int]:
    """Place a word: (word, colour, left, top, side of a cell), in whole pixels.

    where: as in Label. The word fills most of the width or height of that part of the picture.
    """
    (width, height), (rows, columns) = choices.size, glyphs.cells(word).shape
    side = int(min(0.92 * width / columns, (0.36 if where else 0.6) * height / rows))
    if not where and side > 3 and choices.flip(0.5):
        side -= 1
    left = choices.number(2, width - columns * side - 2)
    free = height - rows * side
    top = {"": choices.number(2, free - 2), "top": 3, "bottom": free - 3}[where]
    return word, colour, left, top, side


def bands(where: str, height: int) -> tuple[int, int]:
    """The rows (first, last + 1) of a label at `where`."""
    return {"": (0, height), "top": (0, round(0.44 * height)), "bottom": (round(0.56 * height), height)}[where]


def paint_word(picture: np.ndarray, word: str, colour: str, left: int, top: int, side: int):
    canvas.cells(picture, colour, glyphs.cells(word), left, top, side)


def drawing(kind: str, prompt: str, objects: Callable[[], list], choices: Choices, background="white", **truth) -> Plan:
    """The plan of a drawing. objects() returns what to draw; it is called only if the split has the prompt."""
    said = f" on a {background} background" if background != "white" else ""
    prompt += said
    return Plan(
        prompt,
        Truth(kind, background=background if said else "", **truth),
        lambda: ((), draw(objects(), choices.size, background)),
        keys=(prompt,),
    )


def kept(one: Placed, size: tuple[int, int]) -> Thing:
    """The object as one whose place and size an edit must not change."""
    at = round(one.x / size[0], 4), round(one.y / size[1], 4)
    turn = one.turn if one.shape in canvas.TURNED else -1
    return Thing(one.shape, one.colour, at=at, radius=round(one.radius / min(size), 4), turn=turn)


def place_of(x: float, y: float, size: tuple[int, int]) -> str:
    """The named place nearest to a point in pixels."""
    u, v = x / size[0], y / size[1]
    return min(PLACES, key=lambda name: (PLACES[name][0] - u) ** 2 + (PLACES[name][1] - v) ** 2)


def held_out(objects) -> bool:
    """Whether an object has a (shape, colour) pair that training never shows."""
    return any((o.shape, o.colour) in HELD_OUT_PAIRS for o in objects)


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def plural(count: int, noun: str) -> str:
    """ "one star", "three crosses"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{NUMBERS[count]} {noun}{ending}"
