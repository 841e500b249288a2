"""Training conditions the MMDiT as inference does: contexts, masks, attention, noise levels, timesteps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import TextResult
from internvlu_core.imaging import vit_tiles
from internvlu_core.sampling import flow_sigmas
from internvlu_train import data, objectives
from internvlu_train.attention import masked_attention
from internvlu_train.feed import Feed
from internvlu_train.toy.presets import CPU, PRESETS, SIZES
from support.tensors import relative
from support.training import picture_stage, sample


@pytest.mark.parametrize(
    ("task", "words", "images"),
    [("draw", "", 0), ("edit", "", 1), ("edit", "", 2), ("reason", "One more is three.", 0), ("reason", "Red.", 1)],
)
def test_contexts_are_those_of_inference(awake, task, words, images):
    """In a padded batch with another row. The cuts and pads of reasoning are among them."""
    one = sample(task, words, images)
    other = replace(one, prompt="a rather longer prompt for a picture of two red stars", words=2 * words)
    conditioner = awake.conditioner
    rows = [data.branch_rows(each, conditioner) for each in (one, other)]
    tiles = [vit_tiles(Image.fromarray(image), conditioner.config.processor) for image in one.images]
    features = conditioner.image_features(tiles, "cpu", torch.float32)
    thought = TextResult(words, data.response_ids(words, conditioner)) if words else None
    context = conditioner.context(one.prompt, features, [], device="cpu", reasoning=thought)
    for branch in (data.FULL, data.PARTIAL, data.UNCONDITIONAL):
        pair = [row[branch] for row in rows]
        with torch.no_grad():
            batch = objectives.context_of(awake, data.make_token_batch(pair, [one.images, other.images], conditioner))
        expected = getattr(context, branch)
        length = len(expected.hidden)
        assert int(batch.mask[0].sum()) == length
        assert relative(batch.hidden[0, :length], expected.hidden) < 1e-5
        if data.batch_key(data.Example(None, rows[0], one.images, one.picture), branch) == data.batch_key(
            data.Example(None, rows[1], other.images, other.picture), branch
        ):
            assert batch.image_mask[:length].tolist() == expected.image_mask.tolist()
            assert batch.image_grids == expected.image_grids


@pytest.mark.parametrize("images", [0, 1])
def test_padding_does_not_change_a_velocity(awake, images):
    chance = torch.Generator().manual_seed(0)
    config = awake.config.mmdit
    x = torch.randn(1, 16, 6, 8, generator=chance)
    references = [torch.randn(1, 16, 4, 4, generator=chance) for _ in range(images)]
    hidden = torch.randn(25, config.context_size, generator=chance)
    image_mask = torch.zeros(25, dtype=torch.bool)
    image_mask[3 : 3 + 16 * images] = True
    time = torch.tensor([700.0])
    grids = [awake.config.tile_grid] * images
    alone = awake.mmdit(x, time, hidden[None], image_mask, grids, references)
    longer = torch.randn(31, config.context_size, generator=chance)
    masks = [image_mask, torch.cat([image_mask, image_mask.new_zeros(6)])]
    context = objectives.make_context(awake, [hidden, longer], masks)
    together = awake.mmdit(
        x.expand(2, -1, -1, -1),
        time.expand(2),
        context.hidden,
        context.image_mask,
        context.image_grids,
        [r.expand(2, -1, -1, -1) for r in references],
        mask=objectives.joint_mask(awake, x, references, context.mask),
    )
    assert relative(together[:1], alone) < 1e-5


def test_attention_is_torchs():
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0)).unbind()
    fused = torch.nn.functional.scaled_dot_product_attention
    assert relative(masked_attention(q, k, v, is_causal=True), fused(q, k, v, is_causal=True)) < 1e-5
    mask = torch.arange(7) < torch.tensor([[5], [7]])
    assert relative(masked_attention(q, k, v, mask=mask), fused(q, k, v, mask[:, None, None])) < 1e-5


def test_noise_levels_are_shifted_as_the_samplers():
    """The σ at the middle of both is 0.75: three quarters of the way to noise."""
    stage = replace(CPU["stage1"], even=0.0)
    sigma = objectives.noise_levels(20_001, stage, torch.Generator().manual_seed(0))
    assert abs(float(sigma.median()) - float(flow_sigmas(20, 3.0)[10])) < 0.01
    logits = (sigma / (1 - sigma)).log()  # a shift by m moves a logit by log m
    assert abs(float(logits.mean()) - np.log(3)) < 0.03 and abs(float(logits.std()) - 1) < 0.03
    shifts = {stage.shift for preset in PRESETS.values() for stage in preset.values() if hasattr(stage, "shift")}
    assert shifts == {3.0} == {sizes.flow_shift for sizes in SIZES.values()}


def test_the_samplers_first_levels_are_trained():
    """Of the normal alone not one in a thousand is as high as the first three of 20 steps."""
    sigma = objectives.noise_levels(20_000, CPU["stage1"], torch.Generator().manual_seed(0))
    first = float(flow_sigmas(20, 3.0)[2])
    even = objectives.noise_levels(20_000, replace(CPU["stage1"], even=1.0), torch.Generator().manual_seed(0))
    assert abs(float((even > first).float().mean()) - 0.1) < 0.01  # 2 of 20
    assert float((sigma > first).float().mean()) > 0.02 and float(sigma.max()) > 0.999


def test_timesteps_are_those_of_inference(awake, monkeypatch):
    """Whole, and not rounded to bfloat16: what only ever saw multiples of 4 draws nothing in float32, at 983, say."""
    seen = []
    monkeypatch.setattr(awake.mmdit, "forward", lambda x, timestep, *args, **kwargs: seen.append(timestep) or x)
    stage = picture_stage(samples=64, batch=64, even=1.0)
    objectives.flow_loss(awake, Feed(awake, stage, torch.device("cpu")).batch(0), stage)
    (times,) = seen
    assert torch.equal(times, times.trunc()) and {int(t) % 4 for t in times if t > 512} == {0, 1, 2, 3}
