"""The losses."""

from dataclasses import replace

import pytest
import torch

from internvlu_train import data, objectives
from internvlu_train.feed import Feed
from internvlu_train.loop import freeze
from internvlu_train.toy.presets import CPU
from support.training import OVERFIT, picture_stage, sample


def test_losses_are_weighted_1_to_20(awake):
    stage = replace(CPU["stage3"], drop_prompt=0.0, drop_all=0.0)
    assert (stage.text_weight, stage.flow_weight) == (1.0, 20.0)
    one = data.make_example(sample("reason", "Three."), awake.conditioner, stage)
    latents = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(0))
    batch = data.Batch(
        weight=1.0,
        generator=torch.Generator().manual_seed(0),
        text=data.make_token_batch([one.text], [()], awake.conditioner),
        latents=latents,
        context_tokens=data.make_token_batch([one.branches[data.FULL]], [()], awake.conditioner),
    )
    losses = objectives.losses(awake, batch, stage, 0)
    assert set(losses.parts) == {"text", "flow"}
    assert float(losses.total) == pytest.approx(float(losses.parts["text"] + 20 * losses.parts["flow"]), rel=1e-5)


def test_the_velocity_leads_from_the_picture_to_the_noise(awake, monkeypatch):
    """So that the sampler, which goes against it, arrives at the picture."""
    stage = picture_stage(samples=2, drop_prompt=0.0, drop_all=0.0)
    batch = Feed(awake, stage, torch.device("cpu")).batch(0)
    sigma, noise = torch.tensor([0.9, 0.25]), torch.randn(batch.latents.shape)

    def forward(x, timestep, *args, **kwargs):
        assert timestep.tolist() == [900, 250]
        assert torch.allclose(x - sigma[:, None, None, None] * (noise - batch.latents), batch.latents, atol=1e-5)
        return noise - batch.latents

    monkeypatch.setattr(objectives, "noise_levels", lambda *args: sigma)
    monkeypatch.setattr(objectives, "noise_like", lambda *args: noise)
    monkeypatch.setattr(awake.mmdit, "forward", forward)
    assert float(objectives.flow_loss(awake, batch, stage)) == 0


def test_the_vaes_losses_are_weighted_and_l1_is_ramped_in(awake):
    stage = CPU["vae"]
    for part in awake.vae.parameters():
        part.requires_grad_(True)
    pixels = data.to_pixels([sample("draw").picture])

    def at(step: int) -> objectives.Losses:
        return objectives.losses(awake, data.Batch(1.0, torch.Generator().manual_seed(0), pixels=pixels), stage, step)

    first, late = at(0), at(10**6)
    parts = {name: float(value.detach()) for name, value in late.parts.items()}
    full = 10 * parts["mse"] + stage.l1 * parts["l1"] + 1e-5 * parts["kl"]
    assert float(late.total) == pytest.approx(full, rel=1e-5)
    assert float(first.total) == pytest.approx(full - stage.l1 * parts["l1"] * (1 - 1 / stage.l1_ramp), rel=1e-5)


def test_a_share_of_the_vaes_pictures_is_shown_as_negatives(awake):
    def batch(share: float) -> tuple[torch.Tensor, torch.Tensor]:
        stage = replace(OVERFIT["vae"], samples=200, batch=200, negatives=share)
        feed = Feed(awake, stage, torch.device("cpu"))
        pictures = data.to_pixels([feed.examples[item.index].picture for item in feed.plan(0)])
        return feed.batch(0).pixels, pictures

    pixels, pictures = batch(0.3)
    negative = (pixels == -pictures).flatten(1).all(1)
    assert ((pixels == pictures).flatten(1).all(1) ^ negative).all()
    assert 0.2 < float(negative.float().mean()) < 0.4
    pixels, pictures = batch(0.0)
    assert pixels.equal(pictures)


def test_the_decoder_alone_learns_from_the_encoders_mode_and_noise_of_many_strengths(awake, monkeypatch):
    seen = []
    monkeypatch.setattr(awake.vae.post_quant_conv, "forward", lambda x: seen.append(x) or torch.zeros_like(x))
    deviation = tuple(1 + i / 4 for i in range(16))
    monkeypatch.setattr(awake.vae, "config", replace(awake.vae.config, latents_std=deviation))
    freeze(awake, ("vae.decoder.", "vae.post_quant_conv."))
    pixels = data.to_pixels([sample("draw").picture] * 200)
    for noise in (0.0, 0.5):
        stage = replace(CPU["vae-decoder"], noise=noise)
        objectives.losses(awake, data.Batch(1.0, torch.Generator().manual_seed(0), pixels=pixels), stage, 0)
    mode = awake.vae.encode_raw(pixels)
    assert torch.allclose(seen[0], mode, atol=1e-5)
    added = (seen[1] - mode) / torch.tensor(deviation)[:, None, None]
    assert added.std((0, 2, 3)).tolist() == pytest.approx([0.5 / 3**0.5] * 16, rel=0.15)  # alike in all channels
    strengths = added.flatten(1).std(1)
    assert float(strengths.min()) < 0.05 and 0.45 < float(strengths.max()) < 0.55
