"""What makes the MMDiT fast, against the plain way of computing the same."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from internvlu_core.checkpoints.config import Config
from internvlu_core.guidance import combine
from internvlu_core.models.mmdit import MMDiT, modulate, pack
from internvlu_core.models.rope import rotate_pairs
from internvlu_core.sampling import dpmpp_2m, flow_sigmas
from support.checkpoints import CHECKPOINT
from support.live_tensors import LiveTensors
from support.networks import randomise
from support.tensors import noise, relative

CONFIG = replace(Config.read(CHECKPOINT).mmdit, num_layers=3)
GRID = (1, 2, 3)  # of ViT tokens
SIZES = {"no reference": [], "one": [(6, 4)], "two": [(4, 4), (2, 10)]}
BRANCHES = {
    "text to image": (("no reference", 9), ("no reference", 4)),
    "edit": (("two", 9), ("two", 7), ("no reference", 4)),
    "mixed": (("no reference", 1), ("two", 5), ("one", 5)),
    "alone": (("one", 3),),
}


@pytest.fixture(scope="module")
def network():
    network = randomise(MMDiT(CONFIG))
    for name, parameter in network.named_parameters():
        if "_mod.1." in name:  # else the blocks hardly matter
            parameter.mul_(3)
    return network


def branch(references: str, texts: int, seed: int = 0) -> tuple:
    """MMDiT.forward's arguments from the context on."""
    sizes = SIZES[references]
    mask = torch.zeros(texts + math.prod(GRID) * len(sizes), dtype=torch.bool)
    mask[1 : 1 + math.prod(GRID) * len(sizes)] = True
    latents = [noise(1, 16, *size, seed=seed + i) for i, size in enumerate(sizes, start=1)]
    return noise(1, len(mask), CONFIG.context_size, seed=seed), mask, [GRID] * len(sizes), latents


def prepared(network, arguments, x):
    return pack([network.prepare(network.grid(x), *one) for one in arguments])


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("name", BRANCHES)
@torch.inference_mode()
def test_packed_branches_equal_single_ones(network, name, pictures):
    """At every timestep, from one preparation."""
    arguments = [branch(*kind, seed=10 * i) for i, kind in enumerate(BRANCHES[name])]
    x = noise(pictures, 16, 4, 6, seed=99)
    packed = prepared(network, arguments, x)
    for timestep in (999.0, 374.0):
        times = torch.full((pictures,), timestep)
        found = network.velocities(x, times, packed)
        expected = [network(x, times, *one) for one in arguments]
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert relative(a, b) < 2e-6
    if len(expected) > 1:
        assert relative(expected[0], expected[1]) > 1e-3


@pytest.mark.parametrize("name", BRANCHES)
@torch.inference_mode()
def test_last_block_computes_what_is_read_and_nothing_else(network, name, monkeypatch):
    arguments = [branch(*kind, seed=i) for i, kind in enumerate(BRANCHES[name])]
    x, times = noise(1, 16, 4, 6, seed=99), torch.tensor([749.0])
    packed = prepared(network, arguments, x)
    rows, last = Counter(), network.transformer_blocks[-1]
    hooks = [
        module.register_forward_hook(lambda module, inputs, _, key=key: rows.update({key: inputs[0].shape[1]}))
        for key, module in last.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    short = network.velocities(x, times, packed)
    for hook in hooks:
        hook.remove()
    image, text = packed.layout.img_rope.shape[0], packed.layout.txt_rope.shape[0]
    generated = 2 * 3 * len(arguments)
    read = ("attn.to_q", "attn.to_out.0", "img_mlp.net.0.proj", "img_mlp.net.2")
    keys = {"attn.to_k": image, "attn.to_v": image, "attn.add_k_proj": text, "attn.add_v_proj": text}
    assert {key: n for key, n in rows.items() if "_mod" not in key} == keys | dict.fromkeys(read, generated)

    def whole(index, *args):
        return network.transformer_blocks[index](*args)

    monkeypatch.setattr(network, "run_block", whole)
    for a, b in zip(short, network.velocities(x, times, packed), strict=True):
        assert relative(a, b) < 1e-6


@torch.inference_mode()
def test_whole_streams_by_default(network):
    """A block returns every token unless it is told that only the generated ones are read."""
    packed = prepared(network, [branch("two", 9), branch("one", 4)], noise(1, 16, 4, 6))
    img, txt = (noise(1, len(rope), CONFIG.hidden_size) for rope in (packed.layout.img_rope, packed.layout.txt_rope))
    temb = noise(1, CONFIG.hidden_size)
    block = network.transformer_blocks[0]
    whole = block(img, txt, temb, packed.layout)
    assert [stream.shape for stream in whole] == [img.shape, txt.shape]
    short, same = block(img, txt, temb, packed.layout, generated_only=True)
    assert same is txt
    assert relative(short, whole[0][:, : packed.layout.all_generated]) < 1e-6


@torch.inference_mode()
def test_a_step_waits_for_no_value(network):
    """Tensors of the meta device have none: asking for one raises."""
    on_meta = MMDiT(CONFIG, device="meta")
    arguments = [branch(*kind) for kind in BRANCHES["edit"]]
    moved = [
        (context.to("meta"), mask, grids, [latent.to("meta") for latent in latents])
        for context, mask, grids, latents in arguments
    ]
    x = noise(2, 16, 4, 6).to("meta")
    packed = prepared(on_meta, moved, x)

    def denoise(x, sigma):
        times = torch.full((len(x),), 999.0, device="meta")
        velocities = on_meta.velocities(x, times, packed)
        return x - sigma * combine(*velocities, 4.5, 2.0, times[0])

    assert dpmpp_2m(denoise, x, flow_sigmas(3)).shape == x.shape


@torch.inference_mode()
def test_blocks_compile_without_graph_breaks(network):
    """Once per way of being called, not once per block or step."""
    torch.compiler.reset()
    x = noise(1, 16, 4, 6)
    packed = prepared(network, [branch(*kind) for kind in BRANCHES["edit"]], x)
    times = torch.tensor([[999.0], [374.0]])
    expected = [v for time in times for v in network.velocities(x, time, packed)]
    counter = CompileCounter()
    compiled = MMDiT(CONFIG)
    compiled.load_state_dict(network.state_dict())
    for block in compiled.transformer_blocks:
        block.compile(backend=counter, fullgraph=True)
    found = [v for time in times for v in compiled.velocities(x, time, packed)]
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 2e-6
    assert counter.frame_count == 2  # all but the last, and the last


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norm_is_computed_in_float32(dtype):
    """Also where a stream's values are far from 0, and nothing of it would be left in 8 bits."""
    x = (1000 + noise(2, 7, 1536)).to(dtype)
    zeros = torch.zeros(2, 1, 1536, dtype=dtype)
    expected = F.layer_norm(x.double(), x.shape[-1:], eps=1e-6)
    assert relative(modulate(x, zeros, zeros), expected) < (3e-3 if dtype == torch.bfloat16 else 1e-4)


def test_rotation_without_complex_numbers(monkeypatch):
    """What compilers and devices without complex numbers compute."""
    x, rope = torch.randn(2, 5, 3, 8), torch.randn(7, 4, 2)
    expected = rotate_pairs(x, rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch, "view_as_complex", None)
    torch.testing.assert_close(rotate_pairs(x, rope), expected, rtol=1e-5, atol=1e-6)


def test_working_memory_of_a_step():
    """Of the released width, in float32: ten times the streams for one branch, and no more for packed ones."""
    config = replace(CONFIG, num_heads=12, head_dim=128, rope_axes=(16, 56, 56), context_size=4096, joint_size=4096)
    network = MMDiT(config, device="meta")
    latent = torch.empty(1, 16, 64, 64, device="meta")
    for branches in (1, 2):
        arguments = torch.empty(1, 60, 4096, device="meta"), torch.zeros(60, dtype=torch.bool), [], [latent]
        packed = prepared(network, [arguments] * branches, latent)
        tokens = branches * (2 * 1024 + 60)
        with torch.inference_mode(), LiveTensors() as tensors:
            network.velocities(latent, torch.ones(1, device="meta"), packed)
        assert tensors.peak <= 10 * tokens * config.hidden_size * 4
