"""Charts and diagrams of numbers and simple physics."""

from .canvas import COLOURS
from .figures import FIGURES, LAST_NUMBER, MOST_BARS, MOST_WEIGHTS, TALLEST
from .objects import DRAW
from .scene import NUMBERS, Choices, Placed, Plan, Thing, Truth, drawing, plural, with_article

BRIGHT = tuple(colour for colour in COLOURS if colour != "black")  # lines of diagrams are black
CORNERS = ("bottom left", "top left", "top right", "bottom right")  # of a right angle, by quarter turns
HOURS = tuple(range(1, 13))


def figure(kind: str, name: str, prompt: str, values, colours, choices: Choices, before=None) -> Plan:
    """The plan of a diagram. before: values and colours of the input picture, for an edit."""
    draw = FIGURES[name].draw
    return Plan(
        prompt,
        Truth(kind, figure=name, values=tuple(values), colours=tuple(colours)),
        lambda: (() if before is None else (draw(*before, choices.size),), draw(values, colours, choices.size)),
        keys=() if before else (prompt,),
    )


def figure_question(kind: str, name: str, templates, values, colours, answer: str, choices: Choices, others=()) -> Plan:
    return Plan(
        choices.template(templates),
        Truth(kind, answers=(answer, *others)),
        lambda: ((FIGURES[name].draw(values, colours, choices.size),), None),
        answer,
    )


def number_words(value: int) -> tuple[str, str]:
    return NUMBERS[value], str(value)


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# Bar charts


def some_bars(choices: Choices) -> tuple[list[int], list[str]]:
    count = choices.number(2, MOST_BARS)
    return [choices.number(1, TALLEST) for _ in range(count)], choices.few(BRIGHT, count)


def bars(choices: Choices) -> Plan:
    values, colours = some_bars(choices)
    said = listed([f"{colour} {NUMBERS[value]}" for value, colour in zip(values, colours, strict=True)])
    return figure("bars", "bars", choices.template(DRAW).format(f"a bar chart of {said}"), values, colours, choices)


def change_bar(choices: Choices) -> Plan:
    values, colours = some_bars(choices)
    i, value = choices.number(0, len(values) - 1), choices.number(1, TALLEST)
    after = [*values[:i], value, *values[i + 1 :]]
    if after == values:
        return change_bar(choices)
    prompt = choices.template(("make the {} bar {}", "change the {} bar to {}", "please make the {} bar {}"))
    return figure(
        "change bar", "bars", prompt.format(colours[i], NUMBERS[value]), after, colours, choices, (values, colours)
    )


def ask_bar(choices: Choices) -> Plan:
    values, colours = some_bars(choices)
    i = choices.number(0, len(values) - 1)
    templates = ("what is the value of the {} bar?", "how high is the {} bar?", "what value has the {} bar?")
    templates = tuple(t.format(colours[i]) for t in templates)
    answer, digit = number_words(values[i])
    return figure_question("bar value", "bars", templates, values, colours, answer, choices, (digit,))


def ask_highest(choices: Choices) -> Plan:
    values, colours = some_bars(choices)
    word = choices.pick(("highest", "lowest"))
    extreme = (max if word == "highest" else min)(values)
    if values.count(extreme) > 1:
        return ask_highest(choices)
    templates = tuple(
        t.format(word) for t in ("which bar is {}?", "what colour is the {} bar?", "which is the {} bar?")
    )
    return figure_question("highest bar", "bars", templates, values, colours, colours[values.index(extreme)], choices)


# Number line


def number_line(choices: Choices) -> Plan:
    value, colour = choices.number(0, LAST_NUMBER), choices.colour_for("circle")
    said = f"a number line from zero to five with {with_article(colour)} circle at {NUMBERS[value]}"
    return figure("number line", "number line", choices.template(DRAW).format(said), [value], [colour], choices)


def change_number(choices: Choices) -> Plan:
    (old, new), colour = choices.few(range(LAST_NUMBER + 1), 2), choices.colour_for("circle")
    prompt = choices.template(("move the circle to {}", "put the circle at {}", "please put the circle at {}"))
    return figure(
        "change number", "number line", prompt.format(NUMBERS[new]), [new], [colour], choices, ([old], [colour])
    )


def ask_number(choices: Choices) -> Plan:
    value, colour = choices.number(0, LAST_NUMBER), choices.colour_for("circle")
    templates = ("which number has the circle?", "at which number is the circle?", "what number has the circle?")
    answer, digit = number_words(value)
    return figure_question("number", "number line", templates, [value], [colour], answer, choices, (digit,))


# Clock


def clock(choices: Choices) -> Plan:
    hour, colour = choices.pick(HOURS), choices.pick(BRIGHT)
    said = f"a clock with {with_article(colour)} hand at {NUMBERS[hour]}"
    return figure("clock", "clock", choices.template(DRAW).format(said), [hour], [colour], choices)


def change_time(choices: Choices) -> Plan:
    (old, new), colour = choices.few(HOURS, 2), choices.pick(BRIGHT)
    prompt = choices.template(("move the hand to {}", "make it {} on the clock", "please move the hand to {}"))
    return figure("change time", "clock", prompt.format(NUMBERS[new]), [new], [colour], choices, ([old], [colour]))


def ask_time(choices: Choices) -> Plan:
    hour, colour = choices.pick(HOURS), choices.pick(BRIGHT)
    templates = ("what time is it?", "what time is it on the clock?", "which hour is it?", "which time is it?")
    answer, digit = number_words(hour)
    return figure_question("time", "clock", templates, [hour], [colour], answer, choices, (digit,))


# Balance


def some_weights(choices: Choices) -> tuple[list[int], list[str]]:
    colours = [choices.colour_for("circle", other_than=("black",)) for _ in range(2)]
    return [choices.number(1, MOST_WEIGHTS) for _ in range(2)], colours


def balance(choices: Choices) -> Plan:
    """The prompt names the weights only; how the beam hangs follows from them."""
    values, colours = some_weights(choices)
    parts = [plural(value, f"{colour} weight") for value, colour in zip(values, colours, strict=True)]
    said = f"a balance with {parts[0]} on the left and {parts[1]} on the right"
    return figure("balance", "balance", choices.template(DRAW).format(said), values, colours, choices)


def ask_heavier(choices: Choices) -> Plan:
    values, colours = some_weights(choices)
    answer = "left" if values[0] > values[1] else "right" if values[0] < values[1] else "none"
    templates = (
        "which side is heavier?",
        "what side of the balance is heavier?",
        "which side of the balance is heavier?",
    )
    return figure_question("heavier", "balance", templates, values, colours, answer, choices)


# Geometry


def right_triangle(choices: Choices) -> Plan:
    turn, colour = choices.number(0, 3), choices.pick(tuple(COLOURS))
    said = f"{with_article(colour)} right triangle with the right angle marked in the {CORNERS[turn]}"
    radius = choices.uniform(0.3, 0.38) * min(choices.size)
    things = (Thing("right triangle", colour, turn=turn),)
    return drawing(
        "right triangle",
        choices.template(DRAW).format(said),
        lambda: [Placed("right triangle", colour, *choices.at("", radius), radius, turn)],
        choices,
        things=things,
    )


KINDS = {
    "draw": (bars, bars, number_line, clock, balance, right_triangle),
    "edit": (change_bar, change_number, change_time),
    "ask": (ask_bar, ask_highest, ask_number, ask_time, ask_heavier),
}
