"""The domain humour: memes. Captions above and below, in a strip, in panels, and pairs of reactions; their edits.

Truth as in the domain text, and "picture", what is in it. The same OCR judges the captions.
"""

from dataclasses import replace

import numpy as np
from PIL import Image

from ..sample import Sample
from . import LanguageChoices, cartoons, phrases, text
from .colours import colour
from .fonts import faces
from .layout import Block, Style, fit, is_wide
from .media import Piece, tried
from .text_prompts import quoted

NAME = ("meme", "梗图")
STACKED, ABREAST = ("top caption", "bottom caption"), ("left caption", "right caption")
LOUD, QUIET = ("poster",), ("sans",)
check = text.check


def line_of(kind: str, place: int) -> phrases.Make:
    """What makes the first or the second line of a joke."""
    return lambda choices, script: phrases.pick(choices, script, kind)[place]


class Meme:
    """A meme on its way. scene: what is in its pictures."""

    def __init__(self, choices: LanguageChoices):
        self.choices, self.scene, self.size = choices, cartoons.choose(choices), choices.size
        self.surface = Image.new("RGB", self.size, "white")
        self.moods: list[str] = []
        self.blocks: list[Block] = []

    def picture(self, mood: str, box: tuple[float, float, float, float]):
        """Put the picture, in this mood, into a part of the surface."""
        left, top, right, bottom = self.pixels(box)
        self.surface.paste(cartoons.paint(self.scene, mood, (right - left, bottom - top)), (left, top))
        self.moods.append(mood)

    def pixels(self, box) -> tuple[int, ...]:
        """A box in parts of the surface, in pixels."""
        return tuple(round(side * self.size[i % 2]) for i, side in enumerate(box))

    def captions(self, kind: str, roles: tuple[str, str], boxes, loud: bool, most: float = 0.11):
        """Write the two lines of a joke into boxes, which are in parts of the surface."""
        joke = phrases.pick(self.choices, self.choices.language, kind)
        for place, (role, words, box) in enumerate(zip(roles, joke, boxes, strict=True)):
            self._caption(role, words, box, loud, most, line_of(kind, place))

    def _caption(self, role: str, words: str, box, loud: bool, most: float, make: phrases.Make):
        """Loud words are white with a black edge, quiet ones black. Raises NoRoom if they do not fit."""
        looks = LOUD if loud and not any(map(is_wide, words)) else QUIET
        face = self.choices.pick(faces(words, looks, self.choices.resources.fonts))
        style = Style(face, colour("white" if loud else "black"), 900 if loud else 600, capitals=loud, leading=1.15)
        style = replace(style, effect="outline" if loud else "plain", align="center")
        most = round(most * max(self.size))
        self.blocks.append(Block(role, style.shown(words), self.pixels(box), style, most, make=make))
        fit(self.blocks[-1])

    def piece(self) -> Piece:
        return Piece(NAME, self.surface.convert("RGBA"), tuple(self.blocks), "white", "", 0)


def mood(choices: LanguageChoices) -> str:
    return choices.pick(list(cartoons.MOODS))


def top_and_bottom(choices: LanguageChoices) -> Meme:
    """A caption above and one below, over the picture."""
    made = Meme(choices)
    made.picture(mood(choices), (0, 0, 1, 1))
    made.captions("meme", STACKED, ((0.03, 0.02, 0.97, 0.24), (0.03, 0.76, 0.97, 0.98)), loud=True)
    return made


def strip(choices: LanguageChoices) -> Meme:
    """A white strip with the captions above the picture."""
    made = Meme(choices)
    made.picture(mood(choices), (0, 0.3, 1, 1))
    boxes = (0.04, 0.015, 0.96, 0.145), (0.04, 0.155, 0.96, 0.285)
    made.captions("meme", STACKED, boxes, loud=False, most=0.07)
    return made


def panels(choices: LanguageChoices) -> Meme:
    """What was expected beside what came, each below its picture."""
    made, boxes = Meme(choices), []
    wide = choices.size[0] > choices.size[1]
    for place, look in enumerate(("happy", choices.pick(("tired", "sad", "surprised")))):
        low, high = halves(place)
        if wide:
            made.picture(look, (low, 0, high, 0.78))
            boxes.append((low + 0.015, 0.8, high - 0.015, 0.98))
        else:
            made.picture(look, (0, low, 1, low + 0.36))
            boxes.append((0.03, low + 0.37, 0.97, high - 0.01))
    made.captions("expect", ABREAST if wide else STACKED, boxes, loud=False, most=0.06)
    return made


def reaction(choices: LanguageChoices) -> Meme:
    """Two rows: a face that does not like the words beside it, and one that does."""
    made, boxes = Meme(choices), []
    for place, look in enumerate((choices.pick(("angry", "sad", "tired")), choices.pick(("happy", "smug")))):
        low, high = halves(place)
        made.picture(look, (0, low, 0.48, high))
        boxes.append((0.51, low + 0.04, 0.97, high - 0.04))
    made.captions("prefer", STACKED, boxes, loud=False, most=0.08)
    return made


def halves(place: int) -> tuple[float, float]:
    """Where the first or the second of two panels begins and ends, with a gap between them."""
    return place / 2 + 0.004 * place, place / 2 + 0.5 - 0.004 * (1 - place)


LAYOUTS = {f.__name__: tried(f) for f in (top_and_bottom, strip, panels, reaction)}
FORMS = {  # (English, Chinese)
    "top_and_bottom": ("with a caption at the top and one at the bottom", "上下各一行字"),
    "strip": ("with the text in a white strip above the picture", "图片上方的白底上有文字"),
    "panels": ("with two panels, each with its text below", "两格对比，每格下面有文字"),
    "reaction": ("with two reactions on the left and the text on the right", "左边是两种反应，右边是文字"),
}


def shown(choices: LanguageChoices, made: Meme) -> str:
    """What is in a meme's pictures, in the prompt's language."""
    if made.scene.file:
        return made.scene.words
    if choices.language == "zh":
        return "和".join(f"{cartoons.MOODS[look]}的{made.scene.words}" for look in made.moods)
    return " and ".join(f"{'an' if look[0] in 'aeiou' else 'a'} {look} {made.scene.words}" for look in made.moods)


def kind_of_picture(made: Meme, language: str) -> str:
    """What a meme's picture is: a user's own may be a photo."""
    return (("cartoon", "卡通"), ("picture", "图片"))[made.scene.file is not None][language == "zh"]


def request(choices: LanguageChoices, made: Meme, layout: str) -> str:
    """A prompt for a meme."""
    return choices.pick(requests(choices, made, layout))


def requests(choices: LanguageChoices, made: Meme, layout: str) -> list[str]:
    """All forms of the prompt. The first describes the picture and asks for nothing."""
    what, form = shown(choices, made), FORMS[layout][choices.language == "zh"]
    one, two = (quoted(choices, block.text) for block in made.blocks)
    if choices.language == "zh":
        return [
            f"一张梗图：{what}，{form}。第一句是{one}，第二句是{two}。",
            f"做一个表情包，{what}，文字{one}和{two}。",
            f"生成一张关于{what}的搞笑图片，{form}：{one}，{two}。",
            f"梗图，{kind_of_picture(made, 'zh')}里是{what}，写着{one}，然后是{two}。",
            f"请把{one}和{two}做成梗图，配上{what}，{form}。",
        ]
    return [
        f"A meme of {what}, {form}. The first says {one}, the second {two}.",
        f"Make a meme with {what} and the words {one} and {two}.",
        f"A funny picture: {what}, {form}: {one}, then {two}.",
        f"{kind_of_picture(made, 'en').capitalize()} meme, {what}, text {one} / {two}",
        f"Turn {one} and {two} into a meme with {what}, {form}.",
    ]


def drawing(layout: str):
    def sample(choices: LanguageChoices) -> Sample:
        made = LAYOUTS[layout](choices)
        piece = made.piece()
        picture, texts = text.render(piece, piece.blocks, choices.size, choices.number(0, 2**40))
        truth = {"texts": texts, "picture": shown(choices, made)}
        return Sample("draw", "humour", request(choices, made, layout), (), picture, "", truth)

    return sample


def editing(change):
    """An edit of a meme's captions, as of the words of other things."""

    def meme(choices: LanguageChoices) -> Piece:
        return LAYOUTS[choices.pick(sorted(LAYOUTS))](choices).piece()

    return text.editing(change, {"meme": meme}, "humour")


def caption(choices: LanguageChoices) -> Sample:
    """A picture without words, and the same as a meme."""
    made = top_and_bottom(choices)
    piece, seed = made.piece(), choices.number(0, 2**40)
    before, _ = text.render(piece, (), choices.size, seed)
    picture, texts = text.render(piece, piece.blocks, choices.size, seed)
    one, two = (quoted(choices, block.text) for block in made.blocks)
    if choices.language == "zh":
        forms = [
            f"把这张图做成梗图：上面写{one}，下面写{two}。",
            f"在图片顶部加上{one}，底部加上{two}。",
            f"给它配字：{one}，{two}。",
        ]
    else:
        forms = [
            f"Make a meme of this: {one} at the top, {two} at the bottom.",
            f"Caption this picture {one} above and {two} below.",
            f"Write {one} at the top of the picture and {two} at the bottom.",
        ]
    truth = {
        "texts": texts,
        "before": [],
        "changed": text.changed_box(before, picture),
        "picture": shown(choices, made),
    }
    return Sample("edit", "humour", choices.pick(forms), (before,), picture, "", truth)


def ask(choices: LanguageChoices) -> Sample:
    """What does the meme say, or who is in it?"""
    layout = choices.pick(sorted(LAYOUTS))
    made = LAYOUTS[layout](choices)
    piece = made.piece()
    picture, texts = text.render(piece, piece.blocks, choices.size, choices.number(0, 2**40))
    zh = choices.language == "zh"
    if made.scene.file or choices.flip(0.6):
        answer = "\n".join(block.text for block in piece.blocks)
        forms = ("这张梗图写了什么？", "读出图中的文字。") if zh else ("What does the meme say?", "Read the captions.")
    else:
        answer = shown(choices, made) if zh else shown(choices, made).capitalize()
        forms = ("图里画的是谁，心情怎么样？",) if zh else ("Who is in the meme, and in what mood?",)
    truth = {"texts": texts, "picture": shown(choices, made), "answer": answer}
    return Sample("ask", "humour", choices.pick(forms), (np.asarray(picture),), None, answer, truth)


KINDS = {
    "draw": {name: drawing(name) for name in LAYOUTS},
    "edit": {f.__name__: editing(f) for f in (text.change, text.add, text.remove, text.restyle)} | {"caption": caption},
    "ask": {"read": ask},
}
