"""One training sample, wherever it comes from: the synthetic world or a user's folder of pictures."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """task: "draw", "edit", "ask", "caption" or "reason". images: the input pictures, uint8 [H, W, 3] each.

    picture: the target, uint8 [H, W, 3], or None for a question. words: the answer to a question, or the reasoning
    that precedes a picture, else "". domain, truth: of a synthetic sample, where it comes from and what its checker
    judges by (toy.world.scene.Truth); training uses neither.
    """

    task: str
    domain: str
    prompt: str
    images: tuple[np.ndarray, ...]
    picture: np.ndarray | None
    words: str
    truth: object = None
