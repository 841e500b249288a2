"""Stock nodes that cannot work, and what they do instead: the rows "Cannot work" of docs/interop.md."""

from functools import partial

import pytest
import torch

from support.bench import SHAPE, STEPS, assert_equal, latent_mask, left_half, one_forward_a_step, picture, simple_sigmas
from support.comfy_server import ComfyError
from support.interop import ROWS, Checks
from support.stock_sampling import stock_sample

H, W = SHAPE[-2:]
row = Checks("Cannot work")


def check_no_effect(bench, name, forwards, **inputs):
    s = bench.graph()
    latents, calls = bench.ksample(s, model=getattr(s.g, name)(model=s.model, **inputs))
    third = [1] * (forwards - 2)
    assert [call["rows"] for call in calls] == [2, *third] * STEPS
    context = bench.context()
    assert_equal(latents, bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas()))


for _name, _forwards, _inputs in [
    ("PerturbedAttentionGuidance", 3, {"scale": 3.0}),
    ("SelfAttentionGuidance", 2, {"scale": 0.5, "blur_sigma": 2.0}),
    ("HyperTile", 2, {"tile_size": 64, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    ("TomePatchModel", 2, {"ratio": 0.5}),
]:
    row(_name)(partial(check_no_effect, name=_name, forwards=_forwards, **_inputs))


def check_error(bench, words, make):
    s = bench.graph(edit=True)
    with pytest.raises(ComfyError) as caught:
        bench.run(s.g, value=make(s, bench))
    assert words in str(caught.value)


def masked_bounds(s, bench):
    mask = bench.tensor(s.g, "mask.safetensors", left_half())[2]
    return bench.sampled(
        s,
        count=False,
        positive=s.g.ConditioningSetMask(conditioning=s.full, mask=mask, strength=1.0, set_cond_area="mask bounds"),
    )[0]


def percentage(s, bench):
    area = s.g.ConditioningSetAreaPercentage(conditioning=s.full, width=0.6, height=1.0, x=0.0, y=0.0, strength=1.0)
    return bench.sampled(s, count=False, positive=area)[0]


for _nodes, _words, _make in [
    (
        "FreeU_V2",
        "model_channels",
        lambda s, bench: bench.sampled(s, model=s.g.FreeU_V2(model=s.model), count=False)[0],
    ),
    (
        "ConditioningSetMask, “mask bounds”",
        "ValueError",
        masked_bounds,
    ),
    (
        "ConditioningSetAreaPercentage",
        "IndexError",
        percentage,
    ),
    (
        "EmptyHunyuanLatentVideo, length > 1",
        "a video",
        lambda s, bench: bench.sampled(
            s, latent_image=s.g.EmptyHunyuanLatentVideo(width=64, height=64, length=5, batch_size=1), count=False
        )[0],
    ),
]:
    row(_nodes)(partial(check_error, words=_words, make=_make))


@row("VAEEncodeForInpaint")
def check_for_inpaint(bench):
    s = bench.graph()
    image, mask = picture(s), bench.tensor(s.g, "mask.safetensors", left_half())[2]
    latent = s.g.VAEEncodeForInpaint(pixels=image, vae=s.vae, mask=mask, grow_mask_by=0)
    try:
        out = bench.run(s.g, image=image, latent=latent)
    except ComfyError as error:
        assert "TypeError" in str(error)
        return
    grey = torch.where(left_half().bool()[..., None], 0.5, out.image["value"])
    assert_equal(out.latent["samples"], bench.raw(bench.encoded(grey)))
    sampled, calls = bench.sampled(s, latent_image=latent)
    out = bench.run(s.g, calls=calls, latent=sampled, start=latent)
    one_forward_a_step(out.calls)
    context = bench.context()
    model = bench.cfg(context.full, context.unconditional)
    start = bench.normal(out.start["samples"])
    expected = stock_sample(model, bench.noise(), latent=start, mask=latent_mask(left_half()))
    assert_equal(out.latent["samples"], bench.raw(expected))


def check_transform(bench, node, expected, words):
    """A node that turns the wrong axes. The sampler refuses what does not look like a picture any more."""
    s = bench.graph()
    first, _ = bench.sampled(s, count=False)
    turned = node(s.g, first)
    out = bench.run(s.g, first=first, turned=turned)
    assert torch.equal(out.turned["samples"], expected(out.first["samples"]))
    if words:
        with pytest.raises(ComfyError, match=words):
            bench.run(s.g, second=bench.sampled(s, latent_image=turned, denoise=0.5, count=False)[0])


for _nodes, _node, _expected, _words in [
    (
        "LatentFlip, x-axis",
        lambda g, x: g.LatentFlip(samples=x, flip_method="x-axis: vertically"),
        lambda x: x,
        None,
    ),
    (
        "LatentFlip, y-axis",
        lambda g, x: g.LatentFlip(samples=x, flip_method="y-axis: horizontally"),
        lambda x: x.flip(3),
        None,
    ),
    (
        "LatentRotate",
        lambda g, x: g.LatentRotate(samples=x, rotation="90 degrees"),
        lambda x: x.rot90(1, dims=[3, 2]),
        "height 8 is not a multiple of 16",
    ),
    (
        "LatentCrop",
        lambda g, x: g.LatentCrop(samples=x, width=64, height=64, x=0, y=0),
        lambda x: x[:, :, :, :8],
        None,
    ),
]:
    row(_nodes)(partial(check_transform, node=_node, expected=_expected, words=_words))


@row("SetLatentNoiseMask with a batch of masks")
def check_mask_batch(bench):
    s = bench.graph()
    masks = torch.cat([left_half(), 1 - left_half()])
    latent = s.g.RepeatLatentBatch(samples=s.g.VAEEncode(pixels=picture(s), vae=s.vae), amount=2)
    masked = s.g.SetLatentNoiseMask(samples=latent, mask=bench.tensor(s.g, "masks.safetensors", masks)[2])
    sampled, _ = bench.sampled(s, latent_image=masked, count=False)
    out = bench.run(s.g, start=latent, latent=sampled)
    context = bench.context()
    expected = stock_sample(
        bench.cfg(context.full, context.unconditional),
        bench.noise((2, *SHAPE[1:])),
        latent=bench.normal(out.start["samples"]),
        mask=torch.full((1, 1, 1, H, W), 0.5),
    )
    assert_equal(out.latent["samples"], bench.raw(expected))


@pytest.mark.parametrize("nodes", ROWS[row.part])
def test_row(bench, nodes):
    row.checks[nodes](bench)
