"""IMAGE sockets and batches to the core's pictures."""

import torch
from PIL import Image

SOCKETS = 8  # image1 … image8


def collect(inputs: dict) -> list[Image.Image]:
    """Pictures of all connected sockets in order, 8-bit RGB. inputs: {socket: IMAGE [B, H, W, C] in 0…1, or None}."""
    batches = [inputs.get(f"image{i}") for i in range(1, SOCKETS + 1)]
    return [to_pil(image) for batch in batches if batch is not None for image in batch]


def to_pil(image: torch.Tensor) -> Image.Image:
    """[H, W, C] in 0…1 → RGB picture; an alpha channel is dropped, a single channel is grey."""
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, 3)
    levels = (image[..., :3].float() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.cpu().numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    """RGB picture → IMAGE [1, H, W, 3] in 0…1."""
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return levels.view(1, image.height, image.width, 3).float() / 255
