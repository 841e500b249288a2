"""Examples that other processes make and a device holds are those of Feed."""

from dataclasses import replace

import pytest
import torch

from internvlu_core import InputError
from internvlu_train import objectives
from internvlu_train.feed import Feed, hidden_key
from internvlu_train.loop import Run
from internvlu_train.settings import TextStage, VAEStage
from internvlu_train.toy import resident
from internvlu_train.toy.resident import Makers, ResidentFeed
from support.tensors import relative
from support.training import LEARN, entries, picture_stage

STAGE = picture_stage(
    tasks=(("draw", 2), ("edit", 1), ("reason", 1)),
    sides=((64, 64), (64, 48)),
    samples=40,
    batch=8,
    drop_prompt=0.2,
    drop_all=0.2,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def makers(fresh):
    made = Makers(fresh, 2)
    yield made
    made.close()


def all_batches(feed):
    return [feed.batch(number) for number in range(len(feed.plans) or (feed.batch(0) and len(feed.plans)))]


def test_each_picture_has_its_own_conditioning(makers, awake, monkeypatch):
    monkeypatch.setattr(resident, "ENCODED", 5)  # so that several parts are encoded
    feed, other = ResidentFeed(makers, awake, STAGE, CPU), Feed(awake, STAGE, CPU)
    known = {tuple(latents.flatten()[:20].tolist()): index for index, latents in other.cache.latents.items()}
    seen, branches = [], set()
    for batch, (_, branch, _) in zip(all_batches(feed), list(feed.plans), strict=True):
        assert batch.weight == len(batch.latents) / STAGE.batch
        rounded = batch.latents.flatten(1)[:, :20].tolist()
        for row, key in enumerate(rounded):
            index = min(known, key=lambda one: sum(abs(a - b) for a, b in zip(one, key, strict=True)))
            index = known[index]
            seen.append(index)
            branches.add(branch)
            example = other.examples[index]
            assert relative(batch.latents[row], other.cache.latents[index]) < 1e-4
            wanted = other.cache.hidden[hidden_key(example.branches[branch], index)]
            assert relative(batch.context.hidden[row][batch.context.mask[row]], wanted) < 1e-2  # tiles in float16
            positions = [i for i, on in enumerate(batch.context.image_mask.tolist()) if on]
            assert positions == list(example.branches[branch].image_positions)
            assert len(batch.references) == (0 if branch == "unconditional" else len(example.images))
            for made, kept in zip(batch.references, other.cache.references[index], strict=False):
                assert relative(made[row], kept) < 1e-2
    assert sorted(seen) == list(range(40)) and branches == {"full", "partial", "unconditional"}


@pytest.mark.parametrize("kind", [pytest.param("pictures", marks=pytest.mark.slow), "both networks", "words", "vae"])
def test_a_stage_is_trained_from_the_device(makers, fresh, tmp_path, kind):
    """And goes on from where it was saved with the batches that would have come."""
    settings = {"samples": 24, "steps": 6, "batch": 6, "save_every": 3}
    tasks = (("draw", 1), ("edit", 1), ("ask", 2), ("reason", 1))
    stage = {
        "pictures": replace(STAGE, **settings),
        "both networks": replace(STAGE, **settings, trained=("vlm.", "mmdit."), tasks=tasks),
        "words": TextStage(trained=("vlm.",), tasks=tasks, **LEARN | settings),
        "vae": VAEStage(trained=("vae.",), tasks=(("draw", 1),), negatives=0.5, **LEARN | settings),
    }[kind]

    def feed(*arguments):
        return ResidentFeed(makers, *arguments)

    whole = Run(stage, fresh, tmp_path / "whole", make_feed=feed)
    whole.train()
    assert (tmp_path / "whole" / "checkpoint").is_dir() and not (tmp_path / "whole" / "cache.pt").exists()
    parts = Run(stage, fresh, tmp_path / "parts", make_feed=feed)
    for _ in range(3):
        parts.unlogged.append(parts._take_step())
    parts._save()
    resumed = Run(stage, fresh, tmp_path / "parts", make_feed=feed)
    assert resumed.step == 3
    resumed.train()
    for name, value in whole.ema.items():
        assert torch.allclose(resumed.ema[name], value, atol=1e-5), name
    losses = [entry["loss"] for entry in entries(tmp_path / "whole")]
    assert losses[3:] == pytest.approx([entry["loss"] for entry in entries(tmp_path / "parts")][-3:], abs=1e-5)


def test_padding_is_not_trained(makers, awake):
    """Rows of two chunks, of which one is shorter than the other."""
    stage = TextStage(trained=("vlm.",), tasks=(("ask", 1), ("reason", 1)), samples=resident.CHUNK + 30, batch=400)
    feed, other = ResidentFeed(makers, awake, stage, CPU), Feed(awake, stage, CPU)
    total = sum(int(batch.text.trained.sum()) for batch in all_batches(feed))
    assert total == sum(sum(example.text.trained) for example in other.examples)
    assert objectives.text_loss(awake, feed.batch(len(feed.plans)).text).isfinite()


def test_what_a_process_cannot_make_is_named(makers, awake):
    with pytest.raises(InputError, match="'ask'"):
        ResidentFeed(makers, awake, replace(STAGE, tasks=(("ask", 1),)), CPU)
