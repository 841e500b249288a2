"""Short words in two scripts: drawing, edits and questions."""

from . import glyphs
from .canvas import COLOURS
from .objects import DRAW
from .scene import Choices, Label, Placed, Plan, Thing, Truth, draw, held_out, kept, with_article, written

CHANGE = ("change the word to {}", "replace the word with {}", "make the word {}", "please change the word to {}")


def latin_word(choices: Choices) -> str:
    """Consonant, vowel, consonant: 2205 words, so that a model has to learn letters and not words."""
    return choices.pick(glyphs.CONSONANTS) + choices.pick(glyphs.VOWELS) + choices.pick(glyphs.CONSONANTS)


def chinese_word(choices: Choices) -> str:
    return "".join(choices.few(tuple(glyphs.CHINESE), 2))


def _word(kind: str, choices: Choices, word: str) -> Plan:
    colour = choices.pick(tuple(COLOURS))
    prompt = choices.template(DRAW).format(f"the word {word} in {colour}")
    return Plan(
        prompt,
        Truth(kind, label=Label(word, colour)),
        lambda: ((), draw((), choices.size, words=[written(word, colour, choices)])),
        keys=(word,),
    )


def latin(choices: Choices) -> Plan:
    return _word("word", choices, latin_word(choices))


def chinese(choices: Choices) -> Plan:
    return _word("chinese", choices, chinese_word(choices))


def caption(choices: Choices) -> Plan:
    """A word above or below an object."""
    (shape, colour), word, where = choices.pair(), latin_word(choices), choices.pick(("top", "bottom"))
    said = {"top": "below", "bottom": "above"}[where]
    prompt = choices.template(DRAW).format(f"{with_article(f'{colour} {shape}')} {said} the word {word}")
    thing = Thing(shape, colour)

    def paint():
        words = [written(word, "black", choices, where)]
        return (), draw([beside(shape, colour, choices, where)], choices.size, words=words)

    return Plan(
        prompt,
        Truth("caption", (thing,), label=Label(word, "", where), held_out=held_out([thing])),
        paint,
        keys=(word,),
    )


def beside(shape: str, colour: str, choices: Choices, where: str, radius: float = 0.0) -> Placed:
    """An object in the part of the picture that is free beside a word at `where`."""
    radius = radius or choices.radius()
    height = choices.size[1]
    near = height * 0.03 + radius
    low, high = (height * 0.53 + radius - 2, height - near) if where == "top" else (near, height * 0.47 - radius + 2)
    return Placed(shape, colour, choices.at("", radius)[0], choices.uniform(min(low, high), max(low, high)), radius)


def _edit(kind: str, choices: Choices, prompt: str, old: tuple, new: tuple) -> Plan:
    return Plan(
        prompt,
        Truth(kind, label=Label(new[0], new[1])),
        lambda: ((draw((), choices.size, words=[old]),), draw((), choices.size, words=[new])),
        keys=(old[0], new[0]),
    )


def change_word(choices: Choices) -> Plan:
    make_word = choices.pick((latin_word, latin_word, chinese_word))
    old, new = make_word(choices), make_word(choices)
    if old == new:
        return change_word(choices)
    before = written(old, choices.pick(tuple(COLOURS)), choices)
    return _edit("change word", choices, choices.template(CHANGE).format(new), before, (new, *before[1:]))


def colour_word(choices: Choices) -> Plan:
    old, new = choices.few(tuple(COLOURS), 2)
    before = written(latin_word(choices), old, choices)
    prompt = choices.template(
        ("make the word {}", "change the colour of the word to {}", "make the colour of the word {}")
    )
    return _edit("colour word", choices, prompt.format(new), before, (before[0], new, *before[2:]))


def change_caption(choices: Choices) -> Plan:
    (shape, colour), old, new = choices.pair(), latin_word(choices), latin_word(choices)
    where = choices.pick(("top", "bottom"))
    before = written(old, "black", choices, where)
    one = beside(shape, colour, choices, where)
    label = Label(new, "black", where)
    return Plan(
        choices.template(CHANGE).format(new),
        Truth("change caption", (kept(one, choices.size),), label=label, held_out=held_out([one])),
        lambda: tuple_of(
            draw([one], choices.size, words=[before]), draw([one], choices.size, words=[(new, *before[1:])])
        ),
        keys=(old, new),
    )


def tuple_of(before, after):
    return (before,), after


def _ask(kind: str, choices: Choices, prompt: str, word: tuple, answer: str) -> Plan:
    return Plan(
        prompt,
        Truth(kind, answers=(answer,)),
        lambda: ((draw((), choices.size, words=[word]),), None),
        answer,
        keys=(word[0],),
    )


def ask_word(choices: Choices) -> Plan:
    make_word = choices.pick((latin_word, latin_word, chinese_word))
    word = written(make_word(choices), choices.pick(tuple(COLOURS)), choices)
    prompt = choices.template(
        ("what word is there?", "what is the word?", "which word do you see?", "what word do you see?")
    )
    return _ask("read word", choices, prompt, word, word[0])


def ask_word_colour(choices: Choices) -> Plan:
    word = written(latin_word(choices), choices.pick(tuple(COLOURS)), choices)
    prompt = choices.template(("what colour is the word?", "which colour has the word?", "which colour is the word?"))
    return _ask("word colour", choices, prompt, word, word[1])


KINDS = {
    "draw": (latin, latin, chinese, caption),
    "edit": (change_word, change_word, colour_word, change_caption),
    "ask": (ask_word, ask_word, ask_word_colour),
}
