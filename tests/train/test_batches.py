"""From samples to micro-batches."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from internvlu_core import InputError
from internvlu_train import data, feed
from internvlu_train.feed import Feed
from internvlu_train.storage import Networks
from internvlu_train.toy.presets import CPU
from internvlu_train.toy.world import mixture
from support.training import picture_stage, sample


def test_branches_are_dropped_as_often_as_asked(awake):
    """Each example occurs once in an epoch, and its branch is drawn anew in each epoch."""
    edits = [data.make_example(sample("edit", images=1), awake.conditioner, picture_stage())] * 2000
    for stage in (CPU["stage1"], CPU["stage2"], CPU["stage3"]):
        assert stage.drop_prompt == stage.drop_all == 0.05
    stage = picture_stage(drop_prompt=0.1, drop_all=0.3)
    items = [item for batch in data.plan_epoch(edits, stage, 0) for item in batch]
    assert sorted(item.index for item in items) == list(range(2000))
    count = Counter(item.branch for item in items)
    assert abs(count[data.PARTIAL] - 200) < 50 and abs(count[data.UNCONDITIONAL] - 600) < 80
    other = {item.index: item.branch for batch in data.plan_epoch(edits, stage, 1) for item in batch}
    assert any(other[item.index] != item.branch for item in items)
    never = data.plan_epoch(edits, picture_stage(drop_prompt=0.0, drop_all=0.0), 0)
    assert {item.branch for batch in never for item in batch} == {data.FULL}


def test_a_dropped_picture_is_trained_without_its_prompt_and_images(fresh):
    """Through to the batch: `unconditional` has neither, `partial` has the images and their latents."""
    networks = Networks(fresh)
    for drops, references, layout in (((1.0, 0.0), 1, 16), ((0.0, 1.0), 0, 0)):
        stage = picture_stage(tasks=(("edit", 1),), drop_prompt=drops[0], drop_all=drops[1], trained=("vlm.", "mmdit."))
        batch = Feed(networks, stage, torch.device("cpu")).batch(0)
        text = networks.conditioner.tokenizer.decode(batch.context_tokens.ids[0].tolist())
        assert ("Generate an image based on reference images." in text) == bool(references)
        assert ("Here is a random image" in text) != bool(references)
        assert len(batch.references) == references and int(batch.context_tokens.image_mask[0].sum()) == layout


def test_cached_conditioning_is_of_an_examples_own_images(awake, monkeypatch):
    """Two edits with one instruction share what no image is in: the unconditional branch."""
    one = sample("edit", images=1)
    other = replace(one, images=(255 - one.images[0],))
    monkeypatch.setattr(feed, "samples_of", lambda stage, networks: [one, other])
    made = Feed(awake, picture_stage(), torch.device("cpu"))
    for branch, alike in ((data.FULL, False), (data.PARTIAL, False), (data.UNCONDITIONAL, True)):
        keys = [feed.hidden_key(example.branches[branch], index) for index, example in enumerate(made.examples)]
        first, second = (made.cache.hidden[key] for key in keys)
        assert torch.equal(first, second) == alike, branch
    assert len(made.cache.hidden) == 5


def test_batches_are_of_one_structure_and_about_one_length(awake):
    examples = [
        data.make_example(each, awake.conditioner, CPU["stage3"])
        for each in (sample("draw"), sample("edit", images=1), sample("ask", "Two.", 1), sample("reason", "Three."))
    ] * 9
    examples += [
        data.make_example(sample("ask", "Orange."), awake.conditioner, CPU["stage3"])
    ]  # a question without a picture
    for batch in data.plan_epoch(examples, replace(CPU["stage3"], batch=4), 0):
        chosen = [(examples[item.index], item.branch) for item in batch]
        assert len(batch) <= 4 and len({data.batch_key(*each) for each in chosen}) == 1
        lengths = [data.length(*each) for each in chosen]
        assert max(lengths) - min(lengths) < 3 * data.LENGTH_STEP


def test_only_answers_are_trained_and_end_the_turn(awake):
    text = data.text_row(sample("ask", "Two red stars.", 1), awake.conditioner)
    trained = [token for token, on in zip(text.ids, text.trained, strict=True) if on]
    tokenizer = awake.conditioner.tokenizer
    assert tokenizer.decode(trained, keep=("<|im_end|>",)) == "Two red stars.<|im_end|>"
    prompt = data.text_row(sample("draw"), awake.conditioner)
    assert sum(prompt.trained) == len(prompt.ids) - prompt.start


def test_samples_of_which_nothing_is_learnt_are_refused(awake):
    with pytest.raises(InputError, match="'ask'"):
        data.make_example(sample("ask", "Two.", 1), awake.conditioner, CPU["stage1"])
    with pytest.raises(InputError, match="'ask'"):
        data.make_example(sample("ask", "Orange."), awake.conditioner, CPU["vae"])
    with pytest.raises(InputError, match="'sing'"):
        next(mixture.samples(picture_stage(tasks=(("sing", 1),))))
