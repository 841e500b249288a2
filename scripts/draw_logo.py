#!/usr/bin/env python3
"""Draws docs/icon.png and docs/banner.png for the Comfy Registry. Needs Pillow; no fonts, no randomness.

    .cache/venv/bin/python scripts/draw_logo.py [FOLDER]

A U leads from an eye down past lines of words and up to a picture: the model sees, thinks in words, and draws.
Shapes are drawn at several times the size and averaged down, which makes their edges smooth.
"""

import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
ICON, BANNER = (400, 400), (1680, 720)  # the Registry asks for a square of at most 400 and for 21:9

NIGHT, WHITE, INK = (19, 24, 40), (246, 248, 252), (24, 30, 50)
SEEING = (46, 196, 222)
U_COLOURS = SEEING, (130, 112, 244), (232, 98, 160), (255, 140, 80)  # from the eye to the picture
SKY, SUN, HILL, NEAR_HILL = (255, 214, 170), (255, 122, 69), (126, 96, 214), (63, 52, 138)


class Canvas:
    """Shapes in pixels of the finished picture, drawn `fine` times as large."""

    def __init__(self, size: tuple[int, int], fine: int):
        self.fine = fine
        self.image = Image.new("RGB", (size[0] * fine, size[1] * fine), NIGHT)
        self.pen = ImageDraw.Draw(self.image)

    def _scaled(self, *values: float) -> list[int]:
        return [round(value * self.fine) for value in values]

    def disc(self, x: float, y: float, radius: float, colour: tuple):
        self.pen.ellipse(self._scaled(x - radius, y - radius, x + radius, y + radius), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: tuple):
        self.pen.polygon([tuple(self._scaled(*point)) for point in points], fill=colour)

    def box(self, x: float, y: float, width: float, height: float, radius: float, colour: tuple):
        """A rounded box; x and y are its middle."""
        corners = self._scaled(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        self.pen.rounded_rectangle(corners, *self._scaled(radius), fill=colour)

    def stroke(self, points: list[tuple[float, float, tuple]], width: float):
        """A line with round ends through close points (x, y, colour)."""
        for x, y, colour in points:
            self.disc(x, y, width / 2, colour)

    def keep(self, before: Image.Image, x: float, y: float, width: float, height: float, radius: float):
        """Undoes what has been drawn since `before` outside of a rounded box."""
        mask = Image.new("L", self.image.size)
        corners = self._scaled(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        ImageDraw.Draw(mask).rounded_rectangle(corners, *self._scaled(radius), fill=255)
        self.image.paste(before, mask=mask.point(lambda value: 255 - value))

    def finished(self) -> Image.Image:
        return self.image.reduce(self.fine)


def mix(first: tuple, second: tuple, part: float) -> tuple:
    return tuple(round(a + (b - a) * part) for a, b in zip(first, second, strict=True))


def along(part: float) -> tuple:
    """The U's colour at a part of its length."""
    index, part = divmod(part * (len(U_COLOURS) - 1), 1)
    return mix(*U_COLOURS[int(index) :][:2], part) if part else U_COLOURS[int(index)]


def u_path(left: float, right: float, top: float, bottom: float, radius: float) -> list[tuple]:
    """Points a third of a pixel apart: down on the left, round two corners, up on the right; each with its colour."""
    points, step = [], 1 / 3

    def line(x0, y0, x1, y1):
        count = max(1, round(math.hypot(x1 - x0, y1 - y0) / step))
        points.extend((x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count))

    def corner(x, y, start):
        count = round(radius * math.pi / 2 / step)
        angles = (start - math.pi / 2 * i / count for i in range(count))
        points.extend((x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles)

    line(left, top, left, bottom - radius)
    corner(left + radius, bottom - radius, math.pi)
    line(left + radius, bottom, right - radius, bottom)
    corner(right - radius, bottom - radius, math.pi / 2)
    line(right, bottom - radius, right, top)
    return [(x, y, along(i / (len(points) - 1))) for i, (x, y) in enumerate(points)]


def almond(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    """The outline of an eye: two arcs of a circle that meet in its corners."""
    radius = (width**2 / 4 + height**2 / 4) / height
    half = math.asin(width / 2 / radius)
    angles = [half * (i / 60 - 1) for i in range(121)]
    upper = [(x + radius * math.sin(a), y - height / 2 + radius - radius * math.cos(a)) for a in angles]
    return upper + [(px, 2 * y - py) for px, py in reversed(upper)]


def draw_eye(canvas: Canvas, x: float, y: float, width: float):
    height = width * 0.66
    canvas.polygon(almond(x, y, width * 1.24, height * 1.30), NIGHT)  # a gap to the U below it
    canvas.polygon(almond(x, y, width, height), WHITE)
    canvas.disc(x, y, width * 0.245, SEEING)
    canvas.disc(x, y, width * 0.125, INK)
    canvas.disc(x + width * 0.075, y - width * 0.085, width * 0.052, WHITE)


def draw_picture(canvas: Canvas, x: float, y: float, size: float):
    """A framed landscape, a little wider than high."""
    width, height, frame = size, size * 0.86, size * 0.085
    canvas.box(x, y, width * 1.16, height * 1.19, size * 0.24, NIGHT)  # a gap to the U below it
    canvas.box(x, y, width, height, size * 0.17, WHITE)
    inside = x, y, width - 2 * frame, height - 2 * frame, size * 0.09
    before = canvas.image.copy()
    canvas.box(*inside, SKY)
    canvas.disc(x + size * 0.19, y - size * 0.13, size * 0.095, SUN)
    floor = y + size
    canvas.polygon([(x - size, floor), (x - size * 0.16, y - size * 0.1), (x + size * 0.6, floor)], HILL)
    canvas.polygon([(x - size * 0.62, floor), (x + size * 0.2, y + size * 0.08), (x + size, floor)], NEAR_HILL)
    canvas.keep(before, *inside)


def draw_words(canvas: Canvas, left: float, y: float, rows: list[list[float]], height: float, pitch: float):
    """Lines of words, each word as long as given; y is the middle of the first line. Later lines are fainter."""
    for i, row in enumerate(rows):
        x, colour = left, mix(NIGHT, WHITE, 0.9 - 0.5 * i / (len(rows) - 1))
        for word in row:
            canvas.box(x + word / 2, y + i * pitch, word, height, height / 2, colour)
            x += word + height * 0.75


def icon() -> Image.Image:
    canvas = Canvas(ICON, 8)
    canvas.stroke(u_path(108, 292, 120, 318, 92), 46)
    draw_words(canvas, 157, 214, [[86], [86], [50]], 13, 24)
    draw_eye(canvas, 108, 118, 142)
    draw_picture(canvas, 292, 118, 128)
    picture = canvas.finished()
    corners = Image.new("L", [side * 8 for side in ICON])
    ImageDraw.Draw(corners).rounded_rectangle([0, 0, ICON[0] * 8 - 1, ICON[1] * 8 - 1], 84 * 8, fill=255)
    picture.putalpha(corners.reduce(8))
    return picture


def banner() -> Image.Image:
    canvas = Canvas(BANNER, 4)
    canvas.stroke(u_path(430, 1250, 240, 578, 190), 74)
    draw_words(canvas, 598, 304, [[92, 150, 60, 110], [128, 70, 198], [84, 138, 62, 84], [150, 108]], 28, 56)
    draw_eye(canvas, 430, 226, 300)
    draw_picture(canvas, 1250, 226, 270)
    return canvas.finished()


def main(folder: Path):
    for name, draw in ("icon", icon), ("banner", banner):
        draw().save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
