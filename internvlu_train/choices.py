"""The random choices of one synthetic sample."""

import random


class Choices:
    """Choices that follow from a name and a seed alone. size: (width, height) of the picture in pixels.

    evaluates: whether the sample is for evaluation, which odd seeds are; even ones are for training.
    """

    def __init__(self, name: str, seed: int, size: tuple[int, int]):
        self.random, self.evaluates, self.size = random.Random(f"{name}/{seed}"), seed % 2 == 1, size
        self.pick, self.uniform, self.few = self.random.choice, self.random.uniform, self.random.sample

    def flip(self, probability: float) -> bool:
        return self.random.random() < probability

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both possible."""
        return self.random.randint(low, high)

    def shuffled(self, items) -> list:
        items = list(items)
        self.random.shuffle(items)
        return items
