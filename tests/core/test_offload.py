"""Weights that wait in main memory, and weights in 8 bits. The CPU stands in for a device, meta for elsewhere."""

from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks import memory
from internvlu_core import InputError, InternVLU
from internvlu_core.cli import main
from internvlu_core.quantization import FORMATS, QuantisedLinear, quantise_network, repeated_blocks
from internvlu_core.quantization.float8 import DTYPE, quantise
from support.checkpoints import CHECKPOINT, GOLDEN
from support.networks import randomise
from support.tensors import noise, relative

KB = 1000
PHOTO = Image.open(GOLDEN / "photo.png").convert("RGB")


def networks(model: InternVLU) -> list[nn.Module]:
    return [model.vlm, model.mmdit, model.vae]


def on_device(model: InternVLU) -> int:
    """Bytes of weights that are there now."""
    return sum(p.nbytes for network in networks(model) for p in network.parameters() if p.device.type != "meta")


@contextmanager
def watched(model: InternVLU):
    """Gives a list to which every forward of every layer adds the bytes that are on the device."""
    seen = []
    handle = register_module_forward_pre_hook(lambda module, args: seen.append(on_device(model)))
    try:
        yield seen
    finally:
        handle.remove()


def everything(model: InternVLU) -> list:
    """All that a model does, in small."""
    thought = model.reason("a red boat", max_new_tokens=5)
    edited = model.generate("make it night", [PHOTO], height=64, width=64, steps=2, seed=3)
    drawn = model.generate("a red boat", height=64, width=64, steps=2, reasoning=thought)
    return [model.answer("what is it?", [PHOTO], max_new_tokens=4).token_ids, edited.latents, drawn.latents]


def same(a: list, b: list) -> bool:
    return a[0] == b[0] and all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))


@pytest.fixture(scope="module")
def plain():
    return InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(plain):
    return everything(plain)


def sizes(model: InternVLU) -> list[int]:
    return [sum(p.nbytes for p in network.parameters()) for network in networks(model)]


@pytest.mark.parametrize("room", ["all", "largest", "least"])
def test_results_are_the_same_within_the_budget(plain, expected, room):
    """Room for all networks; for the largest of them; and so little that its layers have to come one by one."""
    limit = {"all": sum(sizes(plain)), "largest": max(sizes(plain)), "least": least(plain)}[room]
    model = InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float32, device_map="auto", max_memory=limit)
    assert on_device(model) == 0
    with watched(model) as seen:
        assert same(everything(model), expected)
    assert max(seen) == limit  # all of it is used, and no byte more
    if room == "all":
        assert on_device(model) == limit, "nothing had to leave"
    assert same(everything(model), expected), "the second time"


def least(model: InternVLU) -> int:
    """What the hungriest network needs: all but its blocks, and the largest of these."""
    needs = []
    for network, total in zip(networks(model), sizes(model), strict=True):
        of_blocks = [sum(p.nbytes for p in block.parameters()) for block in repeated_blocks(network).values()]
        needs.append(total - sum(of_blocks) + max(of_blocks, default=0))
    return max(needs)


def test_weights_of_the_checkpoints_own_dtype_stay_mapped(plain):
    """Main memory holds no copy of them."""
    model = InternVLU.from_pretrained(CHECKPOINT, device_map="auto", max_memory="1GB")
    model.generate("a boat", height=64, width=64, steps=1)
    held = {tensor.data_ptr() for state in model.offload.resident.values() for tensor in state.values()}
    assert all(p.data_ptr() in held for p in model.mmdit.parameters())


def test_too_little_is_told(plain):
    with pytest.raises(InputError, match=r"max_memory is .* GB; the (VLM|MMDiT|VAE) needs at least .* GB"):
        InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float32, device_map="auto", max_memory=least(plain) - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_map": "balanced"}, "device_map is 'balanced'"),
        ({"max_memory": "5GB"}, "no effect without"),
        ({"device_map": "auto", "max_memory": "much"}, "max_memory is 'much'"),
        ({"device_map": "auto", "max_memory": -1}, "max_memory is -1"),
        ({"device_map": "auto", "max_memory": {0: 1}}, "max_memory is {0: 1}"),
        ({"device_map": "auto"}, "must be given for the device 'cpu'"),
    ],
)
def test_bad_memory(arguments, message):
    with pytest.raises(InputError, match=message):
        InternVLU.from_pretrained(CHECKPOINT, **arguments)


def test_command_line(tmp_path, capsys):
    picture = tmp_path / "boat.png"
    options = ["--max-memory", "2MB", "--dtype", "fp8", "--height", "64", "--width", "64", "--steps", "1"]
    assert main(["generate", str(CHECKPOINT), "a boat", "--out", str(picture), *options]) == 0
    assert Image.open(picture).size == (64, 64)
    assert main(["answer", str(CHECKPOINT), "a boat?", "--max-memory", "1KB"]) == 2
    assert "needs at least" in capsys.readouterr().err


def test_released_sizes_fit_small_devices():
    """Computed, since no machine here has the device: one network's weights, and what it works in beside them."""
    rows = memory.table()
    assert max(row["bf16"] + row["working"] for row in rows) <= 6e9
    assert max(row["fp8"] + row["working"] for row in rows) <= 4e9


def test_live_bytes():
    def run():
        a = torch.zeros(100, dtype=torch.float32)
        b = a.view(10, 10)  # nothing new
        del a
        c = b + 1
        del b
        return c * 2

    assert memory.live_peak(run) == 800


# 8 bits


def test_quantised_values_are_near_and_finite():
    weight = torch.cat([noise(4, 64), 1e-4 * noise(4, 64), torch.zeros(1, 64), torch.full((1, 64), 65504.0)])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kept, scale = quantise(weight.to(dtype))
        back = kept.float() * scale.float()[:, None]
        assert back.isfinite().all()
        error = (back - weight.to(dtype).float()).abs().amax(1) / weight.abs().amax(1).clamp(min=1e-9)
        assert error.max() <= 2**-4  # half a step of the top binade


def test_linear_in_8_bits():
    linear = randomise(nn.Linear(48, 40))
    holder = nn.Module()
    holder.layers = nn.ModuleList([nn.ModuleDict({"proj": linear})])
    x, exact = noise(3, 48), linear(noise(3, 48))
    state = dict(holder.state_dict())
    quantise_network(holder, state, FORMATS["fp8"])
    holder.load_state_dict(state, assign=True)
    ours = holder.layers[0]["proj"]
    assert isinstance(ours, QuantisedLinear) and ours.weight.dtype == DTYPE
    assert relative(ours(x), exact) < 0.04


def test_8_bits_draw_nearly_the_same(plain):
    small = InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float8_e4m3fn)
    assert small.dtype == torch.float32 and sum(sizes(small)) < 0.6 * sum(sizes(plain))
    context, x = plain.encode("a boat"), noise(1, 16, 8, 8)
    step = torch.tensor([999.0])
    exact = plain.velocity(context.full, x, step)
    assert 0 < relative(small.velocity(context.full, x, step), exact) < 0.03
