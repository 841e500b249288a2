"""Fit a checkpoint's latent preview (Preview in checkpoints/config.py) and write it into its vae/config.json.

    python scripts/fit_preview.py demo/InternVL-U-toy

By least squares on pictures of the toy world: each latent pixel against the mean colour of the decoded pixels under it.
For checkpoints that were trained on these pictures. The released VAE is Wan 2.1's, whose numbers ComfyUI has.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from internvlu_core import InternVLU  # noqa: E402
from internvlu_train.toy.world import DOMAINS, TASKS, make  # noqa: E402

COUNT = 20  # pictures of each domain


def pictures(side: int, odd: int = 0) -> torch.Tensor:
    """Of every domain [N, 3, side, side] in -1…1. odd: 0 for the seeds of training, 1 for those of evaluation."""
    domains = [domain for domain in DOMAINS if "draw" in TASKS[domain]]
    made = [make(domain, "draw", 2 * i + odd, (side, side)).picture for domain in domains for i in range(COUNT)]
    return torch.stack([torch.from_numpy(picture.copy()) for picture in made]).permute(0, 3, 1, 2) / 127.5 - 1


@torch.inference_mode()
def latents_and_colours(model: InternVLU, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised latents [N, z], and the mean colours [N, 3] that they are decoded to, of all latent pixels."""
    latents = torch.cat([model.vae.encode(one[None]) for one in pixels])
    colours = F.avg_pool2d(model.decode(latents), model.config.vae.scale_factor)
    return latents.movedim(1, -1).flatten(0, -2), colours.movedim(1, -1).flatten(0, -2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    folder = parser.parse_args().checkpoint
    model = InternVLU.from_pretrained(folder, device="cpu", dtype=torch.float32)
    latents, colours = latents_and_colours(model, pictures(model.config.mmdit.image_width))
    solution = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], 1), colours).solution
    rounded = [[round(value, 4) for value in row] for row in solution.T.tolist()]
    preview = {name: row[:-1] for name, row in zip(("red", "green", "blue"), rounded, strict=True)}
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["latent_preview"] = {**preview, "bias": [row[-1] for row in rounded]}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    guessed = latents @ solution[:-1] + solution[-1]
    print(f"mean error {(guessed - colours).abs().mean():.4f} of 2, of pictures that it was fitted on")


if __name__ == "__main__":
    main()
