"""Text on a surface: lines that fit a box, drawn in a style, with the corners of each line."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .fonts import Face, load

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Quad = list[tuple[float, float]]  # corners: top left, top right, bottom right, bottom left

NOT_FIRST = frozenset("，。！？、；：）》」』”’,.!?;:)")  # of a line
NOT_LAST = frozenset("（《「『“‘(")
SMALLEST = 16  # pixels of a letter's height that OCR still reads


@dataclass(frozen=True)
class Style:
    """How words look. effect: "plain", "outline", "shadow" or "glow", in the colour `second`.

    wobble: of handwriting, 0 to 1. leading: from line to line, in heights of letters. capitals: in capital letters.
    """

    face: Face
    colour: Colour
    weight: int = 400
    align: str = "center"
    effect: str = "plain"
    second: Colour = (0, 0, 0)
    wobble: float = 0
    leading: float = 1.25
    capitals: bool = False

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at so many pixels."""
        return load(self.face, size, self.weight)

    def shown(self, text: str) -> str:
        """A text as it appears."""
        return text.upper() if self.capitals or self.face.capitals else text


@dataclass(frozen=True)
class Block:
    """Words in a box of a surface. role: what they are, such as "title". size: of letters in pixels, None for the
    largest that fits; most: never larger. single: in one line, so that blocks can be counted as lines. make: a function
    of phrases that makes other words for this place."""

    role: str
    text: str
    box: Box
    style: Style
    most: int = 400
    size: int | None = None
    single: bool = False
    make: Callable[..., str] | None = field(default=None, compare=False)


class NoRoom(ValueError):
    """Words that fit their box at no size that can be read."""


def is_wide(character: str) -> bool:
    """Whether a character is Chinese or its punctuation, beside which a line may be broken."""
    return ord(character) > 0x2E7F


def tokens(text: str) -> list[str]:
    """Pieces between which a line may be broken: words with the space after them, Chinese characters."""
    pieces: list[str] = []
    for character in text:
        new = not pieces or is_wide(character) or is_wide(pieces[-1][-1]) or pieces[-1][-1] == " "
        if pieces and (character in NOT_FIRST or character == " " or pieces[-1][-1] in NOT_LAST):
            new = False
        if new:
            pieces.append(character)
        else:
            pieces[-1] += character
    return pieces


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of at most so many pixels; a piece that is longer is a line of its own."""
    lines = [""]
    for piece in tokens(text):
        if lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines]


def measure(lines: list[str], style: Style, size: int) -> tuple[float, float]:
    """(width, height) of lines, without the space below the last."""
    font, step = style.font(size), size * style.leading
    return max(font.getlength(line) for line in lines), step * (len(lines) - 1) + size * sum(extent(style.face))


@lru_cache(maxsize=64)
def extent(face: Face) -> tuple[float, float]:
    """What letters of both languages use above and below the baseline, in sizes; fonts' own is often far more."""
    _, top, _, bottom = load(face, 100).getbbox("ÅHgjpq永", anchor="ls")
    return -top / 100, bottom / 100


@lru_cache(maxsize=64)
def fit(block: Block) -> tuple[int, list[str]]:
    """(size, lines): the largest size at which a block's text fits its box. Raises NoRoom if none does."""
    width, height = block.box[2] - block.box[0], block.box[3] - block.box[1]
    text = block.style.shown(block.text)
    low, high = SMALLEST, max(SMALLEST, int(min(block.most, height)))
    while low < high:
        middle = (low + high + 1) // 2
        lines = wrap(text, block.style.font(middle), width)
        across, down = measure(lines, block.style, middle)
        if across <= width and down <= height and not _lonely(lines) and not (block.single and lines[1:]):
            low = middle
        else:
            high = middle - 1
    lines = wrap(text, block.style.font(low), width)
    across, down = measure(lines, block.style, low)
    if across > width + 1 or down > height + 1 or (block.single and lines[1:]):
        raise NoRoom(f"{text!r} does not fit {width:.0f} x {height:.0f} pixels")
    return low, lines


def _lonely(lines: list[str]) -> bool:
    """Whether the last line is a single Chinese character or a short end of what is above."""
    return len(lines) > 1 and len(lines[-1]) < 2


@dataclass(frozen=True)
class Line:
    """A line that was drawn. quad: its corners on the surface."""

    text: str
    quad: Quad


def draw(surface: Image.Image, block: Block, seed: int) -> list[Line]:
    """Draw a block onto an RGB surface. seed: of handwriting's wobble. Returns its lines."""
    if not block.text:
        return []
    size, lines = fit(block)
    if block.size is not None:
        size, lines = (
            block.size,
            wrap(block.style.shown(block.text), block.style.font(block.size), block.box[2] - block.box[0]),
        )
    style, font, pad = block.style, block.style.font(size), size
    origin = int(block.box[0]) - pad, int(block.box[1]) - pad
    ink = Image.new("L", (int(block.box[2]) + pad - origin[0], int(block.box[3]) + pad - origin[1]))
    _, height = measure(lines, style, size)
    baseline = (block.box[1] + block.box[3] - height) / 2 + size * extent(style.face)[0] - origin[1]
    chance, drawn = np.random.default_rng(seed), []
    for line in lines:
        spare = block.box[2] - block.box[0] - font.getlength(line)
        left = block.box[0] - origin[0] + {"left": 0, "center": spare / 2, "right": spare}[style.align]
        if style.wobble:
            box = _write(ink, line, (left, baseline), style, size, chance)
        else:
            ImageDraw.Draw(ink).text((left, baseline), line, 255, font, anchor="ls")
            box = font.getbbox(line, anchor="ls")
            box = (left + box[0], baseline + box[1], left + box[2], baseline + box[3])
        drawn.append(Line(line, corners(tuple(side + origin[i % 2] for i, side in enumerate(box)))))
        baseline += size * style.leading
    _colour(surface, ink, origin, style, size)
    return drawn


def corners(box: Box) -> Quad:
    """The corners of a box."""
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _write(ink: Image.Image, line: str, start: tuple[float, float], style: Style, size: int, chance) -> Box:
    """Draw a line piece by piece, each a little turned and out of place. Returns its box."""
    font, (left, baseline), pad = style.font(size), start, size
    found: list[Box] = []
    for piece in tokens(line):
        across = font.getlength(piece)
        tile = Image.new("L", (int(across) + 2 * pad, 3 * pad))
        ImageDraw.Draw(tile).text((pad, 2 * pad), piece, 255, font, anchor="ls")
        turn, rise = chance.uniform(-3.5, 3.5) * style.wobble, chance.uniform(-0.06, 0.06) * size * style.wobble
        turn = turn if is_wide(piece[0]) else turn / 3  # words are long
        tile = tile.rotate(turn, Image.Resampling.BICUBIC, center=(pad + across / 2, 2 * pad - size / 3))
        corner = round(left - pad), round(baseline - 2 * pad + rise)
        box = tile.getbbox()
        if box:
            ink.paste(255, corner, tile)
            found.append((corner[0] + box[0], corner[1] + box[1], corner[0] + box[2], corner[1] + box[3]))
        left += across
    lows, highs = np.min(found, 0), np.max(found, 0)
    return float(lows[0]), float(lows[1]), float(highs[2]), float(highs[3])


def _colour(surface: Image.Image, ink: Image.Image, origin: tuple[int, int], style: Style, size: int):
    """Put ink onto a surface, with its corner at origin, in the style's colours."""
    if style.effect == "outline":
        surface.paste(style.second, origin, grown(ink, max(1, round(size / 14))))
    elif style.effect == "shadow":
        away = max(1, round(size / 14))
        shadow = Image.new("L", ink.size)
        shadow.paste(ink, (away, away))
        surface.paste(style.second, origin, shadow.filter(ImageFilter.GaussianBlur(away / 2)))
    elif style.effect == "glow":
        for far in (size / 3, size / 10):
            surface.paste(style.second, origin, ink.filter(ImageFilter.GaussianBlur(far)))
    surface.paste(style.colour, origin, ink)


def grown(ink: Image.Image, width: int) -> Image.Image:
    """Ink with an edge of so many pixels around it."""
    near = ink.filter(ImageFilter.GaussianBlur(width / 2))
    return near.point(lambda level: min(255, max(0, (level - 8) * 8)))


def same_size(one: Block, other: Block) -> tuple[Block, Block]:
    """Two blocks, such as before and after an edit, with letters of one size: the smaller of what fits."""
    size = min(fit(one)[0], fit(other)[0])
    return replace(one, size=size), replace(other, size=size)
