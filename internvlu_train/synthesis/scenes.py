"""Where surfaces with words are: walls, tables, skies and fabrics, made of noise; light, and perspective."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from internvlu_core.errors import need

from .layout import Quad

Size = tuple[int, int]  # width, height
Chance = np.random.Generator
Pixels = np.ndarray  # float32 [H, W, 3] from 0 to 255, unless said otherwise


def smooth(chance: Chance, size: Size, cells: int) -> np.ndarray:
    """Noise from 0 to 1 without edges, float32 [H, W]. cells: bumps along the longer side."""
    width, height = size
    longer = max(size)
    across, down = (max(2, round(cells * side / longer) + 1) for side in size)
    return need("cv2", "synthesis").resize(chance.random((down, across), np.float32), (width, height), interpolation=2)


def layered(chance: Chance, size: Size, cells: int = 4) -> np.ndarray:
    """Noise of several scales, about 0 to 1, float32 [H, W]."""
    return sum(smooth(chance, size, cells * 3**i) / 2 ** (i + 1) for i in range(4)) / (1 - 1 / 16)


def tinted(levels: np.ndarray, dark, light) -> Pixels:
    """Levels from 0 to 1 as colours between two."""
    dark, light = np.float32(dark), np.float32(light)
    return dark + levels[..., None].clip(0, 1) * (light - dark)


def between(chance: Chance, dark, light) -> np.ndarray:
    """A colour between two, by one random number: with one for each channel it could be of any hue."""
    return np.float64(dark) + chance.random() * (np.float64(light) - np.float64(dark))


def plaster(chance: Chance, size: Size) -> Pixels:
    light = np.float32([chance.uniform(175, 235)] * 3) + chance.uniform(-18, 18, 3)
    return tinted(layered(chance, size, 5), light - 38, light)


def concrete(chance: Chance, size: Size) -> Pixels:
    grey = np.float32([chance.uniform(120, 175)] * 3)
    return tinted(layered(chance, size, 8), grey - 45, grey + 15)


def brick(chance: Chance, size: Size) -> Pixels:
    width, height = size
    high = max(10, round(max(size) / chance.uniform(18, 30)))
    long = round(2.4 * high)
    rows, across = np.arange(height)[:, None], np.arange(width)[None]
    row = rows // high
    column = (across + (row % 2) * (long // 2)) // long
    base = between(chance, (110, 45, 30), (175, 95, 75))
    tone = chance.uniform(0.75, 1.15, 4096).astype(np.float32)[(row * 61 + column) % 4096]
    wall = np.float32(base) * (tone * (0.8 + 0.3 * layered(chance, size, 20)))[..., None]
    joint = max(1, high // 10)
    mortar = (rows % high < joint) | ((across + (row % 2) * (long // 2)) % long < joint)
    return np.where(mortar[..., None], np.float32(base * 0.35 + 95), wall)


def wood(chance: Chance, size: Size) -> Pixels:
    width, height = size
    dark = between(chance, (60, 35, 18), (150, 100, 60))
    planks = int(chance.integers(4, 8))
    plank = (np.arange(height) * planks // height)[:, None]
    streaks = need("cv2", "synthesis").resize(
        chance.random((max(2, height // 3), 6), np.float32), (width, height), interpolation=2
    )
    tone = chance.uniform(0.0, 0.35, planks).astype(np.float32)[plank]
    board = tinted(0.55 * streaks + tone + 0.2 * smooth(chance, size, 6), dark, dark * 1.45 + 20)
    gap = np.arange(height) * planks % height < planks * max(2, height / 300)
    return np.where(gap[:, None, None], np.float32(dark * 0.4), board)


def fabric(chance: Chance, size: Size) -> Pixels:
    colour = chance.uniform(50, 200, 3)
    weave = 0.5 + 0.25 * (np.sin(np.arange(size[1]) * 1.9)[:, None] + np.sin(np.arange(size[0]) * 1.9)[None])
    levels = 0.35 * weave.astype(np.float32) + 0.65 * layered(chance, size, 3)
    return tinted(levels, colour * 0.75, colour * 1.05 + 12)


def sky(chance: Chance, size: Size) -> Pixels:
    """A sky with clouds above hills."""
    width, height = size
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    top, low = chance.uniform((50, 110, 190), (110, 170, 235)), chance.uniform((180, 200, 220), (240, 235, 240))
    picture = tinted(np.broadcast_to(down, (height, width)), top, low)
    clouds = ((layered(chance, size, 4) - 0.5) * 3).clip(0, 0.85) * (1 - down)
    picture += clouds[..., None] * (250 - picture)
    for layer in range(3):
        line = 0.66 + 0.11 * layer + 0.1 * (smooth(chance, (width, 2), 5)[0] - 0.5)
        green = np.float32(between(chance, (60, 95, 50), (110, 140, 85))) * (1 - 0.18 * layer)
        picture = np.where(
            (down >= line[None])[..., None], green + 18 * (smooth(chance, size, 60)[..., None] - 0.5), picture
        )
    return picture


def lights(chance: Chance, size: Size) -> Pixels:
    """Lamps out of focus."""
    width, height = size
    image = np.full((height, width, 3), chance.uniform(12, 45, 3), np.float32)
    cv2 = need("cv2", "synthesis")
    for _ in range(int(chance.integers(14, 30))):
        middle = int(chance.integers(0, width)), int(chance.integers(0, height))
        radius = int(max(size) * chance.uniform(0.02, 0.07))
        disc = image.copy()
        cv2.circle(
            disc, middle, radius, [float(v) for v in chance.uniform((120, 80, 50), (255, 210, 160))], -1, cv2.LINE_AA
        )
        image += (disc - image) * np.float32(chance.uniform(0.15, 0.5))
    return cv2.GaussianBlur(image, (0, 0), max(size) / 200)


SCENES: dict[str, Callable[[Chance, Size], Pixels]] = {
    f.__name__: f for f in (plaster, concrete, brick, wood, fabric, sky, lights)
}


@lru_cache(maxsize=1)  # before and after an edit have the same
def background(name: str, seed: int, size: Size) -> Pixels:
    """A scene by its name. It must not be written to."""
    return SCENES[name](np.random.default_rng((seed, 0)), size)


def quad_in(chance: Chance, size: Size, panel: Size, tilt: float) -> Quad:
    """Where a surface of this size stands in a picture: in the middle, turned and seen from the side by up to tilt."""
    (width, height), (across, down) = size, panel
    left, top = (width - across) / 2, (height - down) / 2
    shift = chance.uniform(-0.4, 0.4, 2) * (left, top)
    corners = np.float64([(0, 0), (across, 0), (across, down), (0, down)]) - (across / 2, down / 2)
    angle = np.radians(chance.uniform(-5, 5) * tilt)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    squeeze = 1 - abs(chance.uniform(-0.16, 0.16, 2)) * tilt
    sides = chance.integers(0, 4)
    corners[[sides, (sides + 1) % 4]] *= np.where(sides % 2 == 0, (squeeze[0], 1), (1, squeeze[1]))
    corners = corners @ turn + (width / 2, height / 2) + shift
    low, high = corners.min(0), corners.max(0)
    room = np.float64([width, height]) * 0.97
    scale = min(1.0, *(room / (high - low)))
    corners = (corners - (low + high) / 2) * scale + (low + high) / 2
    low, high = corners.min(0), corners.max(0)
    edge = np.float64([width, height]) * 0.012
    corners += np.maximum(edge - low, 0) - np.maximum(high - (np.float64([width, height]) - edge), 0)
    return [tuple(map(float, corner)) for corner in corners]


def matrix(panel: Size, quad: Quad) -> np.ndarray:
    """The perspective that takes a surface of this size to a quad, float64 [3, 3]."""
    width, height = panel
    source = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    return need("cv2", "synthesis").getPerspectiveTransform(source, np.float32(quad))


def moved(perspective: np.ndarray, points: Quad) -> Quad:
    """Points of a surface where they are in the picture."""
    flat = np.hstack([np.float64(points), np.ones((len(points), 1))]) @ perspective.T
    return [(float(x / w), float(y / w)) for x, y, w in flat]


def put(scene: Pixels, panel: Image.Image, perspective: np.ndarray, shadow: float = 0.45) -> Pixels:
    """A surface, RGBA, in a scene, with its shadow."""
    cv2 = need("cv2", "synthesis")
    height, width = scene.shape[:2]
    # Premultiplied, so that edges have no colour of what is outside.
    array = np.asarray(panel.convert("RGBa"))
    flat = cv2.warpPerspective(array, perspective, (width, height), flags=cv2.INTER_CUBIC).astype(np.float32)
    under = 1 - flat[..., 3] / 255
    away = max(2, round(max(width, height) / 120))
    small = cv2.resize(1 - under, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    dark = cv2.resize(cv2.GaussianBlur(small, (0, 0), away / 4), (width, height), interpolation=cv2.INTER_LINEAR)
    under *= 1 - shadow * np.roll(dark, (away, away // 2), (0, 1))
    return scene * under[..., None] + flat[..., :3]


def lit(chance: Chance, picture: Pixels, strength: float = 1) -> np.ndarray:
    """A picture in uneven light and with a camera's noise, uint8 [H, W, 3]."""
    height, width = picture.shape[:2]
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    direction = chance.uniform(-0.1, 0.1, 2) * strength
    light = 1 + direction[0] * across + direction[1] * down - 0.05 * strength * (across**2 + down**2)
    warm = np.float32(1 + chance.uniform(-0.03, 0.03, 3) * strength)
    noise = chance.standard_normal((height, width, 1), np.float32) * np.float32(chance.uniform(0.5, 3) * strength)
    levels = picture * (light[..., None].astype(np.float32) * warm)
    levels += noise + np.float32(0.5)
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)
