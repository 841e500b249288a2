"""Diagrams of numbers: each is drawn from its values and colours, and read back from a picture.

A reader returns (values, colours) as they were given to draw, or None for a picture that is not such a diagram. Lengths
are fractions of the picture's width or height.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import canvas
from .canvas import COLOURS
from .reading import box_of, colour_of, detect, ink, parts_of, soft_part

Read = tuple[tuple[int, ...], tuple[str, ...]] | None
STRAIGHT = 0.3  # largest distance of a measured number from an integer


@dataclass(frozen=True)
class Figure:
    """draw(values, colours, size) → picture, uint8 [H, W, 3]; read(picture, background RGB) → Read."""

    draw: Callable[[tuple[int, ...], tuple[str, ...], tuple[int, int]], np.ndarray]
    read: Callable[[np.ndarray, np.ndarray], Read]


def whole(number: float, low: int, high: int) -> int | None:
    """The nearest integer of a measurement; None if it is between two, or out of bounds."""
    nearest = round(number)
    return nearest if abs(number - nearest) <= STRAIGHT and low <= nearest <= high else None


def numbers(measured, low: int, high: int) -> tuple[int, ...] | None:
    read = tuple(whole(m, low, high) for m in measured)
    return None if None in read else read


def coloured(picture, background) -> tuple[list, list]:
    """(masks of black parts, (mask, colour's name) of the other parts)."""
    named = [(part, colour_of(picture, part, background)) for part in parts_of(picture, background)]
    return [part for part, name in named if name == "black"], [(p, name) for p, name in named if name != "black"]


def extent(part: np.ndarray) -> tuple[float, float, float, float]:
    """The box of a part (left, top, right, bottom), as fractions of the picture."""
    left, top, right, bottom = box_of(part)
    height, width = part.shape
    return left / width, top / height, right / width, bottom / height


# Bar chart: values 1…6, a colour each, above a black base line

MOST_BARS, TALLEST = 4, 6
BASE, UNIT = 0.86, 0.13


def draw_bars(values, colours, size):
    (width, height), picture = size, canvas.blank(size, "white")
    canvas.rectangle(picture, "black", 0.06 * width, 0.92 * height, 0.94 * width, 0.96 * height)
    slot = 0.84 / len(values)
    for i, (value, colour) in enumerate(zip(values, colours, strict=True)):
        centre = 0.08 + slot * (i + 0.5)
        half = min(0.07, slot * 0.34)
        top = (BASE - UNIT * value) * height
        canvas.rectangle(picture, colour, (centre - half) * width, top, (centre + half) * width, BASE * height)
    return canvas.finish(picture)


def read_bars(picture, background) -> Read:
    black, rest = coloured(picture, background)
    if len(black) != 1 or not 1 <= len(rest) <= MOST_BARS or not all(name for _, name in rest):
        return None
    left, top, right, _ = extent(black[0])
    if top < 0.88 or right - left < 0.7:
        return None
    rest = sorted(rest, key=lambda item: box_of(item[0])[0])
    heights = [bar_height(soft_part(picture, part, background), box_of(part)) for part, _ in rest]
    if None in heights:
        return None
    heights = [height / UNIT for height in heights]
    values = numbers(heights, 1, TALLEST)
    return values and (values, tuple(name for _, name in rest))


def upright(alpha: np.ndarray, box: tuple[int, int, int, int]) -> tuple[float, float] | None:
    """(width, height) of an upright rectangle, to fractions of a pixel; None if the part is not a rectangle."""
    left, top, right, bottom = box
    part = alpha[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2]
    sides = []
    for lengths, count in ((part.sum(1), bottom - top), (part.sum(0), right - left)):
        inside = lengths[4:count] if count > 6 else lengths[3 : count + 1]
        if not len(inside) or inside.min() < 0.7 * inside.max():
            return None
        sides.append(float(np.median(inside)))
    return sides[0], sides[1]


def bar_height(alpha: np.ndarray, box: tuple[int, int, int, int]) -> float | None:
    """Height of a rectangle on the base line, as a fraction of the picture's; None if the part is not one."""
    sides = upright(alpha, box)
    return sides[1] / len(alpha) if sides and abs(box[3] / len(alpha) - BASE) <= 0.05 else None


# Number line from 0 to 5 with a circle over one number

LAST_NUMBER, LINE = 5, (0.1, 0.9)


def draw_line(values, colours, size):
    (width, height), picture = size, canvas.blank(size, "white")
    thick = 0.02
    canvas.rectangle(
        picture, "black", (LINE[0] - thick) * width, 0.66 * height, (LINE[1] + thick) * width, 0.7 * height
    )
    for number in range(LAST_NUMBER + 1):
        x = LINE[0] + number / LAST_NUMBER * (LINE[1] - LINE[0])
        canvas.rectangle(picture, "black", (x - thick) * width, 0.6 * height, (x + thick) * width, 0.76 * height)
    x = (LINE[0] + values[0] / LAST_NUMBER * (LINE[1] - LINE[0])) * width
    canvas.paint(picture, "circle", colours[0], x, 0.42 * height, 0.095 * min(size))
    return canvas.finish(picture)


def read_line(picture, background) -> Read:
    black, rest = coloured(picture, background)
    if len(black) == 2:  # the circle is black too, and above the line
        black.sort(key=lambda part: -extent(part)[3])
        rest, black = [(black[1], "black"), *rest], black[:1]
    if len(black) != 1 or len(rest) != 1 or not rest[0][1]:
        return None
    left, top, right, bottom = extent(black[0])
    ticks = row_runs(ink(picture, background)[round(0.625 * len(picture))] > 0.4)
    if len(ticks) != LAST_NUMBER + 1:
        return None
    apart = abs(np.array(ticks) / picture.shape[1] - np.linspace(*LINE, LAST_NUMBER + 1)).max()
    one = detect(picture, rest[0][0], background)
    if right - left < 0.75 or bottom - top > 0.25 or apart > 0.05 or one.shape != "circle" or one.y > top:
        return None
    values = numbers([(one.x - LINE[0]) / (LINE[1] - LINE[0]) * LAST_NUMBER], 0, LAST_NUMBER)
    return values and (values, (rest[0][1],))


def row_runs(row: np.ndarray) -> list[float]:
    """The centres of the runs of True in a row, in pixels."""
    edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
    return [(start + end) / 2 for start, end in zip(edges[::2], edges[1::2], strict=True)]


# Clock: a black rim and one hand, 1…12

RIM, HAND = 0.44, 0.3


def draw_clock(values, colours, size):
    (width, height), picture = size, canvas.blank(size, "white")
    side, centre = min(size), np.array([width, height]) / 2
    canvas.paint(picture, "circle", "black", *centre, RIM * side)
    disc = canvas.coverage("circle", 0, *centre, (RIM - 0.05) * side, (0, 0, width, height))
    canvas.blend(picture, disc[..., None], canvas.BACKGROUNDS["white"])
    angle = values[0] * np.pi / 6
    canvas.stick(
        picture, colours[0], centre, centre + HAND * side * np.array([np.sin(angle), -np.cos(angle)]), 0.07 * side
    )
    return canvas.finish(picture)


def read_clock(picture, background) -> Read:
    parts = parts_of(picture, background)
    if len(parts) != 2:
        return None
    rim, hand = sorted(parts, key=lambda part: -np.subtract(*extent(part)[2::-2]))
    height, width = rim.shape
    left, top, right, bottom = box_of(rim)
    x, y = (left + right) / 2, (top + bottom) / 2
    radius = (right - left) / 2
    colour = colour_of(picture, hand, background)
    round_rim = abs((right - left) - (bottom - top)) <= 0.1 * radius and radius > 0.35 * min(width, height)
    if not colour or colour_of(picture, rim, background) != "black" or not round_rim:
        return None
    alpha = soft_part(picture, hand, background)
    rows, columns = np.indices(alpha.shape) + 0.5
    dx, dy = float((alpha * (columns - x)).sum() / alpha.sum()), float((alpha * (rows - y)).sum() / alpha.sum())
    along = (columns - x) * dx + (rows - y) * dy
    length = float(along[hand].max()) / max(np.hypot(dx, dy), 1e-6)
    if not 0.2 < np.hypot(dx, dy) / radius < 0.5 or not 0.5 < length / radius < 0.9:
        return None
    values = numbers([np.arctan2(dx, -dy) / (np.pi / 6) % 12], 0, 12)
    return values and ((values[0] or 12,), (colour,))


# Balance: 0…3 weights per side on a beam that sinks on the heavier side; values: left, right

PIVOT, MOST_WEIGHTS, SINK, WEIGHT = (0.5, 0.58), 3, 0.13, 0.058


def draw_balance(values, colours, size):
    (width, height), picture = size, canvas.blank(size, "white")
    scale = np.array([width, height])
    sink = SINK * np.sign(values[0] - values[1])
    pivot, arm = np.array(PIVOT), np.array([0.42, -sink])
    canvas.paint(picture, "triangle", "black", *(scale * (0.5, 0.76)), 0.17 * height)
    canvas.stick(picture, "black", scale * (pivot - arm), scale * (pivot + arm), 0.055 * height)
    for side, count, colour in zip((-1, 1), values, colours, strict=True):
        for i in range(count):
            out = side * (0.1 + 0.155 * i)
            centre = scale * (pivot + arm * out / 0.42) - (0, (0.06 + WEIGHT) * height)
            canvas.paint(picture, "circle", colour, *centre, WEIGHT * min(size))
    return canvas.finish(picture)


def read_balance(picture, background) -> Read:
    black, rest = coloured(picture, background)
    if len(black) != 1 or len(rest) > 2 * MOST_WEIGHTS:
        return None
    sides: list[list[str]] = [[], []]
    for part, name in rest:
        left, _, right, _ = extent(part)
        if not name or not is_weight(part):
            return None
        sides[(left + right) / 2 > 0.5].append(name)
    if any(len(set(names)) != 1 for names in sides):
        return None
    sink = beam_sink(black[0])
    if sink is None or not all(rests_on_beam(part, sink) for part, _ in rest):
        return None
    counts = tuple(map(len, sides))
    tilted = 0 if abs(sink) < 0.4 * SINK else int(np.sign(sink))
    if tilted != np.sign(counts[0] - counts[1]):
        return None
    return counts, (sides[0][0], sides[1][0])


def is_weight(part: np.ndarray) -> bool:
    """Whether a part has about the size and aspect ratio of a weight, which is too small for a closer look."""
    left, top, right, bottom = box_of(part)
    wide, high = right - left, bottom - top
    area = np.pi * (WEIGHT * min(part.shape)) ** 2
    return max(wide, high) <= 1.4 * min(wide, high) and 0.5 * area <= part.sum() <= 1.8 * area


def rests_on_beam(weight: np.ndarray, sink: float) -> bool:
    """Whether a weight is right above a beam whose left end is so far below its middle."""
    left, _, right, bottom = extent(weight)
    beam = PIVOT[1] - sink * ((left + right) / 2 - PIVOT[0]) / 0.42
    return abs(bottom - (beam - 0.06)) <= WEIGHT


def beam_sink(beam: np.ndarray) -> float | None:
    """How far the left end of a beam is below its middle, as a fraction of the height; None without a beam."""
    height, width = beam.shape
    rows = np.arange(height)[:, None] + 0.5
    left, right = (beam[:, round(a * width) : round(b * width)] for a, b in ((0.1, 0.25), (0.75, 0.9)))
    if not left.any() or not right.any():
        return None
    low, high = ((rows * part).sum() / part.sum() for part in (left, right))
    return float(low - high) / height / 2 * 0.42 / 0.325  # measured at 0.325 from the middle, the ends are at 0.42


# Stacks of 1…4 blocks in one colour, side by side, seen from a corner or from the front

MOST_STACKS, HIGHEST = 3, 4
TOP, RIGHT, EDGE = 0.55, 0.55, 0.3  # lightness of the upper face, darkness of the right face and of the edges


def tones(colour: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """RGB of the front, upper and right face of a block, and of the edge between two blocks."""
    rgb = np.array(COLOURS[colour], np.float32)
    return rgb, rgb + TOP * (255 - rgb), rgb * RIGHT, rgb * EDGE


def block_side(size: tuple[int, int]) -> float:
    """Half the width, and the height, of a block in pixels."""
    return min(0.125 * size[0], 0.175 * size[1])


def paint_stack(picture: np.ndarray, colour: str, x: float, bottom: float, side: float, count: int):
    """A stack whose lowest corner is at (x, bottom)."""
    front, upper, right, edge = tones(colour)
    half, slope = np.array([side, 0]), np.array([0, side / 2])
    for i in range(count):
        low = np.array([x, bottom - i * side])
        high = low - (0, side)
        canvas.polygon(picture, front, np.array([low, low - half - slope, high - half - slope, high]))
        canvas.polygon(picture, right, np.array([low, high, high + half - slope, low + half - slope]))
        if i:
            for end in (-half, half):
                line = np.array([low, low + end - slope])
                canvas.stick(picture, edge, line[0], line[1], 0.13 * side)
    canvas.polygon(picture, upper, np.array([high, high - half - slope, high - 2 * slope, high + half - slope]))


def stack_places(count: int, size: tuple[int, int]) -> list[float]:
    """x of the centre of each stack, in pixels."""
    return [(0.5 + (i - (count - 1) / 2) * 0.32) * size[0] for i in range(count)]


def draw_stacks(values, colours, size):
    picture = canvas.blank(size, "white")
    for x, count in zip(stack_places(len(values), size), values, strict=True):
        paint_stack(picture, colours[0], x, 0.94 * size[1], block_side(size), count)
    return canvas.finish(picture)


def read_stacks(picture, background) -> Read:
    parts = sorted(parts_of(picture, background), key=lambda part: box_of(part)[0])
    if not 1 <= len(parts) <= MOST_STACKS:
        return None
    found = [read_stack(picture, part) for part in parts]
    if None in found or len({colour for _, colour in found}) != 1:
        return None
    return tuple(count for count, _ in found), (found[0][1],)


def read_stack(picture: np.ndarray, part: np.ndarray) -> tuple[int, str] | None:
    """(height, colour) of the stack that is most similar to this part, if one is similar enough."""
    left, _, right, bottom = box_of(part)
    size = picture.shape[1::-1]
    fits = []
    for count in range(1, HIGHEST + 1):
        for colour in COLOURS:
            drawn = canvas.blank(size, "white")
            paint_stack(drawn, colour, (left + right) / 2, bottom - 0.2, block_side(size), count)
            either = part | (drawn < 250).any(-1)
            fits.append((float(abs(drawn[either] - picture[either]).mean()), count, colour))
    error, count, colour = min(fits)
    return (count, colour) if error <= STACK_ERROR else None


# Mean RGB difference to the drawn stack: up to 21 after a blur, 27 and more for its flat silhouette.
STACK_ERROR = 24.0


def draw_front(values, colours, size):
    """The blocks as squares with a gap between them."""
    picture, side = canvas.blank(size, "white"), 2 * block_side(size) * 0.85
    for x, count in zip(stack_places(len(values), size), values, strict=True):
        for i in range(count):
            bottom = 0.94 * size[1] - i * 0.225 * size[1]
            high = min(side, 0.17 * size[1])
            canvas.rectangle(picture, colours[0], x - side / 2, bottom - high, x + side / 2, bottom)
    return canvas.finish(picture)


def read_front(picture, background) -> Read:
    parts = parts_of(picture, background)
    height, width = picture.shape[:2]
    colours = {colour_of(picture, part, background) for part in parts}
    boxes = [box_of(part) for part in parts]
    square = all(upright(soft_part(picture, part, background), box) for part, box in zip(parts, boxes, strict=True))
    if not parts or len(parts) > MOST_STACKS * HIGHEST or len(colours) != 1 or "" in colours or not square:
        return None
    columns: dict[int, list[float]] = {}
    for left, _, right, bottom in boxes:
        x = (left + right) / 2
        near = next((key for key in columns if abs(key - x) < 0.1 * width), round(x))
        columns.setdefault(near, []).append((0.94 - bottom / height) / 0.225)
    stacks = [numbers(sorted(rows), 0, HIGHEST - 1) for _, rows in sorted(columns.items())]
    if any(rows != tuple(range(len(rows or ()))) for rows in stacks):
        return None
    return tuple(map(len, stacks)), (next(iter(colours)),)


FIGURES = {
    "bars": Figure(draw_bars, read_bars),
    "number line": Figure(draw_line, read_line),
    "clock": Figure(draw_clock, read_clock),
    "balance": Figure(draw_balance, read_balance),
    "stacks": Figure(draw_stacks, read_stacks),
    "front": Figure(draw_front, read_front),
}
