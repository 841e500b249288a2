"""Scores on held-out prompts of the synthetic world (odd seeds), judged by its checker."""

import multiprocessing
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
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


def geneval_kind(model: Model, count: int, settings: Settings, kind: str) -> dict:
    """Drawings of objects of one kind.

    "shuffled": the score of pictures judged by another prompt of the same kind, which is the score of chance.
    """
    samples = unseen("objects", "draw", count, settings, kind)
    pictures = draw(model, samples, settings)
    shuffled = judge(pictures, samples[1:] + samples[:1])
    return summary(samples, judge(pictures, samples)) | {"shuffled": share([v.right for v in shuffled])}


def mean_of_tasks(tasks: dict[str, dict]) -> dict:
    return {"score": share([task["score"] for task in tasks.values()]), "tasks": tasks}


def edit(model: Model, count: int, settings: Settings, _part: str = "") -> dict:
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


def questions(model: Model, count: int, settings: Settings, domain: str) -> dict:
    samples = unseen(domain, "ask", count, settings)
    said = zip(replies(model, samples), samples, strict=True)
    return summary(samples, [check_answer(answer, sample.truth) for answer, sample in said])


def replies(model: Model, samples: list[Sample]) -> list[str]:
    """The answer to each question, as reply gives it; many are written at once."""
    return [outcome.unwrap().text for outcome in model.answer_many(map(request, samples), ordered=True)]


def request(sample: Sample) -> dict:
    images = [Image.fromarray(image) for image in sample.images]
    return {"prompt": sample.prompt, "images": images, "max_new_tokens": MAX_TOKENS}


def reply(model: InternVLU, sample: Sample) -> str:
    images = [Image.fromarray(image) for image in sample.images]
    return model.answer(sample.prompt, images, max_new_tokens=MAX_TOKENS).text


def words(model: Model, count: int, settings: Settings, _part: str = "") -> dict:
    """Held-out words of three letters; a picture is right if every letter is read back."""
    samples = unseen("text", "draw", count, settings, "word")
    result = summary(samples, judge(draw(model, samples, settings), samples))
    return result | {"score": result["parts"]["word"], "with_colour": result["score"]}


def reason(model: Model, count: int, settings: Settings, _part: str = "") -> dict:
    """Pictures with and without the model's own reasoning before them, and the share of right reasonings."""
    samples = unseen("reasoning", "reason", count, settings)
    thoughts = think_all(model, samples)
    reasoned = summary(samples, judge(draw(model, samples, settings, thoughts), samples))
    without = summary(samples, judge(draw(model, samples, settings), samples))
    said = [thought.text.strip() == sample.words for thought, sample in zip(thoughts, samples, strict=True)]
    gain = round(reasoned["score"] - without["score"], 4)
    return reasoned | {"without": without, "gain": gain, "thoughts": share(said)}


def think(model: InternVLU, sample: Sample):
    images = [Image.fromarray(image) for image in sample.images]
    return model.reason(sample.prompt, images, max_new_tokens=MAX_TOKENS)


def think_all(model: Model, samples: list[Sample]) -> list:
    """The reasoning before each picture, as think writes it; many are written at once."""
    return [outcome.unwrap() for outcome in model.reason_many(map(request, samples), ordered=True)]


def domain(model: Model, count: int, settings: Settings, part: str) -> dict:
    """Drawing or editing in one domain. part: "DOMAIN/TASK"."""
    samples = unseen(*part.split("/"), count, settings)
    return summary(samples, judge(draw(model, samples, settings), samples))


def figures(model: Model, count: int, settings: Settings, part: str) -> dict:
    """Drawings of "diagrams", "blocks" (stacks of them, from two sides) or "memes"."""
    name, kinds = FIGURES[part]
    samples = []
    for number, kind in enumerate(kinds):
        samples += unseen(name, "draw", len(range(number, count, len(kinds))), settings, kind)
    return summary(samples, judge(draw(model, samples, settings), samples))


def at_size(model: Model, count: int, settings: Settings, part: str) -> dict:
    """Objects of one kind in a picture of another size. part: "WIDTHxHEIGHT KIND"."""
    size, kind = part.split()
    width, height = map(int, size.split("x"))
    return geneval_kind(model, count, replace(settings, size=(width, height)), kind)


def sizes(parts: dict[str, dict]) -> dict:
    """The toy GenEval score at each size, and the lowest of them."""
    found = {
        size: mean_of_tasks({kind: parts[f"{size} {kind}"] for kind in GENEVAL})
        for size in dict.fromkeys(part.split()[0] for part in parts)
    }
    return {"score": min(result["score"] for result in found.values()), "sizes": found}


FIGURES = {"diagrams": ("science", (None,)), "blocks": ("spatial", ("stacks", "front")), "memes": ("humour", (None,))}
SIZES = ("64x64", "96x48", "48x96", "80x80")


@dataclass(frozen=True)
class Task:
    """A task and its parts, which can be evaluated in different processes.

    one(model, count, settings, part): the result of a part. combine: the result of all from those of the parts.
    """

    one: Callable[[Model, int, Settings, str], dict]
    parts: tuple[str, ...] = ("",)
    combine: Callable[[dict[str, dict]], dict] = lambda parts: parts[""]

    def __call__(self, model: Model, count: int, settings: Settings) -> dict:
        return self.combine({part: self.one(model, count, settings, part) for part in self.parts})


TASKS = {
    "geneval": Task(geneval_kind, GENEVAL, mean_of_tasks),
    "edit": Task(edit),
    "ask": Task(
        questions,
        tuple(name for name, tasks in DOMAIN_TASKS.items() if "ask" in tasks),
        lambda parts: {"score": parts["objects"]["score"], "domains": parts},
    ),
    "words": Task(words),
    "reason": Task(reason),
    "domains": Task(
        domain,
        tuple(f"{name}/{task}" for name, tasks in DOMAIN_TASKS.items() for task in ("draw", "edit") if task in tasks),
        lambda parts: {"score": share([part["score"] for part in parts.values()]), "domains": parts},
    ),
    "figures": Task(figures, tuple(FIGURES), mean_of_tasks),
    "sizes": Task(at_size, tuple(f"{size} {kind}" for size in SIZES for kind in GENEVAL), sizes),
}


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


def evaluate_in(
    processes: int, open_model: Callable[[], InternVLU], tasks: tuple[str, ...], count: int, settings: Settings
) -> dict[str, dict]:
    """As evaluate, in several processes, each with a model of its own. open_model: a function that can be pickled."""
    parts = [(task, part) for task in tasks for part in TASKS[task].parts]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _open, (open_model,)) as pool:
        waiting = {(task, part): pool.submit(_evaluate_part, task, part, count, settings) for task, part in parts}
        found = {key: each.result() for key, each in waiting.items()}
    return {task: TASKS[task].combine({part: found[task, part] for part in TASKS[task].parts}) for task in tasks}


_model: InternVLU | None = None  # of a process of evaluate_in


def _open(open_model: Callable[[], InternVLU]):
    global _model
    torch.set_num_threads(1)
    _model = open_model()


def _evaluate_part(task: str, part: str, count: int, settings: Settings) -> dict:
    return TASKS[task].one(_model, count, settings, part)
