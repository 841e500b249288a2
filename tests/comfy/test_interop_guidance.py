"""Stock nodes that change guidance: the rows "Guidance" of docs/interop.md."""

from functools import partial

import pytest

from support.bench import (
    CFG,
    STEPS,
    assert_differs,
    assert_equal,
    one_forward_a_step,
    simple_sigmas,
    two_forwards_a_step,
)
from support.interop import ROWS, Checks
from support.stock_sampling import patched_options, stock_guider, with_hooks

row = Checks("Guidance")


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
    row(_name)(partial(check_guidance_node, module=_module, name=_name, class_name=_class_name, **_inputs))


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


@row("SkipLayerGuidanceDiT")
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


@row("SkipLayerGuidanceDiTSimple")
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


@pytest.mark.parametrize("nodes", ROWS[row.part])
def test_row(bench, nodes):
    row.checks[nodes](bench)
