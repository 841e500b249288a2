"""Pictures to tensors and back: the ViT's tiles, the VAE's references, 8-bit results.

Source: docs/model.md, "Image preprocessing" and "VAE".
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .checkpoints.config import ProcessorConfig
from .errors import InputError

MAX_ASPECT_RATIO = 200


def open_image(source: str | Path | BinaryIO, still: bool = False, background: str | None = None) -> Image.Image:
    """Read an image file, or an open binary stream of one, as 8-bit RGB, upright as its EXIF orientation says.

    still: refuse an animation, of which only the first frame is read otherwise. background: the colour behind
    transparent pixels; without it alpha is dropped. Raises InputError naming the file if it is missing, damaged, or not
    an image that to_rgb can convert.
    """
    name = f" {source}" if isinstance(source, str | Path) else ""  # an open stream has none that helps
    try:
        with Image.open(source) as image:
            # An MPO is a photo with a second view or a depth map behind it.
            if still and getattr(image, "is_animated", False) and image.format != "MPO":
                raise InputError(f"the image{name} is an animation of {image.n_frames} frames")
            image = ImageOps.exif_transpose(image)
            if background and image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        why = {UnidentifiedImageError: "its format is not known", struct.error: "its EXIF data is damaged"}
        raise InputError(f"cannot read the image{name}: {why.get(type(error), error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL picture of any mode as 8-bit RGB. Greys of more bits are scaled, not clipped; alpha is dropped.

    Raises InputError if it is no PIL picture, is empty, cannot be read to its end, or has grey values outside of 16
    bits or, as floats, outside of both 0…1 and 0…255.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"an image must be a PIL picture, not {type(image).__name__}")
    if 0 in image.size:
        raise InputError(f"an image of {image.width} × {image.height} pixels is empty")
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            image = _to_8_bit(image)
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads a file when its pixels are first asked for
        if isinstance(error, InputError):
            raise
        raise InputError(f"an image of mode {image.mode} cannot be read as RGB: {error}") from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    """A grey picture of 16-bit integers, 32-bit integers (as some readers return 16 bits) or floats, in mode L."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    limits = (1, 255) if image.mode == "F" else (255, 65535) if image.mode == "I" else (65535,)
    limit = next((limit for limit in limits if low >= 0 and high <= limit), None)
    if limit is None:
        raise InputError(
            f"an image of mode {image.mode} has values from {low:g} to {high:g}; supported are 0 to "
            f"{' or 0 to '.join(map(str, limits))}: scale it, or convert it to 8 bit"
        )
    return Image.fromarray((values * (255 / limit) + 0.5).astype(np.uint8))


def vit_tiles(image: Image.Image, config: ProcessorConfig, max_tiles: int = 1) -> Tensor:
    """Normalised tiles [n, 3, S, S] of one picture for the ViT, float32.

    One tile is the whole picture, resized to a square. With max_tiles > 1 they are a grid of squares cut from it, and a
    thumbnail of the whole (InternVL's dynamic tiling). The checkpoint's own most tiles are never exceeded.
    """
    size, max_tiles = config.tile_size, min(max_tiles, config.max_tiles)
    pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)[None]
    columns, rows = tile_grid(image.width, image.height, config, max_tiles) if max_tiles > 1 else (1, 1)
    tiles = resize_bicubic(pixels, rows * size, columns * size)
    tiles = tiles.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    if config.use_thumbnail and len(tiles) > 1:
        thumbnail = resize_bicubic(pixels, size, size)
        tiles = torch.cat([thumbnail, tiles] if config.thumbnail_first else [tiles, thumbnail])
    # (x − 255·mean) / (255·std) is what the official processor computes, to the bit.
    statistics = torch.tensor([config.vit_mean, config.vit_std], dtype=torch.float32, device="cpu")
    mean, std = statistics[..., None, None] * 255
    return (tiles.float() - mean) / std


def resize_bicubic(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 [n, 3, H, W] → uint8 [n, 3, height, width], antialiased. PIL's bicubic differs by 1 to 2 levels."""
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)


def tile_grid(width: int, height: int, config: ProcessorConfig, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the grid with the nearest aspect ratio, of at most max_tiles tiles.

    Of two that are equally near, the larger one, if the picture has more than half of its pixels.
    """
    limit = range(1, max_tiles + 1)
    grids = sorted(
        ((c, r) for c in limit for r in limit if min(config.min_tiles, max_tiles) <= c * r <= max_tiles),
        key=lambda grid: grid[0] * grid[1],
    )
    aspect = width / height
    best, best_difference = (1, 1), math.inf
    for columns, rows in grids:
        difference = abs(aspect - columns / rows)
        enough_pixels = width * height > 0.5 * config.tile_size**2 * columns * rows
        if difference < best_difference or (difference == best_difference and enough_pixels):
            best, best_difference = (columns, rows), difference
    return best


def reference_size(height: int, width: int, config: ProcessorConfig) -> tuple[int, int]:
    """(height, width) at which the VAE reads a reference picture of this size (docs/model.md, "Image preprocessing").

    Raises InputError for sides below the factor and aspect ratios over 200.
    """
    factor, longest = config.reference_factor, config.reference_max_side
    this = f"a reference image of {width} × {height} pixels"
    if min(height, width) < factor:
        raise InputError(f"{this} is too small: both sides must be ≥ {factor}")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InputError(f"{this} is over the aspect ratio {MAX_ASPECT_RATIO}")
    if longest and max(height, width) > longest:
        scale = longest / max(height, width)
        height, width = int(height * scale), int(width * scale)
        if min(height, width) < 1:
            raise InputError(f"{this} is too narrow to be scaled down")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > config.reference_max_pixels:
        beta = math.sqrt(height * width / config.reference_max_pixels)
        new_height, new_width = (math.floor(side / beta / factor) * factor for side in (height, width))
    elif new_height * new_width < config.reference_min_pixels:
        beta = math.sqrt(config.reference_min_pixels / (height * width))
        new_height, new_width = (math.ceil(side * beta / factor) * factor for side in (height, width))
    if longest and max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = (math.floor(side * scale / factor) * factor for side in (new_height, new_width))
    if min(new_height, new_width) < factor:
        raise InputError(f"{this} is too narrow to be scaled down")
    return new_height, new_width


def resize_reference(image: Image.Image, config: ProcessorConfig) -> Image.Image:
    """A picture in 8-bit RGB, at the size at which the VAE reads it as a reference. Errors as in reference_size."""
    picture = to_rgb(image)
    height, width = reference_size(picture.height, picture.width, config)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def reference_pixels(image: Image.Image, config: ProcessorConfig) -> Tensor:
    """Normalised pixels [1, 3, H, W] of a reference picture, float32. Errors as in reference_size."""
    pixels = torch.from_numpy(np.array(resize_reference(image, config))).permute(2, 0, 1)[None].float() / 255
    return normalise_reference(pixels, config)


def normalise_reference(pixels: Tensor, config: ProcessorConfig) -> Tensor:
    """Pixels [n, 3, …] in 0…1 → as the VAE reads them, by the checkpoint's mean and deviation of reference pictures."""
    mean, std = (
        torch.tensor(v, dtype=pixels.dtype, device=pixels.device).view(1, 3, *[1] * (pixels.ndim - 2))
        for v in (config.reference_mean, config.reference_std)
    )
    return (pixels - mean) / std


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Decoded pixels [n, 3, H, W] in [-1, 1] → 8-bit RGB pictures, rounded as in the official pipeline."""
    levels = ((127.5 * pixels.float() + 128) / 255).clamp(0, 1) * 255
    return [Image.fromarray(picture) for picture in levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()]
