"""Short words in two scripts, drawn, changed and read."""

from . import glyphs
from .canvas import COLOURS
from .objects import DRAW
from .scene import Chance, Label, Placed, Plan, Thing, Truth, draw, held_out, kept, with_article, written

CHANGE = ("change the word to {}", "replace the word with {}", "make the word {}", "please change the word to {}")


def latin_word(chance: Chance) -> str:
    """A consonant, a vowel, a consonant: 2205 words, so that letters must be learnt and not words."""
    return chance.pick(glyphs.CONSONANTS) + chance.pick(glyphs.VOWELS) + chance.pick(glyphs.CONSONANTS)


def chinese_word(chance: Chance) -> str:
    return "".join(chance.few(tuple(glyphs.CHINESE), 2))


def _word(kind: str, chance: Chance, word: str) -> Plan:
    colour = chance.pick(tuple(COLOURS))
    prompt = chance.template(DRAW).format(f"the word {word} in {colour}")
    return Plan(
        prompt,
        Truth(kind, label=Label(word, colour)),
        lambda: ((), draw((), chance.size, words=[written(word, colour, chance)])),
        keys=(word,),
    )


def latin(chance: Chance) -> Plan:
    return _word("word", chance, latin_word(chance))


def chinese(chance: Chance) -> Plan:
    return _word("chinese", chance, chinese_word(chance))


def caption(chance: Chance) -> Plan:
    """A word above or below an object."""
    (shape, colour), word, where = chance.pair(), latin_word(chance), chance.pick(("top", "bottom"))
    said = {"top": "below", "bottom": "above"}[where]
    prompt = chance.template(DRAW).format(f"{with_article(f'{colour} {shape}')} {said} the word {word}")
    thing = Thing(shape, colour)

    def paint():
        words = [written(word, "black", chance, where)]
        return (), draw([beside(shape, colour, chance, where)], chance.size, words=words)

    return Plan(
        prompt,
        Truth("caption", (thing,), label=Label(word, "", where), held_out=held_out([thing])),
        paint,
        keys=(word,),
    )


def beside(shape: str, colour: str, chance: Chance, where: str, radius: float = 0.0) -> Placed:
    """An object in the part of the picture that a word at `where` leaves free."""
    radius = radius or chance.radius()
    height = chance.size[1]
    near = height * 0.03 + radius
    low, high = (height * 0.53 + radius - 2, height - near) if where == "top" else (near, height * 0.47 - radius + 2)
    return Placed(shape, colour, chance.at("", radius)[0], chance.uniform(min(low, high), max(low, high)), radius)


def _edit(kind: str, chance: Chance, prompt: str, old: tuple, new: tuple) -> Plan:
    return Plan(
        prompt,
        Truth(kind, label=Label(new[0], new[1])),
        lambda: ((draw((), chance.size, words=[old]),), draw((), chance.size, words=[new])),
        keys=(old[0], new[0]),
    )


def change_word(chance: Chance) -> Plan:
    make_word = chance.pick((latin_word, latin_word, chinese_word))
    old, new = make_word(chance), make_word(chance)
    if old == new:
        return change_word(chance)
    before = written(old, chance.pick(tuple(COLOURS)), chance)
    return _edit("change word", chance, chance.template(CHANGE).format(new), before, (new, *before[1:]))


def colour_word(chance: Chance) -> Plan:
    old, new = chance.few(tuple(COLOURS), 2)
    before = written(latin_word(chance), old, chance)
    prompt = chance.template(
        ("make the word {}", "change the colour of the word to {}", "make the colour of the word {}")
    )
    return _edit("colour word", chance, prompt.format(new), before, (before[0], new, *before[2:]))


def change_caption(chance: Chance) -> Plan:
    (shape, colour), old, new = chance.pair(), latin_word(chance), latin_word(chance)
    where = chance.pick(("top", "bottom"))
    before = written(old, "black", chance, where)
    one = beside(shape, colour, chance, where)
    label = Label(new, "black", where)
    return Plan(
        chance.template(CHANGE).format(new),
        Truth("change caption", (kept(one, chance.size),), label=label, held_out=held_out([one])),
        lambda: tuple_of(
            draw([one], chance.size, words=[before]), draw([one], chance.size, words=[(new, *before[1:])])
        ),
        keys=(old, new),
    )


def tuple_of(before, after):
    return (before,), after


def _ask(kind: str, chance: Chance, prompt: str, word: tuple, answer: str) -> Plan:
    return Plan(
        prompt,
        Truth(kind, answers=(answer,)),
        lambda: ((draw((), chance.size, words=[word]),), None),
        answer,
        keys=(word[0],),
    )


def ask_word(chance: Chance) -> Plan:
    make_word = chance.pick((latin_word, latin_word, chinese_word))
    word = written(make_word(chance), chance.pick(tuple(COLOURS)), chance)
    prompt = chance.template(
        ("what word is there?", "what is the word?", "which word do you see?", "what word do you see?")
    )
    return _ask("read word", chance, prompt, word, word[0])


def ask_word_colour(chance: Chance) -> Plan:
    word = written(latin_word(chance), chance.pick(tuple(COLOURS)), chance)
    prompt = chance.template(("what colour is the word?", "which colour has the word?", "which colour is the word?"))
    return _ask("word colour", chance, prompt, word, word[1])


KINDS = {
    "draw": (latin, latin, chinese, caption),
    "edit": (change_word, change_word, colour_word, change_caption),
    "ask": (ask_word, ask_word, ask_word_colour),
}
