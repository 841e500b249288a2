"""Synthetic samples of flat shapes: the report's five domains and objects, each with a truth that a program can judge.

A sample is a function of (domain, task, seed, size, kind). Even seeds are for training, odd ones for evaluation. The
drawing prompt of an odd seed (in the text domain: each word) occurs in no even seed's sample of its domain, which its
checksum decides. It may name shape-colour pairs (HELD_OUT_PAIRS) and use sentence forms that training never shows. Two
of the thirty words of memes, which both splits have, are among the held-out words of the text domain.
"""

from dataclasses import replace

from ...sample import Sample
from . import humour, objects, reasoning, science, spatial, text
from .canvas import COLOURS, NEW_SHAPES, SHAPES
from .check import Verdict, check, check_answer
from .scene import HELD_OUT_PAIRS, Choices, Label, Placed, Thing, Truth, draw

KINDS = {  # by domain and task
    "objects": objects.KINDS,
    "text": text.KINDS,
    "science": science.KINDS,
    "spatial": spatial.KINDS,
    "humour": humour.KINDS,
    "reasoning": reasoning.KINDS,
}
DOMAINS = tuple(KINDS)
TASKS = {domain: tuple(kinds) for domain, kinds in KINDS.items()}
TRIES = 10_000  # plans that are drawn before a kind counts as not existing
LEAST_SIDE = 48  # pixels; in smaller pictures shapes cannot be distinguished


def make(domain: str, task: str, seed: int, size: tuple[int, int] = (64, 64), kind: str | None = None) -> Sample:
    """One sample. size: (width, height) in pixels. kind: a kind of the task (Truth.kind); None for any.

    Raises ValueError for a domain, task or kind that does not exist, and for a size too small.
    """
    if task not in KINDS.get(domain, ()):
        known = ", ".join(f"{d}/{t}" for d in KINDS for t in KINDS[d])
        raise ValueError(f"no samples of {domain}/{task}; there are {known}")
    if min(size) < LEAST_SIDE:
        raise ValueError(f"a picture of {size[0]} × {size[1]} is too small; the least side is {LEAST_SIDE}")
    choices = Choices(f"{domain}/{task}", seed, size)
    plan_of = choices.pick(KINDS[domain][task])
    for _ in range(TRIES):
        plan = plan_of(choices)
        if kind not in (None, plan.truth.kind):
            plan_of = choices.pick(KINDS[domain][task])
        elif choices.wants(plan.keys):
            images, picture = plan.paint()
            truth = plan.truth
            if images and picture is not None:  # an edit keeps the background, whatever else it changes
                truth = replace(truth, background="white")
            return Sample(task, domain, plan.prompt, images, picture, plan.words, truth)
    raise ValueError(f"no samples of {domain}/{task} of the kind {kind!r}")


__all__ = [
    "COLOURS",
    "DOMAINS",
    "HELD_OUT_PAIRS",
    "NEW_SHAPES",
    "SHAPES",
    "TASKS",
    "Label",
    "Placed",
    "Sample",
    "Thing",
    "Truth",
    "Verdict",
    "check",
    "check_answer",
    "draw",
    "make",
]
