"""Colours with names in both languages, and inks that can be read on what is below them."""

import numpy as np

from . import LanguageChoices
from .layout import Colour

NAMES: dict[str, tuple[Colour, str]] = {  # English name: (colour, Chinese name)
    "white": ((250, 250, 247), "白色"),
    "black": ((22, 22, 24), "黑色"),
    "red": ((200, 30, 36), "红色"),
    "dark red": ((120, 16, 28), "深红色"),
    "orange": ((236, 120, 24), "橙色"),
    "yellow": ((250, 208, 40), "黄色"),
    "cream": ((247, 236, 208), "米色"),
    "green": ((32, 138, 66), "绿色"),
    "dark green": ((16, 72, 44), "深绿色"),
    "teal": ((14, 116, 122), "青色"),
    "sky blue": ((122, 190, 236), "天蓝色"),
    "blue": ((34, 82, 196), "蓝色"),
    "navy blue": ((18, 32, 84), "藏青色"),
    "purple": ((104, 44, 140), "紫色"),
    "pink": ((244, 150, 180), "粉色"),
    "brown": ((98, 58, 32), "棕色"),
    "grey": ((120, 122, 126), "灰色"),
}
CALLED = {levels: name for name, (levels, _) in NAMES.items()}
GLOWS = ("red", "orange", "yellow", "green", "sky blue", "blue", "purple", "pink")  # of neon
READABLE = 4.5  # contrast of words that can be read, as WCAG 2.1 has it


def colour(name: str) -> Colour:
    """A colour by its English name."""
    return NAMES[name][0]


def called(name: str, language: str) -> str:
    """A colour's name in a language."""
    return name if language == "en" else NAMES[name][1]


def luminance(levels) -> np.ndarray:
    """Relative luminance of sRGB colours (WCAG 2.1), [..., 3] from 0 to 255 → [...] from 0 to 1."""
    values = np.asarray(levels, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


LUMINANCES = {name: float(luminance(levels)) for name, (levels, _) in NAMES.items()}


def contrast(one, other) -> np.ndarray:
    """The contrast of two luminances, from 1 to 21."""
    return (np.maximum(one, other) + 0.05) / (np.minimum(one, other) + 0.05)


def readable(below: np.ndarray, least: float = READABLE) -> list[str]:
    """The names of inks that can be read on a part of a surface, uint8 [H, W, 3].

    A twentieth of it may be darker and another lighter. Without such an ink, that with the most contrast.
    """
    levels = np.percentile(luminance(below.reshape(-1, 3)[::23]), (5, 95))
    found = {name: float(contrast(LUMINANCES[name], levels).min()) for name in NAMES}
    return [name for name, value in found.items() if value >= least] or [max(found, key=found.get)]


def two(choices: LanguageChoices, least: float = READABLE) -> tuple[str, str]:
    """The names of a ground and of an ink that can be read on it."""
    ground = choices.pick(list(NAMES))
    return ground, choices.pick(readable(np.uint8([[colour(ground)] * 8]), least))
