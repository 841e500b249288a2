"""Tiny stages and samples for tests of training."""

import json
from pathlib import Path

import numpy as np

from internvlu_train.sample import Sample
from internvlu_train.settings import PictureStage, TextStage, VAEStage
from internvlu_train.toy.presets import Sizes

ROOT = Path(__file__).resolve().parents[2]
TINY = Sizes(
    vae_blocks=1,
    vit_width=32,
    vit_layers=1,
    llm_width=32,
    llm_layers=2,
    mmdit_layers=2,
    mmdit_heads=2,
    vocabulary=1024,
    patch=2,
)
LEARN = {"warmup": 5, "decay": 0.0, "ema": 0.9, "weight_decay": 0.0, "autocast": False, "save_every": 10**6}


def sample(task: str, words: str = "", images: int = 0, size: tuple[int, int] = (48, 64)) -> Sample:
    """Noise with words: what it shows is of no matter."""
    chance = np.random.default_rng(len(task) + images)
    pictures = [chance.integers(0, 255, (*size[::-1], 3), dtype=np.uint8) for _ in range(images + 1)]
    picture = None if task == "ask" else pictures[0]
    return Sample(task, "objects", f"{task} two red stars", tuple(pictures[1:]), picture, words)


def picture_stage(**changes) -> PictureStage:
    settings = {"trained": ("mmdit.",), "tasks": (("draw", 1),), "samples": 4, "steps": 4, "batch": 2, **LEARN}
    return PictureStage(**settings | changes)


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


OVERFIT = {
    "vae": VAEStage(
        trained=("vae.",),
        tasks=(("draw", 1),),
        sides=((48, 48),),
        samples=2,
        steps=100,
        batch=2,
        learning_rate=2e-3,
        l1_ramp=50,
        **LEARN,
    ),
    "mllm": TextStage(
        trained=("vlm.",), tasks=(("ask", 1),), samples=4, steps=60, batch=4, learning_rate=1e-2, **LEARN
    ),
    "stage1": picture_stage(samples=2, steps=150, learning_rate=6e-3, drop_prompt=0.0, drop_all=0.0),
}
