"""Places of objects, directions of arrows, and stacks of blocks from two sides."""

from dataclasses import replace

from .canvas import COLOURS
from .figures import FIGURES, HIGHEST, MOST_STACKS
from .objects import DRAW, at_places, edit
from .scene import (
    DIRECTIONS,
    IN_PLACE,
    NUMBERS,
    PLACES,
    Choices,
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


def an_arrow(choices: Choices, turn: int, colour: str, place: str = "") -> Placed:
    radius = choices.uniform(0.22, 0.3) * min(choices.size)
    return Placed("arrow", colour, *choices.at(place, radius), radius, turn)


def arrow(choices: Choices) -> Plan:
    turn, colour, place = choices.number(0, 3), choices.pick(tuple(COLOURS)), ""
    said = f"{with_article(colour)} arrow that points {DIRECTIONS[turn]}"
    if choices.flip(0.5):
        place = choices.pick(tuple(PLACES))
        said += f" {IN_PLACE[place]}"
    thing = Thing("arrow", colour, place, turn=turn)
    prompt = choices.template(DRAW).format(said)
    return drawing("arrow", prompt, lambda: [an_arrow(choices, turn, colour, place)], choices, things=(thing,))


def layout(choices: Choices) -> Plan:
    """Two or three objects, each at a named place."""
    items = at_places(choices, choices.number(2, 3))
    said = [f"{with_article(f'{one.colour} {one.shape}')} {IN_PLACE[place]}" for place, one in items]
    things = tuple(Thing(one.shape, one.colour, place) for place, one in items)
    return drawing(
        "layout",
        choices.template(DRAW).format(" and ".join(said)),
        lambda: [one for _, one in items],
        choices,
        things=things,
        held_out=held_out(things),
    )


def row(choices: Choices) -> Plan:
    """Three objects side by side, from left to right."""
    pairs = choices.pairs(3)
    said = [with_article(f"{colour} {shape}") for shape, colour in pairs]
    things = tuple(Thing(shape, colour) for shape, colour in pairs)
    prompt = choices.template(DRAW).format(f"{said[1]} between {said[0]} on the left and {said[2]} on the right")
    return drawing(
        "row",
        prompt,
        lambda: in_row(choices, pairs),
        choices,
        things=things,
        relations=((0, "left of", 1), (1, "left of", 2)),
        held_out=held_out(things),
    )


def in_row(choices: Choices, pairs) -> list[Placed]:
    width, height = choices.size
    radius = min(0.115 * width, 0.19 * height)
    middle = choices.uniform(0.3, 0.7) * height
    return [
        Placed(shape, colour, (0.18 + 0.32 * i) * width, middle + choices.uniform(-0.04, 0.04) * height, radius)
        for i, (shape, colour) in enumerate(pairs)
    ]


# Turning and swapping


def turn_arrow(choices: Choices) -> Plan:
    said, by = choices.pick(tuple(TURNS.items()))
    before = an_arrow(choices, choices.number(0, 3), choices.pick(tuple(COLOURS)))
    after = replace(before, turn=(before.turn + by) % 4)
    prompt = choices.template(("turn the arrow by {}", "give the arrow {}", "please turn the arrow by {}"))
    return edit("turn", prompt.format(said), [before], [after], choices)


def point_arrow(choices: Choices) -> Plan:
    before = an_arrow(choices, choices.number(0, 3), choices.pick(tuple(COLOURS)))
    after = replace(before, turn=(before.turn + choices.number(1, 3)) % 4)
    prompt = choices.template(
        ("make the arrow point {}", "turn the arrow so that it points {}", "please make the arrow point {}")
    )
    return edit("point", prompt.format(DIRECTIONS[after.turn]), [before], [after], choices)


def swap(choices: Choices) -> Plan:
    before = choices.scatter(choices.pairs(2))
    one, other = before
    after = [
        replace(one, x=other.x, y=other.y, radius=other.radius),
        replace(other, x=one.x, y=one.y, radius=one.radius),
    ]
    prompt = choices.template(
        ("swap the {} and the {}", "make the {} and the {} change places", "please swap the {} and the {}")
    )
    return edit("swap", prompt.format(one.shape, other.shape), before, after, choices)


# Blocks


def some_stacks(choices: Choices) -> tuple[list[int], list[str]]:
    return [choices.number(1, HIGHEST) for _ in range(choices.number(1, MOST_STACKS))], [choices.pick(tuple(COLOURS))]


def stacks(choices: Choices) -> Plan:
    return _blocks("stacks", choices, "")


def front(choices: Choices) -> Plan:
    return _blocks("front", choices, "the front of ")


def _blocks(name: str, choices: Choices, side: str) -> Plan:
    values, colours = some_stacks(choices)
    stack = with_article(f"{colours[0]} stack") if len(values) == 1 else f"{colours[0]} stacks"
    blocks = "block" if values[-1] == 1 else "blocks"
    said = f"{side}{stack} of {' and '.join(NUMBERS[value] for value in values)} {blocks}"
    return figure(name, name, choices.template(DRAW).format(said), values, colours, choices)


def show_front(choices: Choices) -> Plan:
    values, colours = some_stacks(choices)
    prompt = choices.template(
        ("show the front", "draw the blocks from the front", "please show the blocks from the front")
    )
    return Plan(
        prompt,
        Truth("show front", figure="front", values=tuple(values), colours=tuple(colours)),
        lambda: tuple_of(*(FIGURES[name].draw(values, colours, choices.size) for name in ("stacks", "front"))),
    )


def tuple_of(before, after):
    return (before,), after


def add_block(choices: Choices) -> Plan:
    values, colours = some_stacks(choices)
    i = choices.number(0, len(values) - 1)
    by = choices.pick((-1, 1))
    if not 1 <= values[i] + by <= HIGHEST:
        return add_block(choices)
    after = [value + by * (k == i) for k, value in enumerate(values)]
    which = ("left", "right") if len(values) == 2 else ("left", "middle", "right")
    name = f"the {which[i]} stack" if len(values) > 1 else "the stack"
    templates = ("put one block on {}", "add one block to {}", "please add one block to {}")
    if by < 0:
        templates = ("take one block from {}", "remove one block from {}", "please remove one block from {}")
    return figure(
        "add block", "stacks", choices.template(templates).format(name), after, colours, choices, (values, colours)
    )


# Questions


def ask_direction(choices: Choices) -> Plan:
    one = an_arrow(choices, choices.number(0, 3), choices.pick(tuple(COLOURS)))
    prompt = choices.template(
        ("where does the arrow point?", "which way does the arrow point?", "which way is the arrow?")
    )
    answer = DIRECTIONS[one.turn]
    return Plan(prompt, Truth("direction", answers=(answer,)), lambda: ((draw([one], choices.size),), None), answer)


def ask_blocks(choices: Choices) -> Plan:
    values, colours = some_stacks(choices)
    templates = ("how many blocks are there?", "how many blocks do you see?", "how many blocks are in the picture?")
    answer, digit = number_words(sum(values))
    return figure_question("blocks", "stacks", templates, values, colours, answer, choices, (digit,))


def ask_between(choices: Choices) -> Plan:
    objects = in_row(choices, choices.pairs(3))
    prompt = choices.template(("what is between the {} and the {}?", "which shape is between the {} and the {}?"))
    ends = choices.shuffled([objects[0].shape, objects[2].shape])
    answer = objects[1].shape
    truth = Truth("between", answers=(answer, with_article(answer)), held_out=held_out(objects))
    return Plan(prompt.format(*ends), truth, lambda: ((draw(objects, choices.size),), None), answer)


KINDS = {
    "draw": (arrow, layout, row, stacks, front),
    "edit": (turn_arrow, point_arrow, swap, show_front, add_block),
    "ask": (ask_direction, ask_blocks, ask_between),
}
