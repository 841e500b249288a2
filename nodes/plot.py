"""Plots: the guidance of each step, and boxes on a picture."""

from PIL import Image, ImageDraw, ImageFont

from ..internvlu_core.grounding import Box

COLOURS = ("#e4572e", "#2e86ab", "#57a773", "#9b5de5", "#d98e04", "#e03e8c")
INK, GRID, PAPER = "#333333", "#dddddd", "#ffffff"
# Pillow's own font has Latin letters only; these are looked for where the system keeps its fonts.
FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "malgun.ttf", "DejaVuSans.ttf")


def font(size: float) -> ImageFont.FreeTypeFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def plot_guidance(trace: list[list[float]], sigmas: list[float], all_scale: float, partial_scale: float) -> Image.Image:
    """Two lines over the steps: root mean squares of the prompt's and the pictures' term. trace: of each step."""
    width, height = 512, 288
    left, top, right, bottom = 56, 44, width - 32, height - 40
    picture = Image.new("RGB", (width, height), PAPER)
    draw, small = ImageDraw.Draw(picture), font(12)
    highest = max((value for pair in trace for value in pair), default=0) or 1.0

    def point(step: int, value: float) -> tuple[float, float]:
        return left + (right - left) * step / max(len(trace) - 1, 1), bottom - (bottom - top) * value / highest

    for share in (0, 0.5, 1):
        _, y = point(0, highest * share)
        draw.line([(left, y), (right, y)], GRID)
        draw.text((left - 6, y), f"{highest * share:.2g}", INK, small, anchor="rm")
    for step in sorted({0, len(trace) // 2, len(trace) - 1} & set(range(len(trace)))):
        x, _ = point(step, 0)
        draw.text((x, bottom + 6), f"{step + 1}", INK, small, anchor="ma")
        draw.text((x, bottom + 21), f"σ {sigmas[step]:.2f}", "#888888", small, anchor="ma")
    names = f"prompt × {all_scale:g}", f"pictures × {partial_scale:g}"
    for line, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        points = [point(step, pair[line]) for step, pair in enumerate(trace)]
        if len(points) > 1:
            draw.line(points, colour, 2, joint="curve")
        for x, y in points:
            draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), colour)
        x = left + line * (right - left) / 2
        draw.rectangle((x, 16, x + 12, 28), colour)
        draw.text((x + 18, 22), name, INK, small, anchor="lm")
    return picture


def draw_boxes(picture: Image.Image, boxes: list[Box]) -> Image.Image:
    """A copy of an RGB picture with every box outlined and labelled; equal labels have equal colours."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    stroke = max(2, round(min(picture.size) / 200))
    letters = font(max(12, round(min(picture.size) / 28)))
    labels = list(dict.fromkeys(box.label for box in boxes))
    for box in boxes:
        colour = COLOURS[labels.index(box.label) % len(COLOURS)]
        left, top, right, bottom = box.pixels(*picture.size)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=stroke)
        if box.label:
            _, _, wide, high = draw.textbbox((0, 0), box.label, letters)
            # Above the box, or inside it where there is no room above; never beyond the picture's right edge.
            x, y = max(0, min(left, picture.width - wide - 8)), top - high - 6 if top >= high + 6 else top
            draw.rectangle((x, y, x + wide + 8, y + high + 6), colour)
            draw.text((x + 4, y + 2), box.label, "white", letters)
    return picture
