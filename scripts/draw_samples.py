#!/usr/bin/env python3
"""Draws the sample pictures that the workflows name: workflows/input/internvlu_{landscape,house_mask,poster}.png, and
ten moons with captions, workflows/input/internvlu_moons/.

    .cache/venv/bin/python scripts/draw_samples.py

Flat shapes and gradients, so that what a prompt names is there: a sky with a sun, hills, a house, a tree, a pond. The
moons are a shape of the toy's world that the toy checkpoint has not seen.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from internvlu_train.toy.world import NEW_SHAPES, Choices  # noqa: E402
from internvlu_train.toy.world.objects import single  # noqa: E402

FOLDER = ROOT / "workflows" / "input"
FINE = 3  # drawn so many times larger, then made smaller, for smooth edges
HOUSE = (548, 288, 832, 576)  # where it stands in the landscape, with some room around


def gradient(size: tuple[int, int], top: str, bottom: str) -> Image.Image:
    mask = Image.linear_gradient("L").resize(size)  # black above, white below
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), mask)


class Canvas:
    """Draws in pixels of the finished picture."""

    def __init__(self, width: int, height: int, top: str, bottom: str):
        self.size = width, height
        self.picture = gradient((width * FINE, height * FINE), top, bottom)

    def shape(self, kind: str, points: list, fill: str, soft: float = 0, strength: float = 1.0):
        """kind: a method of ImageDraw. soft: blurs the edge by so many pixels."""
        mask = Image.new("L", self.picture.size)
        flat = [value * FINE for point in points for value in point]
        getattr(ImageDraw.Draw(mask), kind)(flat, fill=round(255 * strength))
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(soft * FINE))
        self.picture.paste(Image.new("RGB", self.picture.size, fill), mask=mask)

    def hill(self, points: list, top: str, bottom: str):
        """Land under a line from the left to the right edge, lighter above."""
        width, height = self.size
        mask = Image.new("L", self.picture.size)
        outline = [(x * FINE, y * FINE) for x, y in [*smooth(points), (width, height), (0, height)]]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        self.picture.paste(gradient(self.picture.size, top, bottom), mask=mask)

    def finished(self) -> Image.Image:
        return self.picture.resize(self.size, Image.Resampling.LANCZOS)


def smooth(points: list, steps: int = 24) -> list:
    """A curve through the points (Catmull-Rom)."""
    curve = []
    ends = [points[0], *points, points[-1]]
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for t in (step / steps for step in range(steps)):
            curve.append(
                tuple(
                    (2 * q + (r - p) * t + (2 * p - 5 * q + 4 * r - s) * t**2 + (3 * q - p - 3 * r + s) * t**3) / 2
                    for p, q, r, s in zip(a, b, c, d, strict=True)
                )
            )
    return [*curve, points[-1]]


def cloud(canvas: Canvas, x: float, y: float, size: float):
    for dx, dy, radius in ((-70, 8, 30), (-32, -10, 40), (16, -20, 48), (62, -4, 36), (96, 12, 24)):
        left, top, reach = x + dx * size, y + dy * size, radius * size
        canvas.shape("ellipse", [(left - reach, top - reach), (left + reach, top + reach)], "#ffffff", 3, 0.92)


def tree(canvas: Canvas, x: float, y: float, size: float):
    """y: of its foot."""
    canvas.shape("polygon", [(x - 10 * size, y), (x - 6 * size, y - 120 * size), (x + 6 * size, y - 120 * size),
                             (x + 10 * size, y)], "#6b4a32")  # fmt: skip
    for dx, dy, radius, fill in (
        (-30, -130, 46, "#2f6b3c"),
        (32, -136, 44, "#2f6b3c"),
        (0, -176, 54, "#3a8049"),
        (-12, -150, 40, "#479457"),
    ):
        left, top, reach = x + dx * size, y + dy * size, radius * size
        canvas.shape("ellipse", [(left - reach, top - reach), (left + reach, top + reach)], fill)


def landscape() -> Image.Image:
    canvas = Canvas(1024, 768, "#3f86d0", "#d6ecfa")
    canvas.shape("ellipse", [(96, 56), (304, 264)], "#fff3c0", 26, 0.55)
    canvas.shape("ellipse", [(136, 96), (264, 224)], "#ffd84a")
    cloud(canvas, 520, 130, 1.0)
    cloud(canvas, 850, 210, 0.7)
    canvas.hill([(0, 400), (170, 330), (360, 400), (560, 320), (800, 410), (1024, 350)], "#c3d6dd", "#6f9aa2")
    canvas.hill([(0, 470), (260, 430), (520, 480), (780, 440), (1024, 480)], "#b6d489", "#4d8a4a")
    canvas.hill([(0, 560), (300, 580), (640, 545), (1024, 570)], "#a4cc6c", "#3f7d35")
    # The house.
    canvas.shape("rectangle", [(744, 306), (776, 380)], "#8a4b3c")
    canvas.shape("rectangle", [(580, 392), (800, 566)], "#f4e6cc")
    canvas.shape("polygon", [(560, 398), (690, 300), (820, 398)], "#b5452f")
    canvas.shape("rectangle", [(664, 470), (716, 566)], "#7a4a2b")
    canvas.shape("ellipse", [(704, 516), (711, 523)], "#f2cf62")
    for x in (602, 732):
        canvas.shape("rectangle", [(x, 430), (x + 46, 476)], "#ffffff")
        canvas.shape("rectangle", [(x + 4, 434), (x + 42, 472)], "#7fb4dd")
        canvas.shape("rectangle", [(x + 21, 434), (x + 25, 472)], "#ffffff")
        canvas.shape("rectangle", [(x + 4, 451), (x + 42, 455)], "#ffffff")
    canvas.shape("polygon", [(664, 566), (716, 566), (800, 768), (560, 768)], "#e4cfa0")
    canvas.shape("ellipse", [(110, 640), (440, 728)], "#8cc1dc")
    canvas.shape("ellipse", [(150, 656), (360, 700)], "#b7dcec", 8, 0.8)
    tree(canvas, 910, 600, 1.15)
    tree(canvas, 470, 560, 0.8)
    return canvas.finished()


def house_mask() -> Image.Image:
    """White where the house is, in the landscape."""
    mask = Image.new("L", (1024, 768))
    ImageDraw.Draw(mask).rounded_rectangle(HOUSE, 24, fill=255)
    return mask.convert("RGB")


def poster() -> Image.Image:
    """A tall one: a sailing boat at night."""
    canvas = Canvas(640, 960, "#151a45", "#e8735a")
    for x, y, size in ((90, 120, 3), (210, 70, 2), (330, 190, 3), (480, 90, 2), (560, 260, 3), (150, 300, 2)):
        canvas.shape("ellipse", [(x - size, y - size), (x + size, y + size)], "#fff6d8")
    canvas.shape("ellipse", [(356, 96), (536, 276)], "#fdf1cf")
    canvas.hill([(0, 700), (160, 690), (320, 702), (480, 690), (640, 700)], "#34407c", "#0f1336")
    canvas.shape("polygon", [(322, 300), (322, 640), (140, 640)], "#f6ede0")
    canvas.shape("polygon", [(338, 340), (338, 640), (470, 640)], "#e9c46a")
    canvas.shape("rectangle", [(325, 290), (335, 668)], "#4a2f27")
    canvas.shape("polygon", [(150, 664), (500, 664), (440, 742), (210, 742)], "#a83b34")
    for y, left, right in ((770, 180, 470), (806, 120, 380), (850, 260, 560), (900, 80, 320)):
        canvas.shape("rectangle", [(left, y), (right, y + 5)], "#8f9bd0", 2, 0.7)
    return canvas.finished()


def write_moons(folder: Path, count: int = 10):
    """64 × 64 pixels, each with its caption, all captions different."""
    folder.mkdir(parents=True, exist_ok=True)
    plans, seed = {}, 0
    while len(plans) < count:
        plan = single(Choices("moons", seed, (64, 64)), NEW_SHAPES)
        plans.setdefault(plan.prompt, plan)
        seed += 2  # odd ones are for evaluation
    for number, plan in enumerate(plans.values(), 1):
        Image.fromarray(plan.paint()[1]).save(folder / f"{number:02}.png", optimize=True)
        (folder / f"{number:02}.txt").write_text(plan.prompt + "\n", encoding="utf-8")


def main():
    write_moons(FOLDER / "internvlu_moons")
    for name, draw in {"landscape": landscape, "house_mask": house_mask, "poster": poster}.items():
        path = FOLDER / f"internvlu_{name}.png"
        draw().save(path, optimize=True)
        print(path.relative_to(ROOT), path.stat().st_size)


if __name__ == "__main__":
    main()
