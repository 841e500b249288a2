"""Memes: a face whose mood matches the caption below it."""

from .canvas import COLOURS
from .scene import Choices, Label, Plan, Thing, Truth, draw, kept, with_article, written
from .text import beside

MOODS = {
    "happy": ("FRI", "WIN", "YAY", "PIE", "FUN", "NAP", "JOY", "SUN", "LOL", "HUG"),
    "sad": ("MON", "BUG", "TAX", "WET", "SAD", "NOT", "BAD", "FLU", "RIP", "LAG"),
    "surprised": ("WOW", "OMG", "BOO", "HUH", "WHY", "HOW", "UFO", "ZAP", "POP", "HEY"),
}
MOOD_OF = {word: mood for mood, words in MOODS.items() for word in words}
DRAW = (
    "a meme of a {mood} {colour} face with the word {word}",
    "draw a meme of a {mood} {colour} face with the word {word}",
    "a {mood} {colour} face with the word {word}",
    "please draw a meme of a {mood} {colour} face with the word {word}",
)
BARE = ("{colour} meme about {word}", "draw {colour} meme about {word}", "please draw {colour} meme about {word}")


def face(mood: str, colour: str, choices: Choices):
    return beside(f"{mood} face", colour, choices, "bottom", radius=0.235 * min(choices.size))


def meme(choices: Choices) -> Plan:
    """Half of the prompts do not name the mood, which then follows from the word."""
    word, colour, bare = choices.pick(tuple(MOOD_OF)), choices.pick(tuple(COLOURS)), choices.flip(0.5)
    mood = MOOD_OF[word]
    said = with_article(colour) if bare else colour
    prompt = choices.template(BARE if bare else DRAW).format(mood=mood, colour=said, word=word)
    return Plan(
        prompt,
        Truth("joke" if bare else "meme", (Thing(f"{mood} face", colour),), label=Label(word, "", "bottom")),
        lambda: ((), meme_picture(face(mood, colour, choices), written(word, "black", choices, "bottom"), choices)),
        keys=(prompt,),
    )


def meme_picture(one, word, choices: Choices):
    return draw([one], choices.size, words=[word])


def retell(choices: Choices) -> Plan:
    """Change the caption, and the face to match it."""
    old, new = choices.few(tuple(MOOD_OF), 2)
    colour = choices.pick(tuple(COLOURS))
    before, word = face(MOOD_OF[old], colour, choices), written(old, "black", choices, "bottom")
    after = type(before)(f"{MOOD_OF[new]} face", colour, before.x, before.y, before.radius)
    prompt = choices.template(("make it a meme about {}", "change the meme to {}", "make the meme about {}")).format(
        new
    )
    things = (kept(after, choices.size),)
    return Plan(
        prompt,
        Truth("retell", things, label=Label(new, "black", "bottom")),
        lambda: ((meme_picture(before, word, choices),), meme_picture(after, (new, *word[1:]), choices)),
    )


def ask_mood(choices: Choices) -> Plan:
    return _ask(
        "mood",
        choices,
        ("what is the mood of the face?", "which mood has the face?", "which is the mood of the face?"),
        0,
    )


def ask_caption(choices: Choices) -> Plan:
    return _ask("caption", choices, ("what word is there?", "what is the word?", "what is the word of the meme?"), 1)


def _ask(kind: str, choices: Choices, templates, which: int) -> Plan:
    word, colour = choices.pick(tuple(MOOD_OF)), choices.pick(tuple(COLOURS))
    answer = (MOOD_OF[word], word)[which]
    return Plan(
        choices.template(templates),
        Truth(kind, answers=(answer,)),
        lambda: (
            (meme_picture(face(MOOD_OF[word], colour, choices), written(word, "black", choices, "bottom"), choices),),
            None,
        ),
        answer,
    )


KINDS = {"draw": (meme,), "edit": (retell,), "ask": (ask_mood, ask_caption)}
