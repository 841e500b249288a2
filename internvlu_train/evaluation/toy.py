"""Scores on held-out prompts of the synthetic world (odd seeds), judged by its checker."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from internvlu_core.pipeline import InternVLU

from ..toy.world import TASKS as DOMAIN_TASKS
from ..toy.world import Sample, Verdict, check, check_answer, make
from .sampling import Order, Settings, draw_all, reconstruct
from .workers import Workers

GENEVAL = ("single", "two", "counting", "colours", "position", "attribution")
NEAR_EDGE = 4  # pixels around a change of an edit that do not count as unchanged
MAX_TOKENS = 64  # of an answer or a reasoning
Progress = Callable[[str], None]
Model = InternVLU | Workers


def unseen(domain: str, task: str, count: int, settings: Settings, kind: str | None = None) -> list[Sample]:
    """The first `count` held-out samples of a task."""
    return [make(domain, task, 2 * i + 1, settings.size, kind) for i in range(count)]


def draw(model: Model, samples: list[Sample], settings: Settings, thoughts=None) -> list[np.ndarray]:
    """The picture of each sample, whose number is the seed. thoughts: the reasoning of each, if any."""
    thoughts = thoughts or [None] * len(samples)
    orders = [
        Order(sample.prompt, sample.images, thought, seed)
        for seed, (sample, thought) in enumerate(zip(samples, thoughts, strict=True))
    ]
    if isinstance(model, Workers):
        return model.draw(orders, settings, MAX_TOKENS)
    return draw_all(model, orders, settings)


def summary(samples: list[Sample], verdicts: list[Verdict]) -> dict:
    """Accuracy over all samples, by kind, by part of the verdict, and over samples with held-out pairs."""
    kinds, parts = defaultdict(list), defaultdict(list)
    for sample, verdict in zip(samples, verdicts, strict=True):
        kinds[sample.truth.kind].append(verdict.right)
        for name, right in verdict.parts.items():
            parts[name].append(right)
    held_out = [v.right for s, v in zip(samples, verdicts, strict=True) if s.truth.held_out]
    return {
        "score": share([verdict.right for verdict in verdicts]),
        "count": len(samples),
        "kinds": {kind: share(rights) for kind, rights in sorted(kinds.items())},
        "parts": {name: share(rights) for name, rights in parts.items()},
        "held_out": {"score": share(held_out) if held_out else None, "count": len(held_out)},
    }


def share(rights) -> float:
    """The fraction of True, rounded."""
    return round(float(np.mean(rights)), 4)


def judge(pictures: list[np.ndarray], samples: list[Sample]) -> list[Verdict]:
    return [check(picture, sample.truth) for picture, sample in zip(pictures, samples, strict=True)]


def geneval(model: Model, count: int, settings: Settings) -> dict:
    """`count` prompts of each of the six kinds, and the mean of the kinds.

    "shuffled": the score of pictures judged by another prompt of the same kind, which is the score of chance.
    """
    tasks = {}
    for kind in GENEVAL:
        samples = unseen("objects", "draw", count, settings, kind)
        pictures = draw(model, samples, settings)
        shuffled = judge(pictures, samples[1:] + samples[:1])
        tasks[kind] = summary(samples, judge(pictures, samples)) | {"shuffled": share([v.right for v in shuffled])}
    return {"score": share([task["score"] for task in tasks.values()]), "tasks": tasks}


def edit(model: Model, count: int, settings: Settings) -> dict:
    """Edits of objects. psnr: in decibels, of the unchanged area, against the VAE's reconstruction of the input."""
    samples = unseen("objects", "edit", count, settings)
    pictures = draw(model, samples, settings)
    levels = [unchanged_psnr(model, s, p) for s, p in zip(samples, pictures, strict=True)]
    return summary(samples, judge(pictures, samples)) | {
        "psnr": round(float(np.mean(levels)), 2),
        "psnr_at_least_25": share(np.array(levels) >= 25),
    }


def unchanged_psnr(model: Model, sample: Sample, picture: np.ndarray) -> float:
    same = unchanged(sample.images[0], sample.picture)
    reference = reconstruct(model.local if isinstance(model, Workers) else model, sample.images[0])
    error = float(np.mean((picture[same].astype(np.float64) - reference[same]) ** 2))
    return 10 * np.log10(255**2 / max(error, 1e-4))


def unchanged(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mask [H, W] of the pixels that an edit does not change, away from those that it changes."""
    changed = Image.fromarray(((before != after).any(-1) * 255).astype(np.uint8))
    return np.asarray(changed.filter(ImageFilter.MaxFilter(2 * NEAR_EDGE + 1))) == 0


def ask(model: Model, count: int, settings: Settings) -> dict:
    """Questions of each domain; the score is that of the questions about objects."""
    domains = {}
    for domain, tasks in DOMAIN_TASKS.items():
        if "ask" in tasks:
            samples = unseen(domain, "ask", count, settings)
            verdicts = [check_answer(reply(model, sample), sample.truth) for sample in samples]
            domains[domain] = summary(samples, verdicts)
    return {"score": domains["objects"]["score"], "domains": domains}


def reply(model: Model, sample: Sample) -> str:
    if isinstance(model, Workers):
        return model.write("answer", sample.prompt, sample.images, MAX_TOKENS).text
    images = [Image.fromarray(image) for image in sample.images]
    return model.answer(sample.prompt, images, max_new_tokens=MAX_TOKENS).text


def words(model: Model, count: int, settings: Settings) -> dict:
    """Held-out words of three letters; a picture is right if every letter is read back."""
    samples = unseen("text", "draw", count, settings, "word")
    result = summary(samples, judge(draw(model, samples, settings), samples))
    return result | {"score": result["parts"]["word"], "with_colour": result["score"]}


def reason(model: Model, count: int, settings: Settings) -> dict:
    """Pictures with and without the model's own reasoning before them, and the share of right reasonings."""
    samples = unseen("reasoning", "reason", count, settings)
    thoughts = [think(model, sample) for sample in samples]
    reasoned = summary(samples, judge(draw(model, samples, settings, thoughts), samples))
    without = summary(samples, judge(draw(model, samples, settings), samples))
    said = [thought.text.strip() == sample.words for thought, sample in zip(thoughts, samples, strict=True)]
    gain = round(reasoned["score"] - without["score"], 4)
    return reasoned | {"without": without, "gain": gain, "thoughts": share(said)}


def think(model: Model, sample: Sample):
    if isinstance(model, Workers):
        return model.write("reason", sample.prompt, sample.images, MAX_TOKENS)
    images = [Image.fromarray(image) for image in sample.images]
    return model.reason(sample.prompt, images, max_new_tokens=MAX_TOKENS)


def domains(model: Model, count: int, settings: Settings) -> dict:
    """Drawing and editing in every domain."""
    results = {}
    for domain, tasks in DOMAIN_TASKS.items():
        for task in set(tasks) & {"draw", "edit"}:
            samples = unseen(domain, task, count, settings)
            results[f"{domain}/{task}"] = summary(samples, judge(draw(model, samples, settings), samples))
    return {"score": share([result["score"] for result in results.values()]), "domains": dict(sorted(results.items()))}


TASKS = {"geneval": geneval, "edit": edit, "ask": ask, "words": words, "reason": reason, "domains": domains}


def evaluate(model: Model, tasks: tuple[str, ...], count: int, settings: Settings, on_task: Progress | None = None):
    """Scores by task, ready for JSON.

    model: an InternVLU, or Workers. count: held-out samples of each task, kind or domain. on_task(name) is called
    before each task.
    """
    if isinstance(model, Workers):
        for task in tasks:  # notes what is asked
            TASKS[task](model, count, settings)
        model.run()
    results = {}
    for task in tasks:
        if on_task:
            on_task(task)
        results[task] = TASKS[task](model, count, settings)
    return results
