"""Posters, signs, cards, book covers and notes: each a surface and blocks of words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps

import numpy as np
from PIL import Image, ImageDraw

from . import LanguageChoices, phrases
from .colours import GLOWS, colour, contrast, luminance, readable, two
from .fonts import Face, faces
from .layout import Block, Box, NoRoom, Style, fit, is_wide

Share = tuple[float, float, float, float]  # a box in parts of a surface: left, top, right, bottom
BODY = ("sans", "serif", "slab")
TITLE = ("poster", "serif", "slab", "sans", "script")
HAND = ("hand",)
NEEDED = ("title", "name", "wish", "sign")  # roles without which a thing is not what it is called
TRIES = 20  # of a thing whose words do not fit
CHINESE_HAND = 0.8  # wobble: there is no free package with a Chinese hand, so a printed face is written unevenly


@dataclass(frozen=True)
class Piece:
    """A thing with words. name: what it is, (English, Chinese). surface: RGBA, without the words. ground: its colour's
    name. scene: one of scenes.SCENES behind it, or "" if it fills the picture. tilt: how far it is turned, 0 to 1."""

    name: tuple[str, str]
    surface: Image.Image
    blocks: tuple[Block, ...]
    ground: str
    scene: str
    tilt: float


class Builder:
    """Puts words onto a surface. texts are in the script of each role, see script()."""

    def __init__(self, choices: LanguageChoices, surface: Image.Image):
        self.choices, self.surface = choices, surface.convert("RGBA")
        self.below = np.asarray(surface.convert("RGB"))
        other = "zh" if choices.language == "en" else "en"
        self.base = choices.language if choices.flip(0.8) else other
        self.mixed = choices.flip(0.15)
        self.blocks: list[Block] = []
        self.hands: dict[bool, tuple[Face, int]] = {}

    def script(self, role: str) -> str:
        """The language of a role's words: mostly that of the prompt, and in some pictures both."""
        if self.mixed and role != "title" and self.choices.flip(0.4):
            return "zh" if self.base == "en" else "en"
        return self.base

    def say(self, role: str, make: phrases.Make, share: Share, looks=BODY, **settings) -> Block:
        """Words of a role, made by a function of phrases."""
        return self.write(role, make(self.choices, self.script(role)), share, looks, make=make, **settings)

    def write(
        self,
        role: str,
        text: str,
        share: Share,
        looks=BODY,
        most: float = 0.2,
        ink: str | None = None,
        make: phrases.Make | None = None,
        **style,
    ) -> Block:
        """These words. most: the largest letters, in parts of the surface's longer side. ink: a colour's name.
        make: what makes other words for this place."""
        choices, (width, height) = self.choices, self.surface.size
        box = (share[0] * width, share[1] * height, share[2] * width, share[3] * height)
        face = choices.pick(faces(text, looks, choices.resources.fonts))
        weight = choices.pick((400, 500, 700)) if looks != TITLE else choices.pick((600, 700, 900))
        if looks == HAND:  # a piece is written by one hand
            face, weight = self.hands.setdefault(any(map(is_wide, text)), (face, weight))
        wobble = CHINESE_HAND if looks == HAND and face.look != "hand" else 0.25 if looks == HAND else 0
        able = readable(self._part(box))
        ink = ink if ink in able else choices.pick(able)
        made = Style(face, colour(ink), weight, wobble=wobble, **style)
        most, single = round(most * max(width, height)), role.startswith("line ")
        block = Block(role, made.shown(text), box, made, most, single=single, make=make)
        self.blocks.append(block)
        return block

    def _part(self, box: Box) -> np.ndarray:
        left, top, right, bottom = (round(side) for side in box)
        return self.below[top:bottom, left:right]

    def piece(self, name: tuple[str, str], ground: str, scene: str, tilt: float) -> Piece:
        """All of it, without words for which a small surface has no room. Raises NoRoom if it is nothing without."""
        blocks = []
        for block in self.blocks:
            try:
                fit(block)
                blocks.append(block)
            except NoRoom:
                if block.role in NEEDED or (block is self.blocks[-1] and not blocks):
                    raise
        return Piece(name, self.surface, numbered(blocks), ground, scene, tilt)


def numbered(blocks: list[Block]) -> tuple[Block, ...]:
    """Blocks whose lines are counted anew, since some may be left out. A line alone is no first one."""
    roles = [
        f"line {place + 1}" if block.role.startswith("line ") else block.role for place, block in enumerate(blocks)
    ]
    roles = ["sign"] if roles == ["line 1"] else roles
    counted = [role.startswith("line ") for role in roles]
    return tuple(
        replace(block, role=role, single=single) for block, role, single in zip(blocks, roles, counted, strict=True)
    )


def tried(make: Callable) -> Callable:
    """make(choices), again with other choices while words do not fit. It then raises NoRoom."""

    @wraps(make)
    def fitting(choices: LanguageChoices):
        for _ in range(TRIES - 1):
            try:
                return make(choices)
            except NoRoom:
                continue
        return make(choices)

    return fitting


def plain_ink(choices: LanguageChoices, ground: str) -> str:
    """Black or white, whichever can be read better."""
    below = luminance(colour(ground))
    return max(("white", "black"), key=lambda ink: float(contrast(luminance(colour(ink)), below)))


def surface_size(choices: LanguageChoices, shape: float | None, share: tuple[float, float]) -> tuple[int, int]:
    """(width, height) of a surface. shape: width by height, None for the picture's. share: of the picture's side."""
    width, height = choices.size
    part = choices.uniform(*share)
    if shape is None:
        return round(width * part), round(height * part)
    down = min(height * part, width * part / shape)
    return round(down * shape), round(down)


def decorated(
    size: tuple[int, int], ground: str, paint: Callable[[ImageDraw.ImageDraw, int, int], None]
) -> Image.Image:
    """A surface of one colour with something drawn on it, with smooth edges."""
    width, height = 2 * size[0], 2 * size[1]
    image = Image.new("RGB", (width, height), colour(ground))
    paint(ImageDraw.Draw(image), width, height)
    return image.resize(size, Image.Resampling.BOX)


def rounded(surface: Image.Image, radius: float) -> Image.Image:
    """A surface with round corners. radius: in parts of the shorter side."""
    width, height = surface.size
    mask = Image.new("L", (2 * width, 2 * height))
    corner = round(2 * radius * min(width, height))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 2 * width - 1, 2 * height - 1), corner, 255)
    surface = surface.convert("RGBA")
    surface.putalpha(mask.resize(surface.size, Image.Resampling.BOX))
    return surface


def art(choices: LanguageChoices, ground: str, area: Share):
    """A function that draws something that stands for nothing in a part of a poster or a cover."""
    inks = choices.few(
        [
            name
            for name in ("red", "orange", "yellow", "teal", "blue", "pink", "cream", "green", "navy blue")
            if name != ground
        ],
        3,
    )
    kind, seed = choices.pick(("sun", "rings", "stripes", "hills", "dots", "triangles")), choices.number(0, 2**31)

    def paint(draw: ImageDraw.ImageDraw, width: int, height: int):
        chance = np.random.default_rng(seed)
        left, top, right, bottom = area[0] * width, area[1] * height, area[2] * width, area[3] * height
        across, down, middle = right - left, bottom - top, ((left + right) / 2, (top + bottom) / 2)
        first, second, third = map(colour, inks)
        unit = min(across, down)

        def disc(centre, radius, fill):
            draw.ellipse((centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius), fill)

        if kind == "sun":
            disc(middle, 0.42 * unit, first)
            for i in range(5):
                y = middle[1] + (0.02 + 0.085 * i) * unit
                draw.rectangle((left, y, right, y + (0.012 + 0.008 * i) * unit), colour(ground))
        elif kind == "rings":
            for i in range(6):
                disc(
                    middle, (0.46 - 0.075 * i) * unit, (first, colour(ground), second, colour(ground), third, first)[i]
                )
        elif kind == "stripes":
            for i in range(9):
                x = left + across * i / 9
                draw.rectangle((x, top, x + across / 18, bottom), (first, second, third)[i % 3])
        elif kind == "hills":
            disc((left + 0.7 * across, top + 0.3 * down), 0.16 * unit, first)
            for i, fill in enumerate((second, third, tuple(v // 2 for v in third))):
                x = np.linspace(0, 1, 60)
                y = 0.55 + 0.13 * i + 0.09 * np.sin(x * (5 + 3 * i) + chance.uniform(0, 6))
                edge = [(left + across * a, min(bottom, top + down * b)) for a, b in zip(x, y, strict=True)]
                draw.polygon([(left, bottom), *edge, (right, bottom)], fill)
        elif kind == "dots":
            for i in range(28):
                radius = 0.06 * unit * chance.uniform(0.4, 1)
                centre = chance.uniform((left + radius, top + radius), (right - radius, bottom - radius))
                disc(centre, radius, (first, second, third)[i % 3])
        else:
            for i in range(7):
                x, y = left + across * (i + 0.5) / 7, middle[1] + 0.2 * down * chance.uniform(-1, 1)
                reach = 0.5 * across / 7
                draw.polygon(
                    [(x - reach, y + reach), (x + reach, y + reach), (x, y - reach)], (first, second, third)[i % 3]
                )

    return paint


POSTERS: tuple[tuple[Share, dict[str, Share], str], ...] = (  # (art, boxes of the words, alignment), on upright ones
    (
        (0.1, 0.47, 0.9, 0.74),
        {
            "title": (0.07, 0.06, 0.93, 0.35),
            "slogan": (0.1, 0.36, 0.9, 0.45),
            "date": (0.1, 0.77, 0.9, 0.85),
            "place": (0.1, 0.87, 0.9, 0.95),
        },
        "center",
    ),
    (
        (0, 0, 1, 0.42),
        {
            "title": (0.07, 0.46, 0.93, 0.7),
            "slogan": (0.1, 0.71, 0.9, 0.79),
            "date": (0.1, 0.80, 0.9, 0.87),
            "place": (0.1, 0.88, 0.9, 0.95),
        },
        "center",
    ),
    (
        (0.08, 0.34, 0.92, 0.66),
        {
            "slogan": (0.08, 0.05, 0.92, 0.12),
            "title": (0.08, 0.13, 0.92, 0.32),
            "date": (0.08, 0.70, 0.92, 0.80),
            "place": (0.08, 0.82, 0.92, 0.92),
        },
        "left",
    ),
)
WIDE_POSTERS: tuple[tuple[Share, dict[str, Share], str], ...] = (
    (
        (0, 0, 0.38, 1),
        {
            "title": (0.43, 0.08, 0.96, 0.5),
            "slogan": (0.43, 0.52, 0.96, 0.64),
            "date": (0.43, 0.68, 0.96, 0.79),
            "place": (0.43, 0.81, 0.96, 0.92),
        },
        "left",
    ),
    (
        (0.64, 0.05, 0.97, 0.95),
        {
            "title": (0.05, 0.07, 0.6, 0.5),
            "slogan": (0.05, 0.52, 0.6, 0.64),
            "date": (0.05, 0.7, 0.6, 0.8),
            "place": (0.05, 0.82, 0.6, 0.92),
        },
        "center",
    ),
)


def poster(choices: LanguageChoices) -> Piece:
    """An event: title, slogan, date and place around a piece of art."""
    scene = choices.pick(("", "", "brick", "plaster", "concrete", "wood"))
    shape = None if not scene else choices.pick((0.7, 0.75, 0.8)) if choices.size[0] < 1.6 * choices.size[1] else 1.5
    size = surface_size(choices, shape, (0.82, 0.95) if scene else (1, 1))
    ground = two(choices)[0]
    area, boxes, align = choices.pick(POSTERS if size[0] < 1.1 * size[1] else WIDE_POSTERS)
    builder = Builder(choices, decorated(size, ground, art(choices, ground, area)))
    title = builder.say("title", phrases.event, boxes["title"], TITLE, align=align)
    rest = [("slogan", phrases.of("slogan")), ("date", phrases.date), ("place", phrases.of("place"))]
    if choices.flip(0.2):
        rest[0] = ("price", phrases.price)
    ink = plain_ink(choices, ground)
    for role, make in rest:
        box = boxes["slogan" if role == "price" else role]
        builder.say(role, make, box, BODY, most=0.055, ink=ink, align=align)
    builder.blocks.sort(key=lambda block: block.box[1])
    assert title in builder.blocks
    return builder.piece(("poster", "海报"), ground, scene, choices.uniform(0, 1) if scene else 0)


def sign(choices: LanguageChoices) -> Piece:
    """A sign of a road, a building or a shop, in one language or both."""
    return choices.pick((road, warning, shop_front, neon))(choices)


def _bordered(choices: LanguageChoices, size: tuple[int, int], ground: str, edge: str) -> Image.Image:
    def paint(draw, width, height):
        unit = min(width, height)
        draw.rounded_rectangle(
            (0.035 * unit, 0.035 * unit, width - 0.035 * unit, height - 0.035 * unit),
            0.07 * unit,
            outline=colour(edge),
            width=max(2, round(0.02 * unit)),
        )

    return rounded(decorated(size, ground, paint), 0.09)


def road(choices: LanguageChoices) -> Piece:
    """One to three directions, on green or blue."""
    count, ground = choices.number(1, 3), choices.pick(("dark green", "blue", "navy blue"))
    size = surface_size(choices, choices.uniform(2.4, 3) / (0.45 + 0.55 * count) ** 0.8, (0.72, 0.85))
    builder = Builder(choices, _bordered(choices, size, ground, "white"))
    for i in range(count):
        share = (0.07, 0.08 + 0.84 * i / count + 0.03, 0.93, 0.08 + 0.84 * (i + 1) / count - 0.03)
        builder.say(
            f"line {i + 1}",
            phrases.direction,
            share,
            ("sans",),
            most=0.14,
            ink="white",
            align=choices.pick(("left", "center")),
        )
    return builder.piece(("road sign", "路牌"), ground, "sky", choices.uniform(0, 0.8))


def warning(choices: LanguageChoices) -> Piece:
    """A notice; with both languages one below the other, which say the same."""
    ground, ink = choices.pick(
        (("yellow", "black"), ("red", "white"), ("white", "red"), ("blue", "white"), ("white", "black"))
    )
    size = surface_size(choices, choices.uniform(1.5, 2.4), (0.66, 0.85))
    builder = Builder(choices, _bordered(choices, size, ground, ink))
    number, both = choices.number(0, len(phrases.WORDS["en"]["sign"]) - 1), choices.flip(0.35)
    texts = [phrases.WORDS[builder.base]["sign"][number]]
    if both:
        texts.append(phrases.WORDS["zh" if builder.base == "en" else "en"]["sign"][number])
    for i, text in enumerate(texts):
        share = (0.09, 0.12 + 0.4 * i, 0.91, 0.5 + 0.38 * i) if both else (0.09, 0.14, 0.91, 0.86)
        role = ("sign", f"line {i + 1}")[both]
        builder.write(role, text, share, ("sans", "slab", "poster"), most=0.2, ink=ink, make=phrases.of("sign"))
    return builder.piece(
        ("sign", "指示牌"), ground, choices.pick(("plaster", "concrete", "brick", "sky")), choices.uniform(0, 1)
    )


def shop_front(choices: LanguageChoices) -> Piece:
    """A board with the name of a shop and a line below it."""
    ground, ink = two(choices)
    size = surface_size(choices, choices.uniform(2.3, 3.4), (0.85, 0.95))
    builder = Builder(choices, _bordered(choices, size, ground, ink))
    builder.say(
        "name",
        phrases.shop,
        (0.06, 0.1, 0.94, 0.66),
        TITLE,
        most=0.16,
        ink=ink,
        effect=choices.pick(("plain", "shadow")),
    )
    builder.say("slogan", phrases.of("slogan"), (0.08, 0.68, 0.92, 0.9), BODY, most=0.06, ink=ink)
    return builder.piece(
        ("shop sign", "店铺招牌"), ground, choices.pick(("brick", "plaster", "wood")), choices.uniform(0, 0.8)
    )


def neon(choices: LanguageChoices) -> Piece:
    """Shining words on a dark wall."""
    size = surface_size(choices, choices.uniform(1.6, 2.4), (0.8, 0.95))
    surface = Image.new("RGBA", size, (18, 16, 22, 255))
    builder = Builder(choices, surface)
    glow = [colour(name) for name in choices.few(GLOWS, 2)]
    two_lines = choices.flip(0.6)
    builder.say(
        "name",
        phrases.shop,
        (0.07, 0.12, 0.93, 0.6 if two_lines else 0.86),
        TITLE,
        most=0.16,
        ink="white",
        effect="glow",
        second=glow[0],
    )
    if two_lines:
        builder.say(
            "slogan",
            phrases.of("slogan"),
            (0.1, 0.64, 0.9, 0.86),
            BODY,
            most=0.07,
            ink="white",
            effect="glow",
            second=glow[1],
        )
    return builder.piece(("neon sign", "霓虹灯招牌"), "black", "lights", choices.uniform(0, 0.7))


def card(choices: LanguageChoices) -> Piece:
    """A business card, or a card with a wish."""
    ground, ink = choices.pick(
        (
            ("white", "black"),
            ("cream", "brown"),
            ("navy blue", "white"),
            ("black", "cream"),
            ("white", "navy blue"),
            ("pink", "dark red"),
            ("cream", "dark green"),
            ("teal", "white"),
            ("dark red", "cream"),
        )
    )
    scene = choices.pick(("wood", "fabric", "concrete", "lights"))
    if choices.flip(0.5):
        size = surface_size(choices, choices.uniform(1.6, 1.8), (0.75, 0.92))
        accent = choices.pick(("orange", "red", "teal", "blue", "yellow"))

        def paint(draw, width, height):
            draw.rectangle((0, 0, 0.035 * width, height), colour(accent))

        builder = Builder(choices, rounded(decorated(size, ground, paint), 0.03))
        align = choices.pick(("left", "center"))
        builder.say("name", phrases.person, (0.1, 0.12, 0.93, 0.42), (*BODY, "script"), most=0.11, ink=ink, align=align)
        builder.say("job", phrases.of("job"), (0.1, 0.44, 0.93, 0.58), BODY, most=0.055, ink=ink, align=align)
        builder.say("phone number", phrases.phone, (0.1, 0.66, 0.93, 0.77), BODY, most=0.05, ink=ink, align=align)
        builder.say("address", phrases.of("place"), (0.1, 0.79, 0.93, 0.9), BODY, most=0.05, ink=ink, align=align)
        return builder.piece(("business card", "名片"), ground, scene, choices.uniform(0, 1))
    size = surface_size(choices, choices.pick((0.75, 1.35)), (0.8, 0.95))
    builder = Builder(choices, rounded(decorated(size, ground, art(choices, ground, (0.05, 0.03, 0.95, 0.3))), 0.02))
    builder.say("wish", phrases.of("wish"), (0.08, 0.34, 0.92, 0.7), ("script", "hand", "serif"), most=0.16, ink=ink)
    builder.say("name", phrases.person, (0.12, 0.74, 0.88, 0.88), HAND, most=0.07, ink=ink)
    return builder.piece(("greeting card", "贺卡"), ground, scene, choices.uniform(0, 1))


def cover(choices: LanguageChoices) -> Piece:
    """A book's cover: title, genre and author."""
    ground, ink = two(choices)
    size = surface_size(choices, choices.uniform(0.64, 0.76), (0.86, 0.96))
    area = choices.pick(((0.1, 0.4, 0.95, 0.74), (0.1, 0.08, 0.95, 0.42)))
    image = decorated(size, ground, art(choices, ground, area))
    levels = np.asarray(image, np.float32)
    spine = np.linspace(0, 1, size[0], dtype=np.float32)
    shade = 1 - 0.35 * np.exp(-(((spine - 0.03) / 0.012) ** 2)) - 0.12 * np.exp(-spine / 0.02)
    builder = Builder(choices, Image.fromarray((levels * shade[None, :, None]).clip(0, 255).astype(np.uint8)))
    title = (0.1, 0.07, 0.95, 0.32) if area[1] > 0.2 else (0.1, 0.46, 0.95, 0.72)
    genre = (0.15, 0.325, 0.9, 0.385) if area[1] > 0.2 else (0.15, 0.74, 0.9, 0.8)
    builder.say("title", phrases.name, title, TITLE, most=0.15, ink=ink)
    builder.say("genre", phrases.of("genre"), genre, BODY, most=0.045, ink=ink)
    builder.say("author", phrases.person, (0.12, 0.84, 0.93, 0.93), BODY, most=0.06, ink=ink)
    scene = choices.pick(("wood", "fabric", "concrete", "plaster"))
    return builder.piece(("book cover", "书籍封面"), ground, scene, choices.uniform(0, 0.8))


def note(choices: LanguageChoices) -> Piece:
    """Lines by hand: on ruled paper, a sticky note, a blackboard or a whiteboard."""
    ground, name, scene = choices.pick(
        (
            ("white", ("sheet of lined paper", "横线纸"), "wood"),
            ("yellow", ("sticky note", "便利贴"), "wood"),
            ("dark green", ("blackboard", "黑板"), "wood"),
            ("white", ("whiteboard", "白板"), "plaster"),
            ("cream", ("sheet of old paper", "旧纸"), "fabric"),
        )
    )
    sticky, lined = name[0] == "sticky note", name[0] == "sheet of lined paper"
    shape = 1.0 if sticky else choices.uniform(0.75, 0.9) if lined else choices.uniform(1.2, 1.5)
    size = surface_size(choices, shape, (0.8, 0.94))
    count = choices.number(1, 3) if sticky else choices.number(2, 5)
    rows = count + (not sticky)
    top, step = 0.08, 0.84 / max(rows, 4 if not sticky else rows)

    def paint(draw, width, height):
        if lined:
            for i in range(1, int(0.95 / step) + 1):
                y = height * (top + step * i)
                draw.line((0, y, width, y), (170, 195, 225), max(2, height // 400))
            draw.line((0.07 * width, 0, 0.07 * width, height), (230, 140, 140), max(2, height // 400))
        elif name[0] in ("blackboard", "whiteboard"):
            edge = round(0.02 * min(width, height))
            frame = colour("brown") if name[0] == "blackboard" else colour("grey")
            draw.rectangle((0, 0, width - 1, height - 1), outline=frame, width=edge)

    builder = Builder(choices, decorated(size, ground, paint))
    ink = "white" if ground == "dark green" else choices.pick(("black", "navy blue", "blue", "red"))
    if ground == "yellow" and ink == "red":
        ink = "black"
    chosen = choices.few(range(len(phrases.WORDS["en"]["note"])), count)
    for i in range(rows):
        share = (0.1, top + step * i + 0.12 * step, 0.92, top + step * (i + 1) - 0.06 * step)
        settings = {"most": 0.075, "ink": ink, "align": "left"}
        if not sticky and i == 0:
            builder.say("heading", phrases.name, share, HAND, **settings)
        else:
            text = phrases.WORDS[builder.base]["note"][chosen[i if sticky else i - 1]]
            builder.write(f"line {i + 1}", text, share, HAND, make=phrases.of("note"), **settings)
    return builder.piece(name, ground, scene, choices.uniform(0, 0.7))


MEDIA: dict[str, Callable[[LanguageChoices], Piece]] = {
    "poster": tried(poster),
    "sign": tried(sign),
    "card": tried(card),
    "cover": tried(cover),
    "note": tried(note),
}
