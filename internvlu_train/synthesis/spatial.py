"""Where things are, which way they point, and how blocks look from two sides."""

from dataclasses import replace

from .canvas import COLOURS
from .figures import FIGURES, HIGHEST, MOST_STACKS
from .objects import DRAW, at_places, edit
from .scene import (
    DIRECTIONS,
    IN_PLACE,
    NUMBERS,
    PLACES,
    Chance,
    Placed,
    Plan,
    Thing,
    Truth,
    draw,
    drawing,
    held_out,
    with_article,
)
from .science import figure, figure_question, number_words

TURNS = {"a quarter turn clockwise": 1, "half a turn": 2, "a quarter turn anticlockwise": 3}


def an_arrow(chance: Chance, turn: int, colour: str, place: str = "") -> Placed:
    radius = chance.uniform(0.22, 0.3) * min(chance.size)
    return Placed("arrow", colour, *chance.at(place, radius), radius, turn)


def arrow(chance: Chance) -> Plan:
    turn, colour, place = chance.number(0, 3), chance.pick(tuple(COLOURS)), ""
    said = f"{with_article(colour)} arrow that points {DIRECTIONS[turn]}"
    if chance.chance(0.5):
        place = chance.pick(tuple(PLACES))
        said += f" {IN_PLACE[place]}"
    thing = Thing("arrow", colour, place, turn=turn)
    prompt = chance.template(DRAW).format(said)
    return drawing("arrow", prompt, lambda: [an_arrow(chance, turn, colour, place)], chance, things=(thing,))


def layout(chance: Chance) -> Plan:
    """Two or three objects, each at a named place."""
    items = at_places(chance, chance.number(2, 3))
    said = [f"{with_article(f'{one.colour} {one.shape}')} {IN_PLACE[place]}" for place, one in items]
    things = tuple(Thing(one.shape, one.colour, place) for place, one in items)
    return drawing(
        "layout",
        chance.template(DRAW).format(" and ".join(said)),
        lambda: [one for _, one in items],
        chance,
        things=things,
        held_out=held_out(things),
    )


def row(chance: Chance) -> Plan:
    """Three objects side by side, from left to right."""
    pairs = chance.pairs(3)
    said = [with_article(f"{colour} {shape}") for shape, colour in pairs]
    things = tuple(Thing(shape, colour) for shape, colour in pairs)
    prompt = chance.template(DRAW).format(f"{said[1]} between {said[0]} on the left and {said[2]} on the right")
    return drawing(
        "row",
        prompt,
        lambda: in_row(chance, pairs),
        chance,
        things=things,
        relations=((0, "left of", 1), (1, "left of", 2)),
        held_out=held_out(things),
    )


def in_row(chance: Chance, pairs) -> list[Placed]:
    width, height = chance.size
    radius = min(0.115 * width, 0.19 * height)
    middle = chance.uniform(0.3, 0.7) * height
    return [
        Placed(shape, colour, (0.18 + 0.32 * i) * width, middle + chance.uniform(-0.04, 0.04) * height, radius)
        for i, (shape, colour) in enumerate(pairs)
    ]


# Turning and swapping


def turn_arrow(chance: Chance) -> Plan:
    said, by = chance.pick(tuple(TURNS.items()))
    before = an_arrow(chance, chance.number(0, 3), chance.pick(tuple(COLOURS)))
    after = replace(before, turn=(before.turn + by) % 4)
    prompt = chance.template(("turn the arrow by {}", "give the arrow {}", "please turn the arrow by {}"))
    return edit("turn", prompt.format(said), [before], [after], chance)


def point_arrow(chance: Chance) -> Plan:
    before = an_arrow(chance, chance.number(0, 3), chance.pick(tuple(COLOURS)))
    after = replace(before, turn=(before.turn + chance.number(1, 3)) % 4)
    prompt = chance.template(
        ("make the arrow point {}", "turn the arrow so that it points {}", "please make the arrow point {}")
    )
    return edit("point", prompt.format(DIRECTIONS[after.turn]), [before], [after], chance)


def swap(chance: Chance) -> Plan:
    before = chance.scatter(chance.pairs(2))
    one, other = before
    after = [
        replace(one, x=other.x, y=other.y, radius=other.radius),
        replace(other, x=one.x, y=one.y, radius=one.radius),
    ]
    prompt = chance.template(
        ("swap the {} and the {}", "make the {} and the {} change places", "please swap the {} and the {}")
    )
    return edit("swap", prompt.format(one.shape, other.shape), before, after, chance)


# Blocks


def some_stacks(chance: Chance) -> tuple[list[int], list[str]]:
    return [chance.number(1, HIGHEST) for _ in range(chance.number(1, MOST_STACKS))], [chance.pick(tuple(COLOURS))]


def stacks(chance: Chance) -> Plan:
    return _blocks("stacks", chance, "")


def front(chance: Chance) -> Plan:
    return _blocks("front", chance, "the front of ")


def _blocks(name: str, chance: Chance, side: str) -> Plan:
    values, colours = some_stacks(chance)
    stack = with_article(f"{colours[0]} stack") if len(values) == 1 else f"{colours[0]} stacks"
    blocks = "block" if values[-1] == 1 else "blocks"
    said = f"{side}{stack} of {' and '.join(NUMBERS[value] for value in values)} {blocks}"
    return figure(name, name, chance.template(DRAW).format(said), values, colours, chance)


def show_front(chance: Chance) -> Plan:
    values, colours = some_stacks(chance)
    prompt = chance.template(
        ("show the front", "draw the blocks from the front", "please show the blocks from the front")
    )
    return Plan(
        prompt,
        Truth("show front", figure="front", values=tuple(values), colours=tuple(colours)),
        lambda: tuple_of(*(FIGURES[name].draw(values, colours, chance.size) for name in ("stacks", "front"))),
    )


def tuple_of(before, after):
    return (before,), after


def add_block(chance: Chance) -> Plan:
    values, colours = some_stacks(chance)
    i = chance.number(0, len(values) - 1)
    by = chance.pick((-1, 1))
    if not 1 <= values[i] + by <= HIGHEST:
        return add_block(chance)
    after = [value + by * (k == i) for k, value in enumerate(values)]
    which = ("left", "right") if len(values) == 2 else ("left", "middle", "right")
    name = f"the {which[i]} stack" if len(values) > 1 else "the stack"
    templates = ("put one block on {}", "add one block to {}", "please add one block to {}")
    if by < 0:
        templates = ("take one block from {}", "remove one block from {}", "please remove one block from {}")
    return figure(
        "add block", "stacks", chance.template(templates).format(name), after, colours, chance, (values, colours)
    )


# Questions


def ask_direction(chance: Chance) -> Plan:
    one = an_arrow(chance, chance.number(0, 3), chance.pick(tuple(COLOURS)))
    prompt = chance.template(
        ("where does the arrow point?", "which way does the arrow point?", "which way is the arrow?")
    )
    answer = DIRECTIONS[one.turn]
    return Plan(prompt, Truth("direction", answers=(answer,)), lambda: ((draw([one], chance.size),), None), answer)


def ask_blocks(chance: Chance) -> Plan:
    values, colours = some_stacks(chance)
    templates = ("how many blocks are there?", "how many blocks do you see?", "how many blocks are in the picture?")
    answer, digit = number_words(sum(values))
    return figure_question("blocks", "stacks", templates, values, colours, answer, chance, (digit,))


def ask_between(chance: Chance) -> Plan:
    objects = in_row(chance, chance.pairs(3))
    prompt = chance.template(("what is between the {} and the {}?", "which shape is between the {} and the {}?"))
    ends = chance.shuffled([objects[0].shape, objects[2].shape])
    answer = objects[1].shape
    truth = Truth("between", answers=(answer, with_article(answer)), held_out=held_out(objects))
    return Plan(prompt.format(*ends), truth, lambda: ((draw(objects, chance.size),), None), answer)


KINDS = {
    "draw": (arrow, layout, row, stacks, front),
    "edit": (turn_arrow, point_arrow, swap, show_front, add_block),
    "ask": (ask_direction, ask_blocks, ask_between),
}
