"""The toy checkpoint is right as often as it is said to be."""

from pathlib import Path

import pytest
import torch

from internvlu_core import InternVLU
from internvlu_train.evaluation import toy
from internvlu_train.evaluation.sampling import Settings
from internvlu_train.toy.world import check_answer

TOY = Path(__file__).resolve().parents[2] / "demo" / "InternVL-U-toy"
SETTINGS = Settings((64, 64))


@pytest.fixture(scope="module")
def model():
    return InternVLU.from_pretrained(TOY, dtype=torch.float32)


def draw(model, domain, task, count, kind=None):
    """The summary of pictures of unseen prompts, and the share that is right by the next one's prompt."""
    samples = toy.unseen(domain, task, count, SETTINGS, kind)
    pictures = toy.draw(model, samples, SETTINGS)
    shuffled = toy.judge(pictures, samples[1:] + samples[:1])
    return toy.summary(samples, toy.judge(pictures, samples)), toy.share([verdict.right for verdict in shuffled])


def test_it_draws_one_object_and_not_by_chance(model):
    """Pictures judged by other prompts are right in one of a hundred."""
    task, by_chance = draw(model, "objects", "draw", 24, "single")
    assert task["score"] >= 0.9 and task["parts"]["place"] >= 0.9 and task["parts"]["colour"] >= 0.9
    assert by_chance <= 0.05


def test_it_writes_words_that_it_never_saw(model):
    task, by_chance = draw(model, "text", "draw", 20, "word")
    assert task["score"] >= 0.8 and by_chance == 0


@pytest.mark.slow
def test_it_gives_each_of_two_objects_its_own_place_and_colour(model):
    for kind in ("position", "attribution", "two"):
        task, _ = draw(model, "objects", "draw", 20, kind)
        assert task["score"] >= 0.75, (kind, task["parts"])


@pytest.mark.slow
def test_it_draws_as_many_as_it_is_told(model):
    task, by_chance = draw(model, "objects", "draw", 20, "counting")
    assert task["score"] >= 0.8 and by_chance <= 0.1


def test_it_describes_and_finds(model):
    samples = toy.unseen("objects", "ask", 60, SETTINGS)
    verdicts = [check_answer(toy.reply(model, sample), sample.truth) for sample in samples]
    task = toy.summary(samples, verdicts)
    assert task["score"] >= 0.85, task["kinds"]
    assert task["kinds"]["there"] >= 0.8
    assert all(right >= 0.6 for right in task["kinds"].values()), task["kinds"]


@pytest.mark.slow
def test_it_edits_as_it_is_told_in_words_it_never_saw(model):
    samples = toy.unseen("objects", "edit", 20, SETTINGS)
    assert sum(sample.prompt.startswith("please ") for sample in samples) >= 3
    task, _ = draw(model, "objects", "edit", 20)
    assert task["score"] >= 0.9, task["kinds"]


@pytest.mark.slow
def test_it_draws_what_it_thought(model):
    result = toy.reason(model, 16, SETTINGS)
    assert result["score"] >= 0.85 and result["gain"] >= 0.6 and result["thoughts"] >= 0.9
