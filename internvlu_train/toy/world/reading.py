"""Detect flat objects on a plain background, by colour and outline.

Each pixel is modelled as a mixture of the background and one palette colour, so that a soft edge is partial coverage
and not a third colour. Outlines are compared with the functions that draw them, at the object's area and centroid,
which blurring preserves.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from .canvas import BACKGROUNDS, COLOURS, OUTLINES, TURNED, coverage, unit_moments

PALETTE = np.array(list(COLOURS.values()), np.float32)
LEAST_AREA = 0.0025  # of the picture; smaller specks are not objects
COLOUR_ERROR = 60.0  # largest RGB distance at which a colour has the palette's name
PURE = 0.85  # fraction of an object's inner pixels that must have its colour
LEAST_OVERLAP = 0.72  # soft intersection over union with the drawn outline
FAINT = 45.0  # least RGB distance to the background at which a pale part counts as an object without colour
FADED, STRONG = 0.75, 1.1  # range of the mixture of a small object's colour with the background; above 1 it overshoots


@dataclass(frozen=True)
class Detection:
    """One object. shape, colour: "" if unknown. x, y: centre, as fractions of the picture's sides.

    radius: as a fraction of the shorter side. turn: in quarter turns. box: (left, top, right, bottom) in pixels.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: int
    box: tuple[int, int, int, int]


def background_of(picture: np.ndarray) -> np.ndarray:
    """RGB of the background: the median along the edge of the picture."""
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.median(edge.astype(np.float32), axis=0)


def background_name(rgb: np.ndarray) -> str:
    name, value = min(BACKGROUNDS.items(), key=lambda item: np.linalg.norm(rgb - np.array(item[1])))
    return name if np.linalg.norm(rgb - np.array(value)) <= COLOUR_ERROR else ""


def shares(pixels: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [..., 3] → share of each palette colour in a mixture with the background, and its RGB error, [..., 8]."""
    direction = PALETTE - background  # [8, 3]
    offset = pixels.astype(np.float32) - background
    length = np.maximum((direction**2).sum(-1), 1.0)
    share = offset @ direction.T / length
    held = np.clip(share, 0, STRONG)
    error = (offset**2).sum(-1, keepdims=True) - 2 * held * share * length + held**2 * length
    return share, np.sqrt(np.maximum(error, 0))


def name_colour(rgb: np.ndarray, background: np.ndarray) -> str:
    """The palette's name of a colour that may be mixed slightly with the background, or ""."""
    error = errors(rgb, background)
    best = int(error.argmin())
    return tuple(COLOURS)[best] if error[best] <= COLOUR_ERROR else ""


def errors(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """RGB distance [..., 8] to each palette colour, allowing for the mixtures FADED…STRONG."""
    direction = PALETTE - background
    offset = pixels.astype(np.float32) - background
    share = np.clip(offset @ direction.T / np.maximum((direction**2).sum(-1), 1.0), FADED, STRONG)
    return np.linalg.norm(offset[..., None, :] - share[..., None] * direction, axis=-1)


def ink(picture: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Coverage [H, W] of each pixel by its palette colour, 0…1."""
    share, error = shares(picture, background)
    best = error.argmin(-1)
    return np.clip(np.take_along_axis(share, best[..., None], -1)[..., 0], 0, 1)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected components of a mask [H, W], each as a mask, the largest first."""
    height, width = mask.shape
    left = {int(i) for i in np.flatnonzero(mask)}
    parts = []
    while left:
        start = left.pop()
        part, queue = [start], deque([start])
        while queue:
            row, column = divmod(queue.popleft(), width)
            for r in (row - 1, row, row + 1):
                for c in (column - 1, column, column + 1):
                    index = r * width + c
                    if 0 <= c < width and index in left:
                        left.remove(index)
                        part.append(index)
                        queue.append(index)
        one = np.zeros(height * width, bool)
        one[part] = True
        parts.append(one.reshape(height, width))
    return sorted(parts, key=lambda part: -int(part.sum()))


def shift(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The mask, shifted by at most one pixel and padded with False."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return padded[1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]


def grow(mask: np.ndarray) -> np.ndarray:
    return np.any([shift(mask, r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)], axis=0)


def inner(mask: np.ndarray) -> np.ndarray:
    """The mask without its rim, or the mask itself if nothing would be left."""
    core = np.all([shift(mask, r, c) for r, c in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))], axis=0)
    return core if core.sum() >= 4 else mask


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def parts_of(picture: np.ndarray, background: np.ndarray) -> list[np.ndarray]:
    """The masks of the objects in a picture, without specks."""
    least = LEAST_AREA * picture.shape[0] * picture.shape[1]
    return [part for part in components(ink(picture, background) > 0.5) if part.sum() >= least]


def colour_of(picture: np.ndarray, part: np.ndarray, background: np.ndarray) -> str:
    """The palette's name of an object's colour; "" for another colour, or several."""
    return pure_colour(picture[inner(part)], background)


def pure_colour(pixels: np.ndarray, background: np.ndarray) -> str:
    """The palette's name of the colour of nearly all pixels [N, 3], or ""."""
    name = name_colour(np.median(pixels.astype(np.float32), axis=0), background)
    if not name:
        return ""
    error = errors(pixels, background)[:, tuple(COLOURS).index(name)]
    return name if (error <= 1.5 * COLOUR_ERROR).mean() >= PURE else ""


def soft_part(picture: np.ndarray, part: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The coverage [H, W] of one object, 0…1, soft at its rim."""
    colour = np.median(picture[inner(part)].astype(np.float32), axis=0)
    direction = colour - background
    alpha = (picture.astype(np.float32) - background) @ direction / max(float((direction**2).sum()), 1.0)
    alpha = np.clip(alpha, 0, 1) * grow(part)
    return np.where(alpha < 0.1, 0, alpha)


def overlap(alpha: np.ndarray, shape: str, turn: int) -> tuple[float, float, float, float]:
    """(soft intersection over union with the shape at the area and centroid of alpha, centre x, y, radius)."""
    unit_area, unit_x, unit_y = unit_moments(shape, turn)
    area = float(alpha.sum())
    height, width = alpha.shape
    x = float(alpha.sum(0) @ (np.arange(width) + 0.5)) / area
    y = float(alpha.sum(1) @ (np.arange(height) + 0.5)) / area
    radius = float(np.sqrt(area / unit_area))
    x, y = x - radius * unit_x, y - radius * unit_y
    drawn = coverage(shape, turn, x, y, radius, (0, 0, width, height), n=2)  # 2 × 2 samples distinguish 24 outlines
    both = np.minimum(alpha, drawn).sum() / np.maximum(alpha, drawn).sum()
    return float(both), x, y, radius


CANDIDATES = tuple((shape, turn) for shape in OUTLINES for turn in (range(4) if shape in TURNED else (0,)))


def detect(picture: np.ndarray, part: np.ndarray, background: np.ndarray) -> Detection:
    """One object of the picture [H, W, 3]: its colour, and the outline with the largest overlap."""
    left, top, right, bottom = box_of(part)
    rim = 3
    window = slice(max(0, top - rim), bottom + rim), slice(max(0, left - rim), right + rim)
    alpha = soft_part(picture, part, background)[window]
    fits = [(overlap(alpha, *candidate), candidate) for candidate in CANDIDATES]
    (best, x, y, radius), (shape, turn) = max(fits)
    x, y = x + window[1].start, y + window[0].start
    height, width = picture.shape[:2]
    return Detection(
        shape if best >= LEAST_OVERLAP else "",
        colour_of(picture, part, background),
        x / width,
        y / height,
        radius / min(width, height),
        turn,
        (left, top, right, bottom),
    )


def faint_parts(picture: np.ndarray, background: np.ndarray, parts: list[np.ndarray]) -> list[np.ndarray]:
    """Other parts that are not background, away from `parts` and their blurred rims: half removed or pale objects."""
    mask = np.linalg.norm(picture.astype(np.float32) - background, axis=-1) > FAINT
    for part in parts:
        mask &= ~grow(grow(part))
    return [part for part in components(mask) if part.sum() >= LEAST_AREA * mask.size]


def objects_in(picture: np.ndarray, background: np.ndarray) -> list[Detection]:
    parts = parts_of(picture, background)
    return [detect(picture, part, background) for part in (*parts, *faint_parts(picture, background, parts))]
