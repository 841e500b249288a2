"""Pictures that need reasoning: sums, common knowledge, opposites. The reasoning is written before the picture."""

from dataclasses import replace

from .objects import arranged, at_places, edit
from .scene import IN_PLACE, NUMBERS, Choices, Placed, Plan, Thing, Truth, drawing, held_out, kept, plural, with_article

COLOUR_OF = {
    "grass": "green",
    "blood": "red",
    "the sun": "yellow",
    "the sea": "blue",
    "coal": "black",
    "a carrot": "orange",
    "a plum": "purple",
    "ice": "cyan",
}
MIXED = {
    ("red", "yellow"): "orange",
    ("red", "blue"): "purple",
    ("blue", "yellow"): "green",
    ("blue", "green"): "cyan",
}
SHAPE_OF = {
    "three corners": "triangle",
    "five points": "star",
    "no corner": "circle",
    "a hole": "ring",
    "the sign of love": "heart",
    "the sign of plus": "cross",
}
FAR = {  # opposite places
    "top left": "bottom right",
    "top right": "bottom left",
    "bottom left": "top right",
    "bottom right": "top left",
    "top": "bottom",
    "bottom": "top",
    "left": "right",
    "right": "left",
}


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def thought(plan: Plan, words: str) -> Plan:
    return replace(plan, words=words)


def _count(kind: str, choices: Choices, prompt: str, first: str, count: int) -> Plan:
    """`count` objects of one shape, whose colour the prompt does not name."""
    shape, colour = choices.pair()
    things = (Thing(shape),) * count
    prompt = prompt.format(shape=shape, shapes=plural(2, shape).split(" ", 1)[1])
    plan = drawing(kind, prompt, lambda: arranged(choices, [(shape, colour)] * count), choices, things=things)
    return thought(plan, f"{first} Draw {plural(count, shape)}.")


def total(choices: Choices) -> Plan:
    one, more = choices.number(1, 3), choices.number(1, 3)
    if one + more > 4:
        return total(choices)
    first = f"{capital(NUMBERS[one])} and {NUMBERS[more]} are {NUMBERS[one + more]}."
    noun = "{shape}" if one == 1 else "{shapes}"
    prompt = choices.template(
        ("{more} more than {one} %s", "draw {more} more than {one} %s", "please draw {more} more than {one} %s")
    )
    prompt = prompt.format(more=NUMBERS[more], one=NUMBERS[one]) % noun
    return _count("total", choices, prompt, first, one + more)


def difference(choices: Choices) -> Plan:
    many = choices.number(2, 5)
    less = choices.number(1, many - 1)
    if many - less > 4:
        return difference(choices)
    first = (
        f"{capital(NUMBERS[many])} less {NUMBERS[less]} {'is' if many - less == 1 else 'are'} {NUMBERS[many - less]}."
    )
    prompt = choices.template(
        ("{less} less than {many} %s", "draw {less} less than {many} %s", "please draw {less} less than {many} %s")
    )
    prompt = prompt.format(less=NUMBERS[less], many=NUMBERS[many]) % "{shapes}"
    return _count("difference", choices, prompt, first, many - less)


def _single(kind: str, choices: Choices, said: str, first: str, shape: str, colour: str, place: str = "") -> Plan:
    templates = ("{}", "draw {}", "a picture of {}", "please draw {}")
    thing = Thing(shape, colour, place)

    def objects():
        radius = choices.radius()
        return [Placed(shape, colour, *choices.at(place, radius), radius)]

    prompt = choices.template(templates).format(said)
    plan = drawing(kind, prompt, objects, choices, things=(thing,), held_out=held_out([thing]))
    noun = with_article(f"{colour} {shape}") + (f" {IN_PLACE[place]}" if place else "")
    return thought(plan, f"{first} Draw {noun}.")


def known_colour(choices: Choices) -> Plan:
    what, colour = choices.pick(tuple(COLOUR_OF.items()))
    shape = choices.shape_for(colour)
    first = f"{capital(what)} is {colour}."
    return _single("known colour", choices, f"{with_article(shape)} in the colour of {what}", first, shape, colour)


def mixed_colour(choices: Choices) -> Plan:
    parts, colour = choices.pick(tuple(MIXED.items()))
    one, other = choices.shuffled(parts)
    shape = choices.shape_for(colour)
    first = f"{capital(one)} and {other} make {colour}."
    return _single(
        "mixed colour", choices, f"{with_article(shape)} in the mix of {one} and {other}", first, shape, colour
    )


def known_shape(choices: Choices) -> Plan:
    what, shape = choices.pick(tuple(SHAPE_OF.items()))
    colour = choices.colour_for(shape)
    first = f"The shape with {what} is {with_article(shape)}."
    return _single("known shape", choices, f"{with_article(colour)} shape with {what}", first, shape, colour)


def opposite(choices: Choices) -> Plan:
    (place, far), (shape, colour) = choices.pick(tuple(FAR.items())), choices.pair()
    first = f"The opposite of the {place} is the {far}."
    said = f"{with_article(f'{colour} {shape}')} opposite of the {place}"
    return _single("opposite", choices, said, first, shape, colour, far)


# Edits


def known_recolour(choices: Choices) -> Plan:
    what, colour = choices.pick(tuple(COLOUR_OF.items()))
    before = choices.scatter(choices.pairs(choices.number(1, 2)))
    one = before[0]
    if colour in [o.colour for o in before] or (not choices.evaluates and held_out([replace(one, colour=colour)])):
        return known_recolour(choices)
    prompt = choices.template(
        ("give the {} the colour of {}", "make the {} the colour of {}", "please give the {} the colour of {}")
    )
    plan = edit(
        "known recolour", prompt.format(one.shape, what), before, [replace(one, colour=colour), *before[1:]], choices
    )
    return thought(plan, f"{capital(what)} is {colour}. Make the {one.shape} {colour}.")


def fill_up(choices: Choices) -> Plan:
    """Add what is missing to a number: the objects in the picture must be counted."""
    (shape, colour), wanted = choices.pair(), choices.number(2, 4)
    there = choices.number(1, wanted - 1)
    objects = choices.scatter([(shape, colour)] * wanted)
    shapes = plural(2, shape).split(" ", 1)[1]
    templates = ("add {} until there are {}", "please add {} until there are {}", "draw {} until there are {}")
    prompt = choices.template(templates).format(shapes, NUMBERS[wanted])
    things = (*(kept(o, choices.size) for o in objects[:there]), *(Thing(shape, colour),) * (wanted - there))
    plan = edit("fill up", prompt, objects[:there], objects, choices, things)
    missing = wanted - there
    verbs = [("is" if number == 1 else "are") for number in (there, missing)]
    return thought(
        plan,
        f"There {verbs[0]} {NUMBERS[there]}. {capital(NUMBERS[wanted])} less {NUMBERS[there]} {verbs[1]} "
        f"{NUMBERS[missing]}. Add {plural(missing, shape)}.",
    )


def across(choices: Choices) -> Plan:
    place, one = at_places(choices, 1)[0]
    if place not in FAR:
        return across(choices)
    after = replace(one, **dict(zip("xy", choices.at(FAR[place], one.radius), strict=True)))
    prompt = choices.template(
        (
            "move the {} to the opposite place",
            "put the {} in the opposite place",
            "please move the {} to the opposite place",
        )
    )
    things = (Thing(one.shape, one.colour, FAR[place]),)
    plan = edit("across", prompt.format(one.shape), [one], [after], choices, things)
    return thought(plan, f"The {one.shape} is {IN_PLACE[place]}. Move it to the {FAR[place]}.")


# Questions without a picture


def ask_sum(choices: Choices) -> Plan:
    one, other = choices.number(1, 6), choices.number(1, 6)
    prompt = choices.template(("how many are {} and {}?", "what are {} and {}?", "how much are {} and {}?"))
    return _ask("sum", prompt.format(NUMBERS[one], NUMBERS[other]), NUMBERS[one + other], str(one + other))


def ask_known_colour(choices: Choices) -> Plan:
    what, colour = choices.pick(tuple(COLOUR_OF.items()))
    return _ask(
        "knowledge",
        choices.template(("what colour is {}?", "which colour has {}?", "which colour is {}?")).format(what),
        colour,
    )


def ask_mix(choices: Choices) -> Plan:
    parts, colour = choices.pick(tuple(MIXED.items()))
    one, other = choices.shuffled(parts)
    prompt = choices.template(
        ("what do {} and {} make?", "which colour do {} and {} make?", "what colour do {} and {} make?")
    )
    return _ask("mix", prompt.format(one, other), colour)


def _ask(kind: str, prompt: str, answer: str, *others: str) -> Plan:
    return Plan(prompt, Truth(kind, answers=(answer, *others)), lambda: ((), None), answer)


KINDS = {
    "reason": (total, difference, known_colour, mixed_colour, known_shape, opposite, known_recolour, fill_up, across),
    "ask": (ask_sum, ask_known_colour, ask_mix),
}
