"""The sizes that pictures are brought to, so that many of them have one size and share a batch."""

import math
from dataclasses import replace

from PIL import Image

from internvlu_core.checkpoints.config import ProcessorConfig
from internvlu_core.errors import InputError
from internvlu_core.imaging import reference_size

ASPECTS = 1.0, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.0  # of the longer side to the shorter one
AREA_STEPS = 4  # between the least and the largest side of a square


def limited(config: ProcessorConfig, area: tuple[int, int]) -> ProcessorConfig:
    """The rule for sizes, with the areas of squares of these sides as limits.

    Raises InputError if the checkpoint's own rule allows none of them.
    """
    lower = max(area[0] ** 2, config.reference_min_pixels)
    upper = min(area[1] ** 2, config.reference_max_pixels)
    if lower > upper:
        own = [math.isqrt(pixels) for pixels in (config.reference_min_pixels, config.reference_max_pixels)]
        takes = f"this checkpoint takes pictures of {own[0]}² to {own[1]}² pixels: --set area=[{own[0]},{own[1]}]"
        raise InputError(f"area is {list(area)}; {takes}")
    return replace(config, reference_min_pixels=lower, reference_max_pixels=upper)


def bucket(height: int, width: int, config: ProcessorConfig) -> tuple[int, int]:
    """(height, width) for a drawing: the nearest of ASPECTS, and the largest of a few areas that it fills.

    The side of each is what reference_size makes of it, so that a picture of this size is also read at this size.
    """
    least, largest = (math.sqrt(n) for n in (config.reference_min_pixels, config.reference_max_pixels))
    sides = [least + (largest - least) * step / AREA_STEPS for step in range(AREA_STEPS + 1)]
    side = max((side for side in sides if side**2 <= height * width), default=least)
    aspect = min(ASPECTS, key=lambda each: abs(math.log(max(height, width) / min(height, width) / each)))
    long, short = round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect))
    size = (long, short) if height > width else (short, long)
    for _ in range(4):  # rounding to multiples of 16 may leave the limits once more
        settled = reference_size(*size, config)
        if settled == size:
            break
        size = settled
    return size


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled to cover (height, width), and cut to it around its middle."""
    height, width = size
    scale = max(height / picture.height, width / picture.width)
    inner = width / scale, height / scale
    left, top = (picture.width - inner[0]) / 2, (picture.height - inner[1]) / 2
    box = (left, top, left + inner[0], top + inner[1])
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
