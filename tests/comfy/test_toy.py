"""The pack's toy checkpoint through the queue of a real ComfyUI server, judged by the toy world's checker.

It draws by no means everything right. But a picture of anything else, or of another prompt, is right next to never.
"""

import numpy as np
import pytest
from PIL import Image

from internvlu_train.toy.world import check, check_answer, make
from support import toy
from support.workflows import change, picture_of, workflow

DRAWN, ASKED = 5, 8  # of each kind


def samples(count: int, domain: str, task: str, kind: str | None, images: bool) -> list:
    """Unseen ones, with pictures or without."""
    made = (make(domain, task, seed, kind=kind) for seed in range(1, 1000, 2))
    wanted = (sample for sample in made if bool(sample.images) == images)
    return [next(wanted) for _ in range(count)]


def run(server, tmp_path, name: str, sample, seed: int):
    prompt = workflow(name)
    toy.fit(prompt, name, sample.prompt)
    changes = {"noise_seed" if name == "advanced_sampling" else "seed": seed}
    if sample.images:
        Image.fromarray(sample.images[0]).save(tmp_path / f"{name}{seed}.png")
        changes["image"] = server.upload_image(tmp_path / f"{name}{seed}.png")
    change(prompt, **changes)
    return server.run(prompt)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "domain", "task", "kind", "least"),
    [
        ("text_to_image", "objects", "draw", "single", 3),
        slow("text_to_image", "objects", "draw", "counting", 4),
        slow("text_to_image", "objects", "draw", "position", 3),
        slow("text_to_image", "objects", "draw", "attribution", 3),
        ("text_to_image", "text", "draw", "word", 3),
        ("ksampler", "objects", "draw", "single", 3),
        ("edit", "objects", "edit", "recolour", 4),
        ("advanced_sampling", "objects", "edit", "remove", 4),
        ("reason_then_draw", "reasoning", "reason", None, 4),
        ("reason_then_edit", "reasoning", "reason", None, 4),
    ],
)
def test_pictures_show_what_their_prompts_say(server, tmp_path, name, domain, task, kind, least):
    made = samples(DRAWN, domain, task, kind, "edit" in name or name == "advanced_sampling")
    results = [run(server, tmp_path, name, sample, seed) for seed, sample in enumerate(made)]
    pictures = [np.asarray(picture_of(server, result, "6")) for result in results]
    verdicts = [check(picture, sample.truth) for picture, sample in zip(pictures, made, strict=True)]
    assert sum(verdict.right for verdict in verdicts) >= least, verdicts


@pytest.mark.parametrize(
    ("kind", "least"), [("describe", 5), ("colour", 5), ("shape", 5), ("where", 5), ("relation", 5)]
)
def test_questions_are_answered(server, tmp_path, kind, least):
    made = samples(ASKED, "objects", "ask", kind, True)
    answers = [next(server.texts(run(server, tmp_path, "ask", sample, 0))) for sample in made]
    rights = [check_answer(answer, sample.truth).right for answer, sample in zip(answers, made, strict=True)]
    assert sum(rights) >= least, answers
