"""Flat shapes on a plain background: colours, outlines as implicit functions, antialiased painting. Units: pixels."""

from functools import lru_cache

import numpy as np

# RGB. Any two are at least 95 apart, so that small errors of a VAE do not turn one into another.
COLOURS = {
    "red": (200, 15, 45),
    "orange": (240, 100, 20),
    "yellow": (240, 195, 20),
    "green": (50, 165, 70),
    "cyan": (60, 195, 215),
    "blue": (45, 85, 215),
    "purple": (145, 65, 185),
    "black": (25, 25, 25),
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (180, 180, 180), "black": (0, 0, 0)}
SUBPIXELS = 4  # samples per pixel and axis: 17 levels of coverage


def _circle(x, y):
    return x * x + y * y <= 1


def _square(x, y):
    return np.maximum(abs(x), abs(y)) <= 0.85


def _triangle(x, y):
    return (y <= 0.8) & (abs(x) <= (y + 1) * 0.55)


def _diamond(x, y):
    return abs(x) / 0.8 + abs(y) <= 1


def _star(x, y):
    """Five points; each tenth of the turn is one edge from the outer radius 1 to the inner one."""
    radius, fifth = np.hypot(x, y), 2 * np.pi / 5
    angle = abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
    inner = 0.45
    ix, iy = inner * np.cos(fifth / 2), inner * np.sin(fifth / 2)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    return (px - 1) * iy - py * (ix - 1) <= 0


def _cross(x, y):
    x, y = abs(x), abs(y)
    return (np.minimum(x, y) <= 0.3) & (np.maximum(x, y) <= 0.95)


def _heart(x, y):
    x, y = 1.2 * x, 0.15 - 1.15 * y
    return (x * x + y * y - 1) ** 3 <= x * x * y**3


def _ring(x, y):
    square = x * x + y * y
    return (square <= 1) & (square >= 0.3)


def _moon(x, y):
    return (x * x + y * y <= 1) & ((x - 0.5) ** 2 + y * y >= 0.7)


def _arrow(x, y):
    """An arrow to the right."""
    shaft = (abs(y) <= 0.25) & (x >= -0.95) & (x <= 0.1)
    return shaft | ((x >= 0) & (abs(y) <= 0.8 * (0.95 - x) / 0.95))


def _half_square(x, y):
    """A right triangle; its right angle is at the bottom left."""
    return (x >= -0.8) & (y <= 0.8) & (x <= y)


def _right_triangle(x, y):
    """The same, with a square hole in the right angle."""
    return _half_square(x, y) & ~((x >= -0.6) & (x <= -0.15) & (y >= 0.15) & (y <= 0.6))


def _face(x, y):
    """A disc with holes for two eyes."""
    return _circle(x, y) & ((abs(x) - 0.38) ** 2 + (y + 0.3) ** 2 >= 0.18**2)


def _happy_face(x, y):
    return _face(x, y) & ~((np.hypot(x, y - 0.02) <= 0.72) & (np.hypot(x, y - 0.02) >= 0.44) & (y >= 0.2))


def _sad_face(x, y):
    return _face(x, y) & ~((np.hypot(x, y - 0.87) <= 0.68) & (np.hypot(x, y - 0.87) >= 0.4) & (y <= 0.65))


def _surprised_face(x, y):
    return _face(x, y) & (x**2 + (y - 0.42) ** 2 >= 0.27**2)


OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "ring": _ring,
    "moon": _moon,
    "arrow": _arrow,
    "half square": _half_square,
    "right triangle": _right_triangle,
    "happy face": _happy_face,
    "sad face": _sad_face,
    "surprised face": _surprised_face,
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
NEW_SHAPES = ("moon",)  # in no sample: a shape for LoRA training to teach
TURNED = ("arrow", "right triangle", "half square")  # shapes that are drawn in four quarter turns, clockwise


def blank(size: tuple[int, int], background: str) -> np.ndarray:
    """A canvas [H, W, 3] of one colour, float32 in 0…255. size: (width, height)."""
    return np.full((size[1], size[0], 3), BACKGROUNDS[background], np.float32)


def coverage(
    shape: str, turn: int, x: float, y: float, radius: float, window: tuple[int, int, int, int], n: int = SUBPIXELS
) -> np.ndarray:
    """How much of each pixel the shape covers, [bottom − top, right − left] in 0…1.

    x, y: its centre, radius: half the side of the square it is drawn in, all in pixels from the picture's top left
    corner. turn: quarter turns clockwise. window: (left, top, right, bottom), whole pixels. n: samples per pixel
    and axis.
    """
    left, top, right, bottom = window
    u = ((np.arange((right - left) * n) + 0.5) / n + left - x)[None, :] / radius
    v = ((np.arange((bottom - top) * n) + 0.5) / n + top - y)[:, None] / radius
    for _ in range(turn % 4):
        u, v = v, -u
    inside = np.broadcast_to(OUTLINES[shape](u, v), ((bottom - top) * n, (right - left) * n))
    return inside.reshape(bottom - top, n, right - left, n).mean((1, 3), dtype=np.float32)


@lru_cache
def unit_moments(shape: str, turn: int = 0) -> tuple[float, float, float]:
    """Area, and centroid x and y, of the shape at radius 1."""
    scale = 100
    mask = coverage(shape, turn, scale, scale, scale, (0, 0, 2 * scale, 2 * scale))
    rows, columns = np.indices(mask.shape) + 0.5
    area = float(mask.sum())
    x, y = float((mask * columns).sum()) / area, float((mask * rows).sum()) / area
    return area / scale**2, x / scale - 1, y / scale - 1


def paint(canvas: np.ndarray, shape: str, colour: str, x: float, y: float, radius: float, turn: int = 0):
    """Draw a shape onto a canvas in place; arguments as for coverage."""
    height, width = canvas.shape[:2]
    left, top = max(0, int(x - radius) - 1), max(0, int(y - radius) - 1)
    right, bottom = min(width, int(x + radius) + 2), min(height, int(y + radius) + 2)
    alpha = coverage(shape, turn, x, y, radius, (left, top, right, bottom))[..., None]
    blend(canvas[top:bottom, left:right], alpha, COLOURS[colour])


def rectangle(canvas: np.ndarray, colour, left: float, top: float, right: float, bottom: float):
    """Fill a rectangle whose sides may lie between pixels; colour: a name or RGB."""
    height, width = canvas.shape[:2]
    across = np.clip(np.minimum(np.arange(width) + 1, right) - np.maximum(np.arange(width), left), 0, 1)
    down = np.clip(np.minimum(np.arange(height) + 1, bottom) - np.maximum(np.arange(height), top), 0, 1)
    rgb = COLOURS[colour] if isinstance(colour, str) else colour
    blend(canvas, (down[:, None] * across).astype(np.float32)[..., None], rgb)


def polygon(canvas: np.ndarray, colour, corners: np.ndarray):
    """Fill a convex polygon, or what of it is in the picture; corners [n, 2] as (x, y), clockwise on the screen.

    colour: a name or RGB.
    """
    height, width = canvas.shape[:2]
    left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (width, height))
    right, bottom = max(left, right), max(top, bottom)
    n = SUBPIXELS
    u = ((np.arange((right - left) * n) + 0.5) / n + left)[None, :]
    v = ((np.arange((bottom - top) * n) + 0.5) / n + top)[:, None]
    inside = np.ones((v.size, u.size), bool)
    for (x, y), (x2, y2) in zip(corners, np.roll(corners, -1, 0), strict=True):
        inside &= (x2 - x) * (v - y) - (y2 - y) * (u - x) >= 0
    alpha = inside.reshape(bottom - top, n, right - left, n).mean((1, 3), dtype=np.float32)[..., None]
    blend(canvas[top:bottom, left:right], alpha, COLOURS[colour] if isinstance(colour, str) else colour)


def stick(canvas: np.ndarray, colour: str, start, end, thickness: float):
    """A straight line from start to end, both (x, y)."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = (end - start) / np.hypot(*(end - start))
    across = np.array([-along[1], along[0]]) * thickness / 2
    polygon(canvas, colour, np.array([start - across, end - across, end + across, start + across]))


def cells(canvas: np.ndarray, colour: str, bitmap: np.ndarray, left: int, top: int, side: int):
    """Draw a bitmap [rows, columns] with cells of side × side whole pixels."""
    alpha = np.kron(bitmap, np.ones((side, side), np.float32))[..., None]
    blend(canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]], alpha, COLOURS[colour])


def blend(area: np.ndarray, alpha: np.ndarray, rgb):
    """Mix a colour into part of a canvas in place; alpha [h, w, 1]."""
    area += alpha * (np.asarray(rgb, np.float32) - area)


def finish(canvas: np.ndarray) -> np.ndarray:
    """Canvas → picture, uint8 [H, W, 3]."""
    return (canvas + 0.5).astype(np.uint8)
