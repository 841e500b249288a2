"""Stock nodes that change the MODEL or its weights: the rows "Model" of docs/interop.md."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from internvlu_core.sampling import sigma_to_timestep
from support.bench import (
    CFG,
    assert_differs,
    assert_equal,
    difference,
    one_forward_a_step,
    picture,
    simple_sigmas,
    two_forwards_a_step,
)
from support.checkpoints import copy_checkpoint
from support.comfy_server import ComfyError
from support.interop import ROWS, Checks

row = Checks("Model")


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
    row(_name)(partial(check_cache, name=_name))


@row("ModelSamplingSD3")
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


row("ModelSamplingAuraFlow")(partial(check_model_sampling, name="ModelSamplingAuraFlow", shift=3.0))
row("ModelSamplingFlux")(
    partial(
        check_model_sampling,
        name="ModelSamplingFlux",
        max_shift=math.log(3),
        base_shift=math.log(3),
        width=64,
        height=64,
    )
)


@row("ModelComputeDtype")
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


@row("TorchCompileModel, inductor")
def check_compile(bench):
    s = bench.graph()
    model = s.g.TorchCompileModel(model=s.model, backend="inductor")
    # One branch: another length of context is compiled anew.
    compiled, _ = bench.sampled(s, model=model, steps=2, cfg=1.0, count=False)
    plain, _ = bench.sampled(s, steps=2, cfg=1.0, count=False)
    out = bench.run(s.g, plain=plain, compiled=compiled)
    assert bench.compiled_graphs > 0
    assert_equal(out.compiled["samples"], out.plain["samples"], 1e-2)


@row("ContextWindowsManual over the width, without causal_window_fix")
def check_context_windows(bench):
    s = bench.graph()
    inputs = {"context_length": 6, "context_overlap": 2, "context_schedule": "standard_static", "fuse_method": "flat"}
    if bench.has_input("ContextWindowsManual", "causal_window_fix"):  # it puts another column in front of a window
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
    row(_nodes)(partial(check_merge, merge=_merge, blend=_blend))

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


@row("LoraLoaderModelOnly")
def check_lora(bench):
    file, delta = write_lora(bench)
    s = bench.graph()
    model = s.g.LoraLoaderModelOnly(model=s.model, lora_name=file, strength_model=0.5)
    latents, _ = bench.ksample(s, model=model)
    context, twin = bench.context(), adapted(bench, 0.5 * delta)
    assert_equal(latents, twin.euler(twin.cfg(context.full, context.unconditional), simple_sigmas()), 5e-5)


@row("CreateHookLoraModelOnly, ConditioningSetProperties")
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


@row("TrainLoraNode, LoraModelLoader")
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


@pytest.mark.parametrize("nodes", ROWS[row.part])
def test_row(bench, nodes):
    row.checks[nodes](bench)
