"""Read a word: find its pixels, divide their box into a grid of cells, and compare each letter with the bitmaps."""

import numpy as np
from PIL import Image

from .glyphs import SCRIPTS
from .reading import box_of, components, ink, pure_colour

ASPECT_ERROR = 0.14  # largest relative error of the aspect ratio of a box of n letters
LETTER_ERROR = 0.27  # largest mean difference of a letter's cells from its bitmap
MARGIN = 0.02  # least difference between the errors of the best and the second letter
MOST_LETTERS = 5
SPECK = 3  # pixels; smaller components are noise


def read_word(picture: np.ndarray, background: np.ndarray) -> tuple[str, str]:
    """(word, name of its colour) in a picture, uint8 [H, W, 3]; "" for what cannot be read."""
    alpha = ink(picture, background)
    mask = np.zeros(alpha.shape, bool)
    for part in components(alpha > 0.5):
        if part.sum() > SPECK:
            mask |= part
    if not mask.any():
        return "", ""
    strong = mask & (alpha >= np.quantile(alpha[mask], 0.5))
    return read_letters(alpha, box_of(mask)), pure_colour(picture[strong], background)


def read_letters(alpha: np.ndarray, box: tuple[int, int, int, int]) -> str:
    """The word in a box, with the script and the number of letters that fit it best."""
    left, top, right, bottom = box
    aspect = (right - left) / (bottom - top)
    found = [(1.0, "")]
    for glyphs in SCRIPTS.values():
        rows, columns = next(iter(glyphs.values())).shape
        for count in range(1, MOST_LETTERS + 1):
            wanted = (count * (columns + 1) - 1) / rows
            if abs(aspect / wanted - 1) <= ASPECT_ERROR:
                found.append(match(alpha, box, glyphs, count))
    return min(found)[1]


def match(alpha: np.ndarray, box, glyphs: dict[str, np.ndarray], count: int) -> tuple[float, str]:
    """(mean error, word) if the box has `count` letters of a script; the word is "" if a letter fits none."""
    rows, columns = next(iter(glyphs.values())).shape
    grid = Image.fromarray(alpha.astype(np.float32))
    grid = np.asarray(grid.resize((count * (columns + 1) - 1, rows), Image.Resampling.BOX, box=box))
    names, bitmaps = list(glyphs), np.stack(list(glyphs.values()))
    word, errors = "", []
    for i in range(count):
        cells = grid[:, i * (columns + 1) : (i + 1) * (columns + 1) - 1]
        error = abs(bitmaps - stretch(cells)).mean((1, 2))
        best, second = np.argsort(error)[:2]
        if error[best] > LETTER_ERROR or error[second] - error[best] < MARGIN:
            return 1.0, ""
        word += names[best]
        errors.append(float(error[best]))
    gaps = grid[:, columns :: columns + 1]
    return (1.0, "") if gaps.size and gaps.mean() > 0.5 else (float(np.mean(errors)), word)


def stretch(cells: np.ndarray) -> np.ndarray:
    """Stretch the cells to the range 0…1: a blur makes thin strokes pale."""
    low, high = np.quantile(cells, (0.05, 0.95))
    return np.clip((cells - low) / max(high - low, 0.3), 0, 1)
