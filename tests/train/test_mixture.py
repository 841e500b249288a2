"""Which synthetic samples a stage is trained on, and in what shares."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from internvlu_core import InputError
from internvlu_train.toy import world
from internvlu_train.toy.presets import PRESETS
from internvlu_train.toy.world import mixture
from support.training import picture_stage


@pytest.mark.parametrize("preset", PRESETS)
def test_tasks_have_the_reports_shares(preset, monkeypatch):
    monkeypatch.setattr(mixture, "make", lambda domain, task, seed, size, kind: task)
    stages = PRESETS[preset]
    for name in ("stage1", "stage2"):
        count = Counter(mixture.samples(replace(stages[name], samples=500)))
        assert count == {"draw": 400, "edit": 100}
    count = Counter(mixture.samples(replace(stages["stage3"], samples=1200)))
    assert count["draw"] + count["reason"] == count["edit"] == (count["ask"] + count["caption"]) / 2 == 300
    assert count["reason"] >= 75


def test_stage_0_draws_one_object_at_a_time():
    for stages in PRESETS.values():
        made = list(mixture.samples(replace(stages["stage0"], samples=40)))
        assert Counter(one.truth.kind for one in made) == {"single": 30, "colours": 10}
        assert all(len(one.truth.things) == 1 for one in made)


def cycle(stage):
    """(task, domain, kind) of each sample of a stage's first cycle."""
    orders = list(mixture.orders(replace(stage, samples=sum(share for _, share in stage.tasks))))
    return [(task, domain, world.make(domain, task, *rest).truth.kind) for domain, task, *rest in orders]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_searching_is_practised_nearly_alone(preset):
    """Among all other questions it stays a guess."""
    made = cycle(preset["search"])
    assert [kind for *_, kind in made[:6]] == ["relation", "where", "describe", "relation", "colour", "shape"]
    others = {("ask", domain): 1 for domain in ("text", "science", "spatial", "humour", "reasoning")}
    assert Counter(one[:2] for one in made) == {("ask", "objects"): 10, ("reason", "reasoning"): 2} | others


def test_sizes_are_one_in_stage_1_and_many_in_stage_2():
    for stages in PRESETS.values():
        assert len(stages["stage1"].sides) == 1 and len({w / h for w, h in stages["stage2"].sides}) >= 5
    made = mixture.samples(picture_stage(sides=((64, 64), (48, 80)), samples=40))
    assert {one.picture.shape for one in made} == {(64, 64, 3), (80, 48, 3)}


def test_other_sizes_can_be_those_of_some_domains_alone():
    stage = picture_stage(domains=(("objects", 1), ("text", 1)), sides=((64, 64), (48, 80)), samples=8)
    every = {("objects", (64, 64)), ("objects", (48, 80)), ("text", (64, 64)), ("text", (48, 80))}
    sizes = [
        {(domain, size) for domain, _, _, size, _ in mixture.orders(each)}
        for each in (stage, replace(stage, sides_of=("objects",)))
    ]
    assert sizes == [every, every - {("text", (48, 80))}]
    with pytest.raises(InputError, match="sides_of has 'things'"):
        list(mixture.orders(replace(stage, sides_of=("things",))))


def test_samples_are_the_same_from_several_processes(monkeypatch):
    stage = picture_stage(samples=6)
    alone = list(mixture.samples(stage))
    monkeypatch.setattr(mixture, "WORTH_WORKERS", 1)
    monkeypatch.setattr(mixture.os, "cpu_count", lambda: 2)
    divided = list(mixture.samples(stage))
    assert [one.prompt for one in divided] == [one.prompt for one in alone]
    assert all(np.array_equal(one.picture, other.picture) for one, other in zip(divided, alone, strict=True))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_letters_are_practised_nearly_alone(preset):
    made = cycle(replace(preset["words"], tasks=(("draw", 40),)))
    assert Counter(domain for _, domain, _ in made) == {"text": 30, "objects": 10}
    assert {kind for _, domain, kind in made if domain == "text"} == {"word"}


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("binding", {"word": 9, "single": 3, "position": 3, "two": 3, "attribution": 3, "counting": 2}),
        ("pairs", {"word": 3, "single": 9, "position": 1, "two": 4, "attribution": 3, "counting": 4}),
    ],
)
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_binding_is_practised_on_what_has_several_places_and_keeps_the_rest_alive(preset, name, drawn):
    made = cycle(preset[name])
    assert preset[name].muon
    assert Counter(kind for task, _, kind in made if task == "draw") == drawn
    assert Counter(one[:2] for one in made if one[0] != "draw") == {("edit", "objects"): 3, ("reason", "reasoning"): 2}
    assert [kind for task, _, kind in made if task == "edit"][:2] == ["move", "replace"]


def test_kinds_are_taken_in_turn():
    stage = picture_stage(domains=(("objects", 1), ("text", 1)), kinds=("two", ""), samples=8)
    orders = [(domain, kind) for domain, _, _, _, kind in mixture.orders(stage)]
    assert orders == [("objects", "two"), ("text", None)] * 4


def test_a_task_can_name_its_domain():
    stage = picture_stage(tasks=(("draw", 2), ("edit/text", 1)), domains=(("objects", 1), ("text", 1)), samples=6)
    orders = [(domain, task) for domain, task, *_ in mixture.orders(stage)]
    assert orders == [("objects", "draw"), ("text", "draw"), ("text", "edit")] * 2
    with pytest.raises(InputError, match="'edit/science'"):
        list(mixture.orders(replace(stage, tasks=(("edit/science", 1),))))


def test_training_never_sees_evaluations_seeds(monkeypatch):
    seeds = []
    monkeypatch.setattr(mixture, "make", lambda domain, task, seed, size, kind: seeds.append(seed))
    for seed in (0, 1):
        list(mixture.samples(picture_stage(samples=50, seed=seed)))
    assert len(set(seeds)) == 100 and not any(seed % 2 for seed in seeds)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_vae_is_smoothed_before_its_decoder_learns_alone(preset):
    assert list(preset)[:3] == ["vae", "vae-smooth", "vae-decoder"]
    first, smooth, decoder = (preset[name] for name in ("vae", "vae-smooth", "vae-decoder"))
    assert (first.kl, smooth.kl) == (1e-5, 1e-3)
    assert (first.negatives, smooth.negatives, decoder.negatives) == (0, 0.25, 0.1)
    assert (first.noise, smooth.noise, decoder.noise) == (0, 0, 0.2)
    for stage in (smooth, decoder):  # 3 of 8 may have another background than white, and the rest are of all domains
        made = [world.make(*order).truth.kind for order in mixture.orders(replace(stage, samples=80))]
        assert 30 <= made.count("single") <= 36 and len(set(made)) > 12
