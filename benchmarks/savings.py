"""What guidance in a part of the steps and EasyCache save, and what they change, on the toy checkpoint in ComfyUI."""

import importlib
from dataclasses import dataclass

import numpy as np
import torch

from internvlu_train.toy.world import Sample, check, make
from support.inprocess import PACK, load_pack
from support.toy import CHECKPOINT

SIDE, STEPS = 64, 20  # what the toy was trained for
KINDS = ("single", "two", "counting", "colours", "position", "attribution")
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Saving:
    """guided: start and end of Guidance Range. cache: reuse_threshold, start and end of EasyCache; None: without."""

    guided: tuple[float, float] = WHOLE
    cache: tuple[float, float, float] | None = None

    @property
    def name(self) -> str:
        parts = [f"Guidance Range {self.guided[0]:g} to {self.guided[1]:g}"] if self.guided != WHOLE else []
        if self.cache:
            threshold, start, end = self.cache
            parts.append(f"EasyCache {threshold:g}, {start:g} to {end:g}")
        return " and ".join(parts) or "neither"


SAVINGS = [
    Saving(),
    *(
        Saving(guided)
        for guided in [(0.0, 0.8), (0.0, 0.6), (0.0, 0.4), (0.1, 1.0), (0.2, 1.0), (0.1, 0.6), (0.2, 0.8)]
    ),
    *(Saving(cache=(threshold, 0.15, 0.95)) for threshold in (0.02, 0.05, 0.1, 0.2)),
    *(Saving(cache=(threshold, 0.3, 0.95)) for threshold in (0.05, 0.1)),
    Saving((0.0, 0.6), (0.05, 0.15, 0.95)),
]


class Toy:
    """The toy as the nodes' MODEL, VLM and VAE in this process. rows: of all forwards of the image generator."""

    def __init__(self):
        load_pack()
        files, config, load = (
            importlib.import_module(f"{PACK}.{name}")
            for name in ("internvlu_core.checkpoints.files", "internvlu_core.checkpoints.config", "nodes.comfy.load")
        )
        self.encode, self.sampling = (
            importlib.import_module(f"{PACK}.nodes.{name}") for name in ("encode", "sampling")
        )
        source = files.open_source(CHECKPOINT)
        read = config.Config.read(source)
        self.model = load.load_model(source, read, torch.float32)
        self.vlm, self.vae = load.load_vlm(source, read, torch.float32), load.load_vae(source, read)
        self.rows, network = 0, self.model.model.diffusion_model
        forward = network._forward

        def counted(x, *arguments, **options):
            self.rows += len(x)
            return forward(x, *arguments, **options)

        network._forward = counted

    @torch.inference_mode()
    def conditionings(self, sample: Sample) -> tuple:
        pictures = {
            f"image{i}": torch.from_numpy(image).float()[None] / 255 for i, image in enumerate(sample.images, 1)
        }
        vae = {"vae": self.vae} if pictures else {}
        return self.encode.InternVLUEncode.execute(self.vlm, sample.prompt, **vae, **pictures).result

    @torch.inference_mode()
    def draw(self, conditionings: tuple, seed: int, saving: Saving) -> np.ndarray:
        """A picture [H, W, 3] in 8 bits."""
        from comfy_extras.nodes_easycache import EasyCacheNode

        model = self.model
        if saving.cache:
            model = EasyCacheNode.execute(model, *saving.cache, verbose=False).result[0]
        if saving.guided != WHOLE:
            model = self.sampling.InternVLUGuidanceRange.execute(model, *saving.guided).result[0]
        latent = {"samples": torch.zeros(1, 16, 1, SIDE // 8, SIDE // 8)}
        settings = {"seed": seed, "steps": STEPS, "all_scale": -1.0, "partial_scale": -1.0, "denoise": 1.0}
        drawn = self.sampling.InternVLUSampler.execute(model, *conditionings, latent, **settings).result[0]
        pixels = self.vae.decode(drawn["samples"]).reshape(SIDE, SIDE, 3)
        return (pixels.clamp(0, 1) * 255).round().byte().numpy()


def table(count: int) -> list[dict]:
    """A row for each of SAVINGS: rows of the network, PSNR to the pictures without it, and how many are right.

    count: of drawings of each kind; there are twice as many edits. All are held-out prompts of the toy's world.
    """
    toy = Toy()
    samples = [make("objects", "draw", 2 * i + 1, (SIDE, SIDE), kind) for kind in KINDS for i in range(count)]
    samples += [make("objects", "edit", 2 * i + 1, (SIDE, SIDE)) for i in range(2 * count)]
    conditionings = [toy.conditionings(sample) for sample in samples]
    rows, plain = [], None
    for saving in SAVINGS:
        toy.rows = 0
        pictures = [toy.draw(each, seed, saving) for seed, each in enumerate(conditionings)]
        plain = plain or pictures
        levels = [psnr(a, b) for a, b in zip(pictures, plain, strict=True)]
        right = [check(picture, sample.truth).right for picture, sample in zip(pictures, samples, strict=True)]
        found = {"rows": toy.rows, "pictures": len(pictures), "right": sum(right)}
        rows.append({"stage": saving.name, **found, "psnr": float(np.median(levels)), "least": float(min(levels))})
    return rows


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In decibels; infinite for equal pictures."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
