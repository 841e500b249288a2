"""A toy world of flat shapes: exercises of the report's five domains, each with a truth that a program can judge.

Samples follow from (domain, task, seed, size) alone. Even seeds are for training, odd ones for evaluation: the drawing
prompt of an odd seed (of the text domain: every word) is in no even seed's sample of its domain, by its checksum, and
may name shape-colour pairs (HELD_OUT_PAIRS) and use sentence forms that training never shows. Two of the thirty words
that memes have in both splits are among evaluation's of the text domain.
"""

from dataclasses import replace

from ..sample import Sample
from . import humour, objects, reasoning, science, spatial, text
from .canvas import COLOURS, NEW_SHAPES, SHAPES
from .check import Verdict, check, check_answer
from .scene import HELD_OUT_PAIRS, Chance, Label, Placed, Thing, Truth, draw

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
TRIES = 10_000  # plans that are drawn before a kind is taken not to exist
LEAST_SIDE = 48  # pixels; below it shapes cannot be told apart


def make(domain: str, task: str, seed: int, size: tuple[int, int] = (64, 64), kind: str | None = None) -> Sample:
    """One sample. size: (width, height) in pixels. kind: only this kind (Truth.kind) of the task's; else any.

    Raises ValueError for a domain, task or kind that does not exist, and for a size too small.
    """
    if task not in KINDS.get(domain, ()):
        known = ", ".join(f"{d}/{t}" for d in KINDS for t in KINDS[d])
        raise ValueError(f"no samples of {domain}/{task}; there are {known}")
    if min(size) < LEAST_SIDE:
        raise ValueError(f"a picture of {size[0]} × {size[1]} is too small; the least side is {LEAST_SIDE}")
    chance = Chance(f"{domain}/{task}", seed, size)
    plan_of = chance.pick(KINDS[domain][task])
    for _ in range(TRIES):
        plan = plan_of(chance)
        if kind not in (None, plan.truth.kind):
            plan_of = chance.pick(KINDS[domain][task])
        elif chance.wants(plan.keys):
            images, picture = plan.paint()
            truth = plan.truth
            if images and picture is not None:  # an edit: whatever else it changes, the background stays
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
