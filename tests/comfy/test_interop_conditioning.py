"""Stock nodes that make and change conditionings: the rows "Conditioning" of docs/interop.md."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from support.bench import (
    CFG,
    EDIT_PROMPT,
    HEIGHT,
    PROMPT,
    STEPS,
    assert_differs,
    assert_equal,
    latent_mask,
    left_half,
    one_forward_a_step,
    picture,
    simple_sigmas,
)
from support.interop import ROWS, Checks
from support.stock_sampling import flow_sampling

row = Checks("Conditioning")


@row("CLIPTextEncode with InternVL-U CLIP")
def check_clip(bench):
    s = bench.graph()
    clip = s.g.InternVLUCLIP(vlm=s.vlm)
    out = bench.run(
        s.g,
        stock=s.g.CLIPTextEncode(clip=clip, text=PROMPT),
        blank=s.g.CLIPTextEncode(clip=clip, text=""),
        full=s.full,
        unconditional=s.unconditional,
    )
    assert torch.equal(out.stock["0.cond"], out.full["0.cond"])
    assert torch.equal(out.blank["0.cond"], out.unconditional["0.cond"])
    assert_equal(out.full["0.cond"][0], bench.context().full.hidden)


@row("TextEncodeQwenImageEdit with image and vae")
def check_qwen_edit(bench):
    s = bench.graph()
    clip = s.g.InternVLUCLIP(vlm=s.vlm)
    inputs = {"clip": clip, "prompt": EDIT_PROMPT, "vae": s.vae}
    # At just a megapixel the node does not scale, and the ViT sees what Encode's sees.
    square = picture(s, 1024, 1024)
    encode = s.g.InternVLUEncode(vlm=s.vlm, prompt=EDIT_PROMPT, image1=square, vae=s.vae)
    out = bench.run(
        s.g,
        stock=s.g.TextEncodeQwenImageEdit(**inputs, image=square),
        full=encode[0],
        latent=s.g.VAEEncode(pixels=square, vae=s.vae),
    )
    assert_equal(out.stock["0.cond"], out.full["0.cond"])
    assert torch.equal(out.stock["0.reference_latents.0"], out.latent["samples"])

    s = bench.graph()
    inputs |= {"clip": s.g.InternVLUCLIP(vlm=s.vlm), "vae": s.vae}
    positive = s.g.TextEncodeQwenImageEdit(**inputs, image=s.photo)
    sampled, calls = bench.sampled(s, positive=positive, steps=1, cfg=1.0)
    out = bench.run(s.g, calls=calls, latent=sampled, cond=positive)
    raw = out.cond["0.reference_latents.0"]
    assert raw.shape[-2:] == (110, 147)
    (call,) = out.calls
    assert call["tokens"] == out.cond["0.cond"].shape[1]
    branch = replace(
        bench.context(edit=True).full,
        hidden=out.cond["0.cond"][0],
        references=[bench.normal(raw)[:, :, 0, :110, :146]],
    )
    assert_equal(out.latent["samples"], bench.euler(partial(bench.denoised, branch), simple_sigmas(1)))


@row("ReferenceLatent, once and twice")
def check_reference(bench):
    for times in (1, 2):
        s = bench.graph()
        latents = [s.g.VAEEncode(pixels=picture(s, 64 + 16 * i, 48), vae=s.vae) for i in range(times)]
        positive = s.full
        for latent in latents:
            positive = s.g.ReferenceLatent(conditioning=positive, latent=latent)
        sampled, calls = bench.sampled(s, positive=positive)
        out = bench.run(s.g, calls=calls, latent=sampled, **{f"r{i}": latent for i, latent in enumerate(latents)})
        one_forward_a_step(out.calls)
        references = [bench.normal(getattr(out, f"r{i}")["samples"])[:, :, 0] for i in range(times)]
        context = bench.context()
        branch = replace(context.full, references=references)
        assert_equal(out.latent["samples"], bench.euler(bench.cfg(branch, context.unconditional), simple_sigmas()))


def check_conditioning(bench, change, expected, steps=STEPS):
    """change(s) → KSampler's inputs; expected(bench, context) → a function of x, σ."""
    s = bench.graph(edit=True)
    latents, calls = bench.ksample(s, steps=steps, **change(s))
    context = bench.context(edit=True)
    assert_equal(latents, bench.euler(expected(bench, context), simple_sigmas(steps)))
    plain = bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas(steps))
    assert_differs(latents, plain)
    return calls


@row("ConditioningZeroOut")
def check_zero_out(bench):
    calls = check_conditioning(
        bench,
        lambda s: {"negative": s.g.ConditioningZeroOut(conditioning=s.unconditional)},
        lambda b, c: b.cfg(c.full, replace(c.unconditional, hidden=torch.zeros_like(c.unconditional.hidden))),
    )
    one_forward_a_step(calls)


@row("ConditioningCombine")
def check_combine(bench):
    def expected(b, c):
        def model(x, sigma):
            full, middle, blank = (b.denoised(branch, x, sigma) for branch in (c.full, c.partial, c.unconditional))
            return blank + CFG * ((full + middle) / 2 - blank)

        return model

    calls = check_conditioning(
        bench,
        lambda s: {"positive": s.g.ConditioningCombine(conditioning_1=s.full, conditioning_2=s.partial)},
        expected,
    )
    one_forward_a_step(calls, 3)


@row("ConditioningConcat")
def check_concat(bench):
    def expected(b, c):
        hidden = torch.cat([c.full.hidden, c.unconditional.hidden])
        mask = F.pad(c.full.image_mask, (0, len(c.unconditional.hidden)))
        return b.cfg(replace(c.full, hidden=hidden, image_mask=mask), c.unconditional)

    calls = check_conditioning(
        bench,
        lambda s: {"positive": s.g.ConditioningConcat(conditioning_to=s.full, conditioning_from=s.unconditional)},
        expected,
    )
    one_forward_a_step(calls)
    assert {call["tokens"] for call in calls} == {95 + 32}


@row("ConditioningAverage")
def check_average(bench):
    def expected(b, c):
        n = len(c.full.hidden)
        other = F.pad(c.unconditional.hidden, (0, 0, 0, n))[:n]
        return b.cfg(replace(c.full, hidden=0.7 * c.full.hidden + 0.3 * other), c.unconditional)

    check_conditioning(
        bench,
        lambda s: {
            "positive": s.g.ConditioningAverage(
                conditioning_to=s.full, conditioning_from=s.unconditional, conditioning_to_strength=0.7
            )
        },
        expected,
    )


@row("ConditioningSetTimestepRange")
def check_range(bench):
    def change(s):
        parts = [
            s.g.ConditioningSetTimestepRange(conditioning=c, start=start, end=end)
            for c, start, end in ((s.full, 0.0, 0.4), (s.partial, 0.4, 1.0))
        ]
        return {"positive": s.g.ConditioningCombine(conditioning_1=parts[0], conditioning_2=parts[1])}

    def expected(b, c):
        middle = float(flow_sampling().percent_to_sigma(0.4))

        def model(x, sigma):
            branch = c.full if sigma > middle else c.partial
            return b.cfg(branch, c.unconditional)(x, sigma)

        return model

    one_forward_a_step(check_conditioning(bench, change, expected, steps=4), steps=4)


@row("ConditioningSetMask (default area), two regions")
def check_set_mask(bench):
    def change(s):
        mask = bench.tensor(s.g, "mask.safetensors", left_half())[2]
        parts = [
            s.g.ConditioningSetMask(conditioning=c, mask=m, strength=1.0, set_cond_area="default")
            for c, m in ((s.full, mask), (s.partial, s.g.InvertMask(mask=mask)))
        ]
        return {"positive": s.g.ConditioningCombine(conditioning_1=parts[0], conditioning_2=parts[1])}

    def expected(b, c):
        weight = latent_mask(left_half())

        def model(x, sigma):
            full, middle, blank = (b.denoised(branch, x, sigma) for branch in (c.full, c.partial, c.unconditional))
            return blank + CFG * (weight * full + (1 - weight) * middle - blank)

        return model

    check_conditioning(bench, change, expected)


def check_area(bench, make):
    """A conditioning for the left half, drawn as a picture of its own, in the middle of the other one."""

    def change(s):
        return {"positive": s.g.ConditioningCombine(conditioning_1=make(s), conditioning_2=s.partial)}

    def expected(b, c):
        inner = slice(0, 8)

        def blend(part, whole):
            weight = torch.zeros_like(whole)
            weight[..., inner] = 1
            fade = min(8, part.shape[-1] // 4)  # ComfyUI fades an area's inner edges
            for i in range(fade):
                weight[..., part.shape[-1] - 1 - i] *= (i + 1) / fade
            return (weight * F.pad(part, (0, whole.shape[-1] - part.shape[-1])) + whole) / (weight + 1)

        def model(x, sigma):
            # ComfyUI gives the negative the same area.
            pairs = (c.full, c.partial), (c.unconditional, c.unconditional)
            positive, negative = (
                blend(b.denoised(part, x[..., inner], sigma), b.denoised(whole, x, sigma)) for part, whole in pairs
            )
            return negative + CFG * (positive - negative)

        return model

    check_conditioning(bench, change, expected)


row("ConditioningSetArea (multiples of 16)")(
    partial(
        check_area,
        make=lambda s: s.g.ConditioningSetArea(conditioning=s.full, width=64, height=HEIGHT, x=0, y=0, strength=1.0),
    )
)
row("ConditioningSetAreaPercentageVideo (temporal 1, z 0)")(
    partial(
        check_area,
        make=lambda s: s.g.ConditioningSetAreaPercentageVideo(
            conditioning=s.full, width=0.8, height=1.0, temporal=1.0, x=0.0, y=0.0, z=0.0, strength=1.0
        ),
    )
)


@pytest.mark.parametrize("nodes", ROWS[row.part])
def test_row(bench, nodes):
    row.checks[nodes](bench)
