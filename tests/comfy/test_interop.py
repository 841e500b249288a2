"""Stock nodes on InternVL-U: every row of docs/interop.md, asserted on tensors and on the number of network calls.

Expected values come from the core (support/bench.py), driven where needed by ComfyUI's own sampling code
(support/stock_sampling.py).
"""

import copy
import importlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from internvlu_core.sampling import flow_sigmas, sigma_to_timestep
from support.bench import (
    CFG,
    EDIT_PROMPT,
    HEIGHT,
    PROMPT,
    SEED,
    SHAPE,
    STEPS,
    WIDTH,
    Bench,
    assert_differs,
    assert_equal,
    difference,
    simple_sigmas,
)
from support.checkpoints import CHECKPOINT, copy_checkpoint
from support.comfy_server import ComfyError
from support.inprocess import PACK, load_pack
from support.stock_sampling import flow_sampling, patched_options, sigmas_of, stock_guider, stock_sample, with_hooks
from support.workflows import assert_close_pictures

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "interop.md"
README = Path(__file__).resolve().parents[2] / "README.md"
MARKS = "<!-- rows of tests/comfy/test_interop.py -->", "<!-- end of the rows -->"
H, W = HEIGHT // 8, WIDTH // 8


@dataclass(frozen=True)
class Row:
    part: str
    nodes: str
    result: str
    check: Callable[[Bench], None]


ROWS: list[Row] = []


def row(part: str, nodes: str, result: str):
    """Adds a check to the table. nodes and result are what README shows."""

    def add(check):
        ROWS.append(Row(part, nodes, result, check))
        return check

    return add


@pytest.fixture(scope="module")
def bench(server, model, photo):
    return Bench(server, model, photo)


def one_forward_a_step(calls, branches=2, steps=STEPS):
    assert [call["rows"] for call in calls] == [branches] * steps


def two_forwards_a_step(calls):
    assert [call["rows"] for call in calls] == [1] * (2 * STEPS)


def has_input(bench, class_type: str, name: str) -> bool:
    """Whether this ComfyUI's node has an input of this name."""
    return any(name in inputs for inputs in bench.info[class_type]["input"].values())


# Samplers, schedulers, guiders

SAMPLERS = [
    "euler", "euler_ancestral", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm",
    "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_ancestral", "gradient_estimation", "er_sde",
    "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
]  # fmt: skip
SCHEDULERS = [
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
]  # fmt: skip


@row("Sampling", f"KSampler with {len(SAMPLERS)} samplers", "the same sampler over the core, ≤ 1e-4")
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


@row("Sampling", f"KSampler with all {len(SCHEDULERS)} schedulers", "Euler over the core on the same noise levels")
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


@row("Sampling", "KSampler", "2 branches a step (full, unconditional) in one forward; Euler over the core, ≤ 1e-5")
def check_ksampler(bench):
    latents, calls = bench.ksample(bench.graph())
    one_forward_a_step(calls)
    context = bench.context()
    assert_equal(latents, bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas()))


@row("Sampling", "KSampler, cfg 1", "1 forward a step; the full branch alone")
def check_cfg_one(bench):
    latents, calls = bench.ksample(bench.graph(), cfg=1.0)
    assert len(calls) == STEPS
    assert_equal(latents, bench.euler(partial(bench.denoised, bench.context().full), simple_sigmas()))


@row("Sampling", "KSampler on an edit", "2 branches a step (full with its reference, unconditional); equals the core")
def check_ksampler_edit(bench):
    latents, calls = bench.ksample(bench.graph(edit=True))
    one_forward_a_step(calls)
    context = bench.context(edit=True)
    assert_equal(latents, bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas()))


@row("Sampling", "KSamplerAdvanced, two stages", "equals one KSampler")
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


@row("Sampling", "SamplerCustom", "equals KSampler, bit by bit")
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


@row("Sampling", "SamplerCustomAdvanced with CFGGuider", "equals KSampler, bit by bit")
def check_cfg_guider(bench):
    s = bench.graph()
    one, _ = bench.sampled(s, count=False)
    guider = s.g.CFGGuider(model=s.model, positive=s.full, negative=s.unconditional, cfg=CFG)
    out = bench.run(s.g, one=one, custom=advanced(bench, s, guider))
    assert torch.equal(out.one["samples"], out.custom["samples"])


@row("Sampling", "SamplerCustomAdvanced with BasicGuider", "1 forward a step; the full branch alone")
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
    row(
        "Sampling",
        f"DualCFGGuider, {_style}",
        "3 branches a step; its formula over the core. Guides fully above t = 930, where InternVL-U Guider guides less",
    )(partial(check_dual_cfg, style=_style))


@row("Sampling", "PerpNegGuider", "3 branches a step; its formula over the core")
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


@row(
    "Sampling",
    "SplitSigmas, DisableNoise: two SamplerCustomAdvanced on our GUIDER",
    "the core stage by stage; the second one starts at first order",
)
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


@row("Sampling", "SamplerDPMPP_2M_SDE (eta 0, midpoint) on our SIGMAS", "equals InternVL-U Sampler Select, ≤ 1e-5")
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


# What changes the MODEL


def hooked(bench, options, context):
    def model(x, sigma):
        outputs = [bench.denoised(branch, x, sigma) for branch in (context.full, context.unconditional)]
        return with_hooks(stock_guider(None).inner_model, options, x, sigma, outputs, CFG)

    return model


def check_guidance_node(bench, module, name, class_name=None, **inputs):
    s = bench.graph()
    latents, calls = bench.ksample(s, model=getattr(s.g, name)(model=s.model, **inputs))
    one_forward_a_step(calls)
    context = bench.context()
    options = patched_options(f"comfy_extras.{module}", class_name or name, **inputs)
    assert_equal(latents, bench.euler(hooked(bench, options, context), simple_sigmas()), 2e-5)
    plain = bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas())
    assert_differs(latents, plain)


for _module, _name, _class_name, _inputs in [
    ("nodes_model_advanced", "RescaleCFG", None, {"multiplier": 0.7}),
    ("nodes_apg", "APG", None, {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.3}),
    ("nodes_tcfg", "TCFG", None, {}),
    ("nodes_mahiro", "Mahiro", None, {}),
    ("nodes_cfg", "CFGNorm", None, {"strength": 0.9}),
    ("nodes_cfg", "CFGZeroStar", None, {}),
    ("nodes_lumina2", "RenormCFG", None, {"cfg_trunc": 100.0, "renorm_cfg": 0.8}),
    ("nodes_fresca", "FreSca", None, {"scale_low": 0.5, "scale_high": 2.0, "freq_cutoff": 2}),
    ("nodes_eps", "Epsilon Scaling", "EpsilonScaling", {"scaling_factor": 1.05}),
    ("nodes_eps", "TemporalScoreRescaling", None, {"tsr_k": 0.8, "tsr_sigma": 1.0}),
]:
    row("Guidance", _name, "its formula over the core; 2 branches a step")(
        partial(check_guidance_node, module=_module, name=_name, class_name=_class_name, **_inputs)
    )


class SkippedBlock:
    """A context manager: the core's MMDiT without one block."""

    def __init__(self, bench, index: int):
        self.mmdit, self.index = bench.core.mmdit, index

    def __enter__(self):
        original = self.mmdit.run_block

        def run_block(index, img, txt, *args, **kwargs):
            return (img, txt) if index == self.index else original(index, img, txt, *args, **kwargs)

        self.mmdit.run_block = run_block

    def __exit__(self, *exc_info):
        del self.mmdit.run_block


@row("Guidance", "SkipLayerGuidanceDiT", "a third forward a step, without the named blocks; its formula over the core")
def check_slg(bench):
    s = bench.graph()
    inputs = {"double_layers": "1", "single_layers": "", "scale": 2.0, "start_percent": 0.0, "end_percent": 1.0}
    latents, calls = bench.ksample(s, model=s.g.SkipLayerGuidanceDiT(model=s.model, **inputs))
    assert [call["rows"] for call in calls] == [2, 1] * STEPS
    context = bench.context()
    plain = bench.cfg(context.full, context.unconditional)

    def model(x, sigma):
        with SkippedBlock(bench, 1):
            skipped = bench.denoised(context.full, x, sigma)
        return plain(x, sigma) + 2.0 * (bench.denoised(context.full, x, sigma) - skipped)

    assert_equal(latents, bench.euler(model, simple_sigmas()))


@row("Guidance", "SkipLayerGuidanceDiTSimple", "2 forwards a step, the unconditional one without the named blocks")
def check_slg_simple(bench):
    s = bench.graph()
    inputs = {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
    latents, calls = bench.ksample(s, model=s.g.SkipLayerGuidanceDiTSimple(model=s.model, **inputs))
    two_forwards_a_step(calls)
    context = bench.context()

    def model(x, sigma):
        with SkippedBlock(bench, 0):
            blank = bench.denoised(context.unconditional, x, sigma)
        return blank + CFG * (bench.denoised(context.full, x, sigma) - blank)

    assert_equal(latents, bench.euler(model, simple_sigmas()))


def check_cache(bench, name):
    plain, all_calls = bench.ksample(bench.graph(), steps=8)
    latents, calls = {}, {}
    for threshold in (0.0, 3.0):
        s = bench.graph()
        cached = getattr(s.g, name)(model=s.model, reuse_threshold=threshold, start_percent=0.1, end_percent=0.9)
        latents[threshold], calls[threshold] = bench.ksample(s, model=cached, steps=8)
    assert calls[0.0] == all_calls
    assert torch.equal(latents[0.0], plain)
    assert 2 <= len(calls[3.0]) < 8
    assert 1e-4 < difference(latents[3.0], plain) < 2


for _name in ("EasyCache", "LazyCache"):
    row("Model", _name, "threshold 0: nothing changes; above: fewer forwards")(partial(check_cache, name=_name))


@row("Model", "ModelSamplingSD3", "another shift: Euler over the core on its noise levels")
def check_sd3(bench):
    s = bench.graph()
    latents, calls = bench.ksample(s, model=s.g.ModelSamplingSD3(model=s.model, shift=5.0))
    one_forward_a_step(calls)
    context = bench.context()
    model = bench.cfg(context.full, context.unconditional)
    assert_equal(latents, bench.euler(model, simple_sigmas(shift=5.0)))


def check_model_sampling(bench, name, **inputs):
    s = bench.graph()
    sampled, calls = bench.sampled(s, model=getattr(s.g, name)(model=s.model, **inputs), steps=4)
    sd3, _ = bench.sampled(s, model=s.g.ModelSamplingSD3(model=s.model, shift=3.0), steps=4, count=False)
    out = bench.run(s.g, calls=calls, latent=sampled, sd3=sd3)
    assert [call["t"] for call in out.calls] == sigma_to_timestep(simple_sigmas(4)[:4]).tolist()
    assert_equal(out.latent["samples"], out.sd3["samples"])


row("Model", "ModelSamplingAuraFlow", "equals ModelSamplingSD3 of the same shift")(
    partial(check_model_sampling, name="ModelSamplingAuraFlow", shift=3.0)
)
row("Model", "ModelSamplingFlux", "equals ModelSamplingSD3 of the shift exp(max_shift)")(
    partial(
        check_model_sampling,
        name="ModelSamplingFlux",
        max_shift=math.log(3),
        base_shift=math.log(3),
        width=64,
        height=64,
    )
)


@row("Model", "ModelComputeDtype", "fp32: nothing changes; bf16: the core in bf16, ≤ 5%")
def check_compute_dtype(bench):
    s = bench.graph()
    nodes = {"plain": bench.sampled(s, count=False)[0]}
    for dtype in ("fp32", "bf16"):
        model = s.g.ModelComputeDtype(model=s.model, dtype=dtype)
        nodes[dtype] = bench.sampled(s, model=model, count=False)[0]
    out = bench.run(s.g, **nodes)
    assert torch.equal(out.fp32["samples"], out.plain["samples"])
    context, twin = bench.context(), copy.copy(bench)
    twin.core = copy.copy(bench.core)
    twin.core.mmdit, twin.core.dtype = copy.deepcopy(bench.core.mmdit).bfloat16(), torch.bfloat16
    expected = twin.euler(twin.cfg(context.full, context.unconditional), simple_sigmas())
    assert_equal(out.bf16["samples"], expected, 0.05)
    assert_differs(out.bf16["samples"], out.plain["samples"], 0.1)


@row(
    "Model",
    "TorchCompileModel, inductor",
    "equals the uncompiled model, ≤ 1% (the fused time embedding rounds differently)",
)
def check_compile(bench):
    s = bench.graph()
    model = s.g.TorchCompileModel(model=s.model, backend="inductor")
    # One branch: another length of context is compiled anew.
    compiled, _ = bench.sampled(s, model=model, steps=2, cfg=1.0, count=False)
    plain, _ = bench.sampled(s, steps=2, cfg=1.0, count=False)
    out = bench.run(s.g, plain=plain, compiled=compiled)
    assert bench.compiled_graphs > 0
    assert_equal(out.compiled["samples"], out.plain["samples"], 1e-2)


@row(
    "Model",
    "ContextWindowsManual over the width, without causal_window_fix",
    "a forward per window; means where they overlap. The fix, in newer ComfyUIs, makes widths odd, which are refused",
)
def check_context_windows(bench):
    s = bench.graph()
    inputs = {"context_length": 6, "context_overlap": 2, "context_schedule": "standard_static", "fuse_method": "flat"}
    if has_input(bench, "ContextWindowsManual", "causal_window_fix"):  # it puts another column in front of a window
        odd = s.g.ContextWindowsManual(model=s.model, dim=4, causal_window_fix=True, **inputs)
        with pytest.raises(ComfyError, match="width 56 is not a multiple of 16"):
            bench.ksample(s, model=odd, steps=1)
        s, inputs["causal_window_fix"] = bench.graph(), False
    model = s.g.ContextWindowsManual(model=s.model, dim=4, **inputs)
    latents, calls = bench.ksample(s, model=model, steps=1)
    one_forward_a_step(calls, steps=2)  # of one step, two windows
    context = bench.context()
    guided, x, sigma = bench.cfg(context.full, context.unconditional), bench.noise(), torch.tensor(1.0)
    left, right = guided(x[..., :6], sigma), guided(x[..., 4:], sigma)
    expected = torch.cat([left[..., :4], (left[..., 4:] + right[..., :2]) / 2, right[..., 2:]], dim=-1)
    assert_equal(latents, bench.raw(expected))


# Weights: a second checkpoint, and adapters


def other_weights(bench, blend: Callable):
    """A bench of a core whose MMDiT has weights blend(name, its own, the other checkpoint's)."""
    other = copy.copy(bench)
    other.core = copy.copy(bench.core)
    other.core.mmdit = copy.deepcopy(bench.core.mmdit)
    with torch.no_grad():
        for name, parameter in other.core.mmdit.named_parameters():
            parameter.copy_(blend(name, parameter, changed(name, parameter)))
    return other


def changed(name: str, tensor):
    """The second checkpoint's weight."""
    generator = torch.Generator().manual_seed(len(name))
    return tensor * (1 + 0.2 * torch.randn(tensor.shape, generator=generator))


def second_model(bench, s):
    folder = bench.server.base_dir / "models" / "internvl_u" / "Second"
    if not folder.exists():

        def change(tensors):
            for name in tensors:
                tensors[name] = changed(name.split("decoder.", 1)[-1], tensors[name])

        copy_checkpoint(folder, tensors={"generation_decoder": change})
    return s.g.InternVLULoader(checkpoint="Second", weight_dtype="fp32")[0]


def check_merge(bench, merge, blend):
    s = bench.graph()
    latents, _ = bench.ksample(s, model=merge(s.g, s.model, second_model(bench, s)))
    context = bench.context()
    twin = other_weights(bench, blend)
    assert_equal(latents, twin.euler(twin.cfg(context.full, context.unconditional), simple_sigmas()), 5e-5)
    plain = bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas())
    assert_differs(latents, plain)


for _nodes, _merge, _blend in [
    (
        "ModelMergeSimple",
        lambda g, a, b: g.ModelMergeSimple(model1=a, model2=b, ratio=0.3),
        lambda name, a, b: 0.3 * a + 0.7 * b,
    ),
    (
        "ModelMergeBlocks (its input ratio counts for all blocks)",
        lambda g, a, b: g.ModelMergeBlocks(model1=a, model2=b, input=0.6, middle=0.0, out=0.0),
        lambda name, a, b: 0.6 * a + 0.4 * b,
    ),
    (
        "ModelMergeSubtract, ModelMergeAdd",
        lambda g, a, b: g.ModelMergeAdd(model1=a, model2=g.ModelMergeSubtract(model1=b, model2=a, multiplier=0.5)),
        lambda name, a, b: a + 0.5 * (b - a),
    ),
]:
    row("Model", _nodes, "the core with weights merged likewise")(partial(check_merge, merge=_merge, blend=_blend))

ADAPTED = "transformer_blocks.0.attn.to_q"


def write_lora(bench):
    """An adapter of one weight; returns its file name and the delta."""
    generator = torch.Generator().manual_seed(3)
    out, size = bench.core.mmdit.get_parameter(f"{ADAPTED}.weight").shape
    down, up = torch.randn(2, size, generator=generator), torch.randn(out, 2, generator=generator)
    folder = bench.server.base_dir / "models" / "loras"
    folder.mkdir(exist_ok=True)
    name = f"diffusion_model.{ADAPTED}.lora_"
    save_file({f"{name}A.weight": down, f"{name}B.weight": up}, folder / "interop.safetensors")
    return "interop.safetensors", up @ down


def adapted(bench, delta):
    return other_weights(bench, lambda name, a, b: a + delta if name == f"{ADAPTED}.weight" else a)


@row("Model", "LoraLoaderModelOnly", "the core with the adapter added to its weights (test_lora.py: all spellings)")
def check_lora(bench):
    file, delta = write_lora(bench)
    s = bench.graph()
    model = s.g.LoraLoaderModelOnly(model=s.model, lora_name=file, strength_model=0.5)
    latents, _ = bench.ksample(s, model=model)
    context, twin = bench.context(), adapted(bench, 0.5 * delta)
    assert_equal(latents, twin.euler(twin.cfg(context.full, context.unconditional), simple_sigmas()), 5e-5)


@row("Model", "CreateHookLoraModelOnly, ConditioningSetProperties", "the adapter acts on the hooked branch alone")
def check_hook_lora(bench):
    file, delta = write_lora(bench)
    s = bench.graph()
    hooks = s.g.CreateHookLoraModelOnly(lora_name=file, strength_model=0.5)
    full = s.g.ConditioningSetProperties(cond_NEW=s.full, strength=1.0, set_cond_area="default", hooks=hooks)
    latents, calls = bench.ksample(s, positive=full)
    two_forwards_a_step(calls)
    context, twin = bench.context(), adapted(bench, 0.5 * delta)

    def model(x, sigma):
        blank = bench.denoised(context.unconditional, x, sigma)
        return blank + CFG * (twin.denoised(context.full, x, sigma) - blank)

    assert_equal(latents, bench.euler(model, simple_sigmas()), 5e-5)
    assert_differs(latents, bench.euler(bench.cfg(context.full, context.unconditional), simple_sigmas()))


@row(
    "Model", "TrainLoraNode, LoraModelLoader", "learns a picture: from its noise the adapter draws what is nearer to it"
)
def check_training(bench):
    s = bench.graph()
    latent = s.g.VAEEncode(pixels=picture(s), vae=s.vae)
    # Two of them: ComfyUI 0.3.75's node fails on a single latent, of any model.
    twice = s.g.RepeatLatentBatch(samples=latent, amount=2)
    trained = s.g.TrainLoraNode(
        model=s.model,
        latents=s.g.RebatchLatents(latents=twice, batch_size=1),
        positive=s.full,
        batch_size=1,
        grad_accumulation_steps=1,
        steps=60,
        learning_rate=0.003,
        rank=8,
        optimizer="AdamW",
        loss_function="MSE",
        seed=0,
        training_dtype="fp32",
        lora_dtype="fp32",
        algorithm="LoRA",
        gradient_checkpointing=False,
        existing_lora="[None]",
    )
    lora = trained[bench.info["TrainLoraNode"]["output"].index("LORA_MODEL")]  # newer ones have no MODEL before it
    taught, _ = bench.sampled(s, model=s.g.LoraModelLoader(model=s.model, lora=lora, strength_model=1.0), cfg=1.0)
    plain, _ = bench.sampled(s, cfg=1.0)
    out = bench.run(s.g, latent=latent, taught=taught, plain=plain)
    far = difference(out.plain["samples"], out.latent["samples"])
    assert difference(out.taught["samples"], out.latent["samples"]) < 0.9 * far


# Latents


def picture(s, width=WIDTH, height=HEIGHT):
    return s.g.ImageScale(image=s.photo, width=width, height=height, upscale_method="area", crop="disabled")


def encoded(bench, image):
    """IMAGE → normalised latents, by the core."""
    with torch.inference_mode():
        return bench.core.vae.encode(image.movedim(-1, 1) * 2 - 1).unsqueeze(2)


@row("Latents", "VAEEncode, VAEDecode", "equal the core's VAE, ≤ 1e-5; a batch of pictures is a batch of latents")
def check_vae(bench):
    s = bench.graph()
    image = picture(s)
    pair = s.g.ImageBatch(image1=image, image2=s.g.ImageInvert(image=image))
    latent = s.g.VAEEncode(pixels=pair, vae=s.vae)
    out = bench.run(s.g, image=pair, latent=latent, decoded=s.g.VAEDecode(samples=latent, vae=s.vae))
    images, latents = out.image["value"], out.latent["samples"]
    assert latents.shape == (2, *SHAPE[1:])
    assert_equal(latents, bench.raw(encoded(bench, images)))
    pixels = bench.core.decode(bench.normal(latents)[:, :, 0])
    assert_equal(out.decoded["value"], ((pixels + 1) / 2).movedim(1, -1))


def check_tiled(bench, tile_size, tolerance):
    s = bench.graph()
    image = picture(s, 192, 160)
    tiles = {"vae": s.vae, "tile_size": tile_size, "overlap": 32}
    whole = s.g.VAEEncode(pixels=image, vae=s.vae)
    out = bench.run(
        s.g,
        whole=whole,
        tiled=s.g.VAEEncodeTiled(pixels=image, **tiles),
        picture=s.g.VAEDecode(samples=whole, vae=s.vae),
        tiles=s.g.VAEDecodeTiled(samples=whole, **tiles),
    )
    latents, pixels = out.whole["samples"], out.picture["value"]
    error = (out.tiled["samples"] - latents).square().mean().sqrt() / latents.std()
    assert error <= tolerance, error
    error = (out.tiles["value"] - pixels).square().mean().sqrt() / pixels.std()
    assert error <= tolerance, error


row("Latents", "VAEEncodeTiled, VAEDecodeTiled in one tile", "equal the untiled nodes")(
    partial(check_tiled, tile_size=512, tolerance=1e-5)
)
row("Latents", "VAEEncodeTiled, VAEDecodeTiled in many tiles", "near the untiled nodes (the VAE looks beyond a tile)")(
    partial(check_tiled, tile_size=64, tolerance=0.5)
)


@row("Latents", "img2img: VAEEncode, KSampler with denoise < 1", "Euler over the core from the mixed start")
def check_img2img(bench):
    s = bench.graph()
    latent = s.g.VAEEncode(pixels=picture(s), vae=s.vae)
    sampled, calls = bench.sampled(s, latent_image=latent, denoise=0.5)
    out = bench.run(s.g, calls=calls, latent=sampled, start=latent)
    one_forward_a_step(out.calls)
    sigmas = simple_sigmas(2 * STEPS)[-(STEPS + 1) :]
    start = sigmas[0] * bench.noise() + (1 - sigmas[0]) * bench.normal(out.start["samples"])
    context = bench.context()
    expected = bench.euler(bench.cfg(context.full, context.unconditional), sigmas, start)
    assert_equal(out.latent["samples"], expected)


def left_half() -> torch.Tensor:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 2] = 1
    return mask


def gradient() -> torch.Tensor:
    return torch.linspace(0, 1, WIDTH).expand(1, HEIGHT, WIDTH).contiguous()


def latent_mask(mask):
    return F.interpolate(mask[None], (H, W), mode="bilinear")[:, :, None]


def check_masked(bench, mask, prepare, options=None):
    """prepare(s, image, mask) → what changes in KSampler's inputs."""
    s = bench.graph()
    image = picture(s)
    latent = s.g.VAEEncode(pixels=image, vae=s.vae)
    inputs = prepare(s, image, latent, bench.tensor(s.g, "mask.safetensors", mask)[2])
    sampled, calls = bench.sampled(s, **inputs)
    out = bench.run(s.g, calls=calls, latent=sampled, start=latent)
    one_forward_a_step(out.calls)
    start, latents = out.start["samples"], out.latent["samples"]
    context = bench.context()
    expected = stock_sample(
        bench.cfg(context.full, context.unconditional),
        bench.noise(),
        latent=bench.normal(start),
        mask=latent_mask(mask),
        options=options() if options else {},
    )
    assert_equal(latents, bench.raw(expected))
    if mask.unique().numel() == 2:
        kept = W // 2 + 1  # without the column on the mask's soft edge
        assert_equal(latents[..., kept:], start[..., kept:])
        assert_differs(latents[..., : W // 2 - 1], start[..., : W // 2 - 1], 0.1)


def noise_mask(s, image, latent, mask):
    return {"latent_image": s.g.SetLatentNoiseMask(samples=latent, mask=mask)}


def differential(s, image, latent, mask):
    return noise_mask(s, image, latent, mask) | {"model": s.g.DifferentialDiffusion(model=s.model)}


def inpaint_conditioning(s, image, latent, mask):
    node = s.g.InpaintModelConditioning(
        positive=s.full, negative=s.unconditional, vae=s.vae, pixels=image, mask=mask, noise_mask=True
    )
    return {"positive": node[0], "negative": node[1], "latent_image": node[2]}


row("Latents", "SetLatentNoiseMask", "stock masking over the core; outside the mask the latent stays")(
    partial(check_masked, mask=left_half(), prepare=noise_mask)
)
row("Latents", "DifferentialDiffusion with a soft mask", "its masking over the core")(
    partial(
        check_masked,
        mask=gradient(),
        prepare=differential,
        options=partial(patched_options, "comfy_extras.nodes_differential_diffusion", "DifferentialDiffusion"),
    )
)
row("Latents", "InpaintModelConditioning", "equals SetLatentNoiseMask (the model has no inpainting channels)")(
    partial(check_masked, mask=left_half(), prepare=inpaint_conditioning)
)


def check_upscale(bench, name, **inputs):
    s = bench.graph()
    first, _ = bench.sampled(s, count=False)
    upscaled = getattr(s.g, name)(samples=first, upscale_method="bilinear", **inputs)
    second, _ = bench.sampled(s, latent_image=upscaled, denoise=0.5, count=False)
    out = bench.run(s.g, first=first, upscaled=upscaled, second=second)
    expected = F.interpolate(out.first["samples"][:, :, 0], (2 * H, 2 * W), mode="bilinear").unsqueeze(2)
    assert_equal(out.upscaled["samples"], expected)
    sigmas = simple_sigmas(2 * STEPS)[-(STEPS + 1) :]
    start = sigmas[0] * bench.noise(expected.shape) + (1 - sigmas[0]) * bench.normal(expected)
    context = bench.context()
    assert_equal(
        out.second["samples"], bench.euler(bench.cfg(context.full, context.unconditional), sigmas, start), 2e-5
    )


row("Latents", "LatentUpscale, second KSampler", "the frame interpolated; the second pass equals the core's")(
    partial(check_upscale, name="LatentUpscale", width=2 * WIDTH, height=2 * HEIGHT, crop="disabled")
)
row("Latents", "LatentUpscaleBy, second KSampler", "the same")(
    partial(check_upscale, name="LatentUpscaleBy", scale_by=2.0)
)


@row("Latents", "RepeatLatentBatch", "n pictures from one noise tensor, as the core draws them; 2 branches a step")
def check_repeat(bench):
    s = bench.graph()
    latents, calls = bench.ksample(s, latent_image=s.g.RepeatLatentBatch(samples=s.empty, amount=2))
    assert [call["rows"] for call in calls] == [2 * 2] * STEPS
    context = bench.context()
    model = bench.cfg(context.full, context.unconditional)
    assert_equal(latents, bench.euler(model, simple_sigmas(), bench.noise((2, *SHAPE[1:]))))


@row("Latents", "LatentFromBatch", "draws one picture of a batch again, alone")
def check_from_batch(bench):
    s = bench.graph()
    batch = s.g.RepeatLatentBatch(samples=s.empty, amount=3)
    whole, _ = bench.sampled(s, latent_image=batch, count=False)
    one, _ = bench.sampled(s, latent_image=s.g.LatentFromBatch(samples=batch, batch_index=1, length=1), count=False)
    out = bench.run(s.g, whole=whole, one=one)
    assert_equal(out.one["samples"], out.whole["samples"][1:2])
    assert_differs(out.whole["samples"][:1], out.whole["samples"][1:2], 0.1)


@row("Latents", "LatentBatch", "joins latents of two pictures; img2img of both equals the core's")
def check_latent_batch(bench):
    s = bench.graph()
    first, second = (s.g.VAEEncode(pixels=p, vae=s.vae) for p in (picture(s), s.g.ImageInvert(image=picture(s))))
    batch = s.g.LatentBatch(samples1=first, samples2=second)
    sampled, calls = bench.sampled(s, latent_image=batch, denoise=0.5)
    out = bench.run(s.g, calls=calls, latent=sampled, first=first, second=second, batch=batch)
    joined = torch.cat([out.first["samples"], out.second["samples"]])
    assert torch.equal(out.batch["samples"], joined)
    assert [call["rows"] for call in out.calls] == [2 * 2] * STEPS
    sigmas = simple_sigmas(2 * STEPS)[-(STEPS + 1) :]
    noise = bench.noise().repeat(2, 1, 1, 1, 1)  # the node numbers both pictures 0
    start = sigmas[0] * noise + (1 - sigmas[0]) * bench.normal(joined)
    context = bench.context()
    assert_equal(out.latent["samples"], bench.euler(bench.cfg(context.full, context.unconditional), sigmas, start))


def check_empty(bench, name, **inputs):
    s = bench.graph()
    ours, _ = bench.sampled(s, count=False)
    stock, _ = bench.sampled(
        s, count=False, latent_image=getattr(s.g, name)(width=WIDTH, height=HEIGHT, batch_size=1, **inputs)
    )
    out = bench.run(s.g, ours=ours, stock=stock)
    assert torch.equal(out.ours["samples"], out.stock["samples"])
    assert out.ours["samples"].shape == SHAPE


for _name, _inputs in [
    ("EmptySD3LatentImage", {}),
    ("EmptyLatentImage", {}),
    ("EmptyHunyuanLatentVideo", {"length": 1}),
]:
    _nodes = f"{_name} of length 1" if _inputs else _name
    row("Latents", _nodes, "equals InternVL-U Empty Latent, bit by bit")(partial(check_empty, name=_name, **_inputs))


@row("Latents", "Previews (latent2rgb)", "one a step, of the latent's shape, not flat")
def check_previews(bench):
    bench.ksample(bench.graph(), seed=SEED + 1)
    previews = [data for kind, data in bench.result.events if kind == "preview"]
    assert len(previews) == STEPS
    for preview in previews:
        image = Image.open(io.BytesIO(preview))
        assert abs(image.width * H / W - image.height) < 1 and len(image.convert("L").getcolors(256)) > 10


@row("Latents", "Previews (TAESD, lighttaew2_1 in models/vae_approx)", "its picture of the latent")
def check_taesd_previews(bench):
    """In this process, on the MODEL's latent format and an autoencoder of random weights."""
    load_pack()
    import comfy.cli_args
    import comfy.taesd.taehv
    import folder_paths
    import latent_preview

    modules = {
        name: importlib.import_module(f"{PACK}.{name}") for name in ("nodes.mmdit", "internvlu_core.checkpoints.config")
    }
    config = modules["internvlu_core.checkpoints.config"].Config.read(CHECKPOINT)
    latent_format = modules["nodes.mmdit"].ModelConfig(config).latent_format
    network = comfy.taesd.taehv.TAEHV(latent_channels=16)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # ComfyUI's layers do not initialise them
        size = max(1, parameter[0].numel())
        torch.nn.init.normal_(parameter, std=size**-0.5 if parameter.ndim > 1 else 0.1, generator=generator)
    folder = bench.server.base_dir / "models" / "vae_approx"
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "lighttaew2_1.safetensors")
    folder_paths.add_model_folder_path("vae_approx", str(folder))
    args, before = comfy.cli_args.args, comfy.cli_args.args.preview_method
    args.preview_method = comfy.cli_args.LatentPreviewMethod.TAESD
    try:
        previewer = latent_preview.get_previewer(torch.device("cpu"), latent_format)
        _, image, _ = previewer.decode_latent_to_preview_image("JPEG", bench.noise())
    finally:
        args.preview_method = before
    with torch.inference_mode():
        pixels = network.decode(bench.noise())[0, :, 0].movedim(0, -1)
    expected = (pixels.clamp(0, 1) * 255).to(torch.uint8)
    assert_close_pictures(image, expected)
    assert len(expected.unique()) > 10


# Conditioning


@row("Conditioning", "CLIPTextEncode with InternVL-U CLIP", "equals Encode's full; an empty text its unconditional")
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


@row(
    "Conditioning",
    "TextEncodeQwenImageEdit with image and vae",
    "read as by Encode; the reference has a megapixel, cut to whole patches",
)
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


@row("Conditioning", "ReferenceLatent, once and twice", "the core with one and two references")
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


@row("Conditioning", "ConditioningZeroOut", "the core with hidden states of zero")
def check_zero_out(bench):
    calls = check_conditioning(
        bench,
        lambda s: {"negative": s.g.ConditioningZeroOut(conditioning=s.unconditional)},
        lambda b, c: b.cfg(c.full, replace(c.unconditional, hidden=torch.zeros_like(c.unconditional.hidden))),
    )
    one_forward_a_step(calls)


@row("Conditioning", "ConditioningCombine", "the mean of both predictions, of one forward")
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


@row("Conditioning", "ConditioningConcat", "the second one's tokens behind the first's, as text")
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


@row("Conditioning", "ConditioningAverage", "the core with hidden states blended token by token")
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


@row("Conditioning", "ConditioningSetTimestepRange", "each conditioning acts in its own steps")
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


@row("Conditioning", "ConditioningSetMask (default area), two regions", "each region by its own conditioning")
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


row(
    "Conditioning",
    "ConditioningSetArea (multiples of 16)",
    "the area drawn as a picture of its own, blended in",
)(
    partial(
        check_area,
        make=lambda s: s.g.ConditioningSetArea(conditioning=s.full, width=64, height=HEIGHT, x=0, y=0, strength=1.0),
    )
)
row("Conditioning", "ConditioningSetAreaPercentageVideo (temporal 1, z 0)", "the same, in place of …Percentage")(
    partial(
        check_area,
        make=lambda s: s.g.ConditioningSetAreaPercentageVideo(
            conditioning=s.full, width=0.8, height=1.0, temporal=1.0, x=0.0, y=0.0, z=0.0, strength=1.0
        ),
    )
)


# What cannot work

VIDEO = "reads a latent's frame axis as its height"


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
    _cost = ", at the cost of a third forward" if _forwards > 2 else ""
    row("Cannot work", _name, f"no effect{_cost}: it patches a U-Net's attention, which this model does not have")(
        partial(check_no_effect, name=_name, forwards=_forwards, **_inputs)
    )


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


for _nodes, _result, _words, _make in [
    (
        "FreeU_V2",
        "KeyError 'model_channels': it is for U-Nets",
        "model_channels",
        lambda s, bench: bench.sampled(s, model=s.g.FreeU_V2(model=s.model), count=False)[0],
    ),
    (
        "ConditioningSetMask, “mask bounds”",
        "ValueError in ComfyUI, as with every 5-D latent (Qwen-Image, Wan). Use the default area",
        "ValueError",
        masked_bounds,
    ),
    (
        "ConditioningSetAreaPercentage",
        "IndexError in ComfyUI, as with every 5-D latent. Use ConditioningSetArea or …PercentageVideo",
        "IndexError",
        percentage,
    ),
    (
        "EmptyHunyuanLatentVideo, length > 1",
        "an error: InternVL-U draws single pictures",
        "a video",
        lambda s, bench: bench.sampled(
            s, latent_image=s.g.EmptyHunyuanLatentVideo(width=64, height=64, length=5, batch_size=1), count=False
        )[0],
    ),
]:
    row("Cannot work", _nodes, _result)(partial(check_error, words=_words, make=_make))


@row(
    "Cannot work",
    "VAEEncodeForInpaint",
    "TypeError in older ComfyUIs, 0.3.75 too, as with Qwen-Image's and Wan's VAE: use SetLatentNoiseMask or "
    "InpaintModelConditioning. In newer ones it equals VAEEncode of the picture with a grey hole, and its mask",
)
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
    assert_equal(out.latent["samples"], bench.raw(encoded(bench, grey)))
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


for _nodes, _result, _node, _expected, _words in [
    (
        "LatentFlip, x-axis",
        "no effect: it turns the single frame",
        lambda g, x: g.LatentFlip(samples=x, flip_method="x-axis: vertically"),
        lambda x: x,
        None,
    ),
    (
        "LatentFlip, y-axis",
        "flips top and bottom instead of left and right",
        lambda g, x: g.LatentFlip(samples=x, flip_method="y-axis: horizontally"),
        lambda x: x.flip(3),
        None,
    ),
    (
        "LatentRotate",
        f"{VIDEO}; a sampler then refuses the size",
        lambda g, x: g.LatentRotate(samples=x, rotation="90 degrees"),
        lambda x: x.rot90(1, dims=[3, 2]),
        "height 8 is not a multiple of 16",
    ),
    (
        "LatentCrop",
        f"{VIDEO}: crops rows by the width, and no columns",
        lambda g, x: g.LatentCrop(samples=x, width=64, height=64, x=0, y=0),
        lambda x: x[:, :, :, :8],
        None,
    ),
]:
    row("Cannot work", _nodes, _result)(partial(check_transform, node=_node, expected=_expected, words=_words))


@row(
    "Cannot work",
    "SetLatentNoiseMask with a batch of masks",
    "ComfyUI reads them as frames: all get their mean",
)
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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.nodes)
def test_row(bench, row):
    row.check(bench)


# The document

HEAD = """# Stock nodes on InternVL-U

Written by `tests/comfy/test_interop.py` from its own rows; do not edit it. Each row is a test on a real ComfyUI server
with a tiny checkpoint, and asserts on tensors and on the number of network calls. "Equals" is a relative difference of
at most 1e-5 where nothing else is said; "the core" is `internvlu_core` without ComfyUI; a forward is a network call.
"""
WHY = """
Why: a latent here is `[B, 16, 1, h, w]`, with one frame, as with Qwen-Image, whose VAE this is; stock nodes that were
written for `[B, C, h, w]` take the frame axis for the height. The network is a transformer with two streams: patches
for a U-Net's blocks find none. Sampling other than with InternVL-U Sample, Guider or Guidance is ordinary CFG with two
branches, which is not how the model was tuned.
"""


def tables(level: str) -> str:
    """The rows by their parts, under Markdown headings of this level."""
    parts = []
    for part in dict.fromkeys(row.part for row in ROWS):
        lines = [f"| {row.nodes} | {row.result} |" for row in ROWS if row.part == part]
        parts.append("\n".join([f"\n{level} {part}\n", "| stock nodes | result |", "|---|---|", *lines, ""]))
    return "".join(parts)


def readme() -> str:
    """README with all rows between its two marks, folded up."""
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    folded = f"\n<details><summary>All {len(ROWS)} rows</summary>\n{tables('###')}\n</details>\n"
    return before + MARKS[0] + folded + MARKS[1] + rest.split(MARKS[1])[1]


@pytest.mark.parametrize(
    ("file", "expected"), [(DOCUMENT, lambda: HEAD + tables("##") + WHY), (README, readme)], ids=["document", "README"]
)
def test_documents_are_up_to_date(file, expected):
    """A stale document is written anew, and the test fails once, so that somebody looks at it and commits it."""
    text = expected()
    stale = not file.exists() or file.read_text(encoding="utf-8") != text
    if stale:
        file.write_text(text, encoding="utf-8")
    assert not stale, f"{file.name} was not what the rows say; it is now"


def test_there_are_enough_rows():
    assert len({row.nodes for row in ROWS}) == len(ROWS) >= 40
