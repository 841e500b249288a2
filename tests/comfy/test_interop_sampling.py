"""Stock samplers, schedulers and guiders: the rows "Sampling" of docs/interop.md."""

from functools import partial

import pytest
import torch

from internvlu_core.sampling import flow_sigmas
from support.bench import CFG, SEED, STEPS, assert_differs, assert_equal, difference, one_forward_a_step, simple_sigmas
from support.interop import ROWS, SAMPLERS, SCHEDULERS, Checks
from support.stock_sampling import sigmas_of, stock_sample

row = Checks("Sampling")


@row(f"KSampler with {len(SAMPLERS)} samplers")
def check_samplers(bench):
    s = bench.graph()
    nodes = {name: bench.sampled(s, sampler_name=name, steps=4, count=False)[0] for name in SAMPLERS}
    out = bench.run(s.g, **nodes)
    context = bench.context()
    model = bench.cfg(context.full, context.unconditional)
    results = {}
    for name in SAMPLERS:
        expected = bench.raw(stock_sample(model, bench.noise(), sampler=name, steps=4))
        results[name] = difference(getattr(out, name)["samples"], expected)
    assert max(results.values()) <= 1e-4, results


@row(f"KSampler with all {len(SCHEDULERS)} schedulers")
def check_schedulers(bench):
    s = bench.graph()
    nodes = {name: bench.sampled(s, scheduler=name, count=False)[0] for name in SCHEDULERS}
    out = bench.run(s.g, **nodes)
    assert set(bench.info["KSampler"]["input"]["required"]["scheduler"][0]) == set(SCHEDULERS)
    context = bench.context()
    model = bench.cfg(context.full, context.unconditional)
    for name in SCHEDULERS:
        expected = stock_sample(model, bench.noise(), scheduler=name)
        assert_equal(getattr(out, name)["samples"], bench.raw(expected), 1e-5)
        if name != "ddim_uniform":  # which has a step of its own at the end
            assert len(sigmas_of(name, STEPS)) == STEPS + 1


@row("KSampler")
def check_ksampler(bench):
    latents, calls = bench.ksample(bench.graph())
    one_forward_a_step(calls)
    context = bench.context()
    assert_equal(latents, bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas()))


@row("KSampler, cfg 1")
def check_cfg_one(bench):
    latents, calls = bench.ksample(bench.graph(), cfg=1.0)
    assert len(calls) == STEPS
    assert_equal(latents, bench.euler(partial(bench.denoised, bench.context().full), simple_sigmas()))


@row("KSampler on an edit")
def check_ksampler_edit(bench):
    latents, calls = bench.ksample(bench.graph(edit=True))
    one_forward_a_step(calls)
    context = bench.context(edit=True)
    assert_equal(latents, bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas()))


@row("KSamplerAdvanced, two stages")
def check_two_stages(bench):
    s = bench.graph()
    one, _ = bench.sampled(s, steps=4, count=False)
    inputs = {"model": s.model, "positive": s.full, "negative": s.unconditional, "noise_seed": SEED, "steps": 4}
    inputs |= {"cfg": CFG, "sampler_name": "euler", "scheduler": "simple"}
    first = s.g.KSamplerAdvanced(
        **inputs,
        latent_image=s.empty,
        add_noise="enable",
        start_at_step=0,
        end_at_step=2,
        return_with_leftover_noise="enable",
    )
    second = s.g.KSamplerAdvanced(
        **inputs,
        latent_image=first,
        add_noise="disable",
        start_at_step=2,
        end_at_step=10000,
        return_with_leftover_noise="disable",
    )
    out = bench.run(s.g, one=one, half=first, two=second)
    assert_equal(out.two["samples"], out.one["samples"])
    assert_differs(out.half["samples"], out.one["samples"], 0.1)


def advanced(bench, s, guider, sampler=None, sigmas=None, latent=None, noise=None):
    """SamplerCustomAdvanced, by default with Euler on the simple schedule."""
    g = s.g
    return g.SamplerCustomAdvanced(
        noise=noise or g.RandomNoise(noise_seed=SEED),
        guider=guider,
        sampler=sampler or g.KSamplerSelect(sampler_name="euler"),
        sigmas=sigmas or g.BasicScheduler(model=s.model, scheduler="simple", steps=STEPS, denoise=1.0),
        latent_image=latent or s.empty,
    )


@row("SamplerCustom")
def check_sampler_custom(bench):
    s = bench.graph()
    one, _ = bench.sampled(s, count=False)
    custom = s.g.SamplerCustom(
        model=s.model,
        add_noise=True,
        noise_seed=SEED,
        cfg=CFG,
        positive=s.full,
        negative=s.unconditional,
        sampler=s.g.KSamplerSelect(sampler_name="euler"),
        sigmas=s.g.BasicScheduler(model=s.model, scheduler="simple", steps=STEPS, denoise=1.0),
        latent_image=s.empty,
    )
    out = bench.run(s.g, one=one, custom=custom[0], denoised=custom[1])
    assert torch.equal(out.one["samples"], out.custom["samples"])
    assert_equal(out.denoised["samples"], out.custom["samples"])


@row("SamplerCustomAdvanced with CFGGuider")
def check_cfg_guider(bench):
    s = bench.graph()
    one, _ = bench.sampled(s, count=False)
    guider = s.g.CFGGuider(model=s.model, positive=s.full, negative=s.unconditional, cfg=CFG)
    out = bench.run(s.g, one=one, custom=advanced(bench, s, guider))
    assert torch.equal(out.one["samples"], out.custom["samples"])


@row("SamplerCustomAdvanced with BasicGuider")
def check_basic_guider(bench):
    s = bench.graph()
    counter = s.g.DebugCount(model=s.model)
    out = bench.run(
        s.g,
        calls=counter[1],
        latent=advanced(bench, s, s.g.BasicGuider(model=counter, conditioning=s.full)),
    )
    assert len(out.calls) == STEPS
    assert_equal(out.latent["samples"], bench.euler(partial(bench.denoised, bench.context().full), simple_sigmas()))


def check_dual_cfg(bench, style):
    s = bench.graph(edit=True)
    counter = s.g.DebugCount(model=s.model)
    guider = s.g.DualCFGGuider(
        model=counter,
        cond1=s.full,
        cond2=s.partial,
        negative=s.unconditional,
        cfg_conds=3.5,
        cfg_cond2_negative=1.5,
        style=style,
    )
    out = bench.run(s.g, calls=counter[1], latent=advanced(bench, s, guider))
    one_forward_a_step(out.calls, 3)
    context = bench.context(edit=True)

    def model(x, sigma):
        branches = context.full, context.partial, context.unconditional
        full, middle, blank = (bench.denoised(branch, x, sigma) for branch in branches)
        if style == "nested":
            return blank + 1.5 * (middle + 3.5 * (full - middle) - blank)
        return blank + 1.5 * (middle - blank) + 3.5 * (full - middle)

    assert_equal(out.latent["samples"], bench.euler(model, simple_sigmas()))


for _style in ("regular", "nested"):
    row(f"DualCFGGuider, {_style}")(partial(check_dual_cfg, style=_style))


@row("PerpNegGuider")
def check_perp_neg(bench):
    s = bench.graph(edit=True)
    counter = s.g.DebugCount(model=s.model)
    guider = s.g.PerpNegGuider(
        model=counter, positive=s.full, negative=s.partial, empty_conditioning=s.unconditional, cfg=3.0, neg_scale=0.5
    )
    out = bench.run(s.g, calls=counter[1], latent=advanced(bench, s, guider))
    one_forward_a_step(out.calls, 3)
    context = bench.context(edit=True)

    def model(x, sigma):
        branches = context.full, context.partial, context.unconditional
        positive, negative, empty = (bench.denoised(branch, x, sigma) for branch in branches)
        positive, negative = positive - empty, negative - empty
        perpendicular = negative - (negative * positive).sum() / positive.square().sum() * positive
        return empty + 3.0 * (positive - 0.5 * perpendicular)

    assert_equal(out.latent["samples"], bench.euler(model, simple_sigmas()))


@row("SplitSigmas, DisableNoise: two SamplerCustomAdvanced on our GUIDER")
def check_split_sigmas(bench):
    s = bench.graph()
    g = s.g
    guider = g.InternVLUGuider(model=s.model, full=s.full, partial=s.partial, unconditional=s.unconditional)
    sigmas = g.InternVLUScheduler(steps=4, shift=3.0, denoise=1.0)
    split = g.SplitSigmas(sigmas=sigmas, step=1)
    sampler = g.InternVLUSamplerSelect()
    whole = advanced(bench, s, guider, sampler, sigmas)
    first = advanced(bench, s, guider, sampler, split[0])
    second = advanced(bench, s, guider, sampler, split[1], first, g.DisableNoise())
    out = bench.run(g, whole=whole, two=second, sigmas=sigmas)
    assert torch.equal(out.sigmas["value"], flow_sigmas(4))
    context = bench.context()
    model = bench.dual(context)
    x = bench.noise()
    sigmas = flow_sigmas(4)
    halfway = bench.normal(bench.official(model, sigmas[:2], x))
    assert_equal(out.whole["samples"], bench.official(model, sigmas, x))
    assert_equal(out.two["samples"], bench.official(model, sigmas[1:], halfway))


@row("SamplerDPMPP_2M_SDE (eta 0, midpoint) on our SIGMAS")
def check_dpmpp_2m_sde(bench):
    s = bench.graph(edit=True)
    g = s.g
    guider = g.InternVLUGuider(model=s.model, full=s.full, partial=s.partial, unconditional=s.unconditional)
    sigmas = g.InternVLUScheduler(steps=4, shift=3.0, denoise=1.0)
    stock = g.SamplerDPMPP_2M_SDE(solver_type="midpoint", eta=0.0, s_noise=1.0, noise_device="cpu")
    out = bench.run(
        g,
        ours=advanced(bench, s, guider, g.InternVLUSamplerSelect(), sigmas),
        stock=advanced(bench, s, guider, stock, sigmas),
    )
    assert_equal(out.stock["samples"], out.ours["samples"])
    assert_equal(out.ours["samples"], bench.official(bench.dual(bench.context(edit=True)), flow_sigmas(4)))


@pytest.mark.parametrize("nodes", ROWS[row.part])
def test_row(bench, nodes):
    row.checks[nodes](bench)
