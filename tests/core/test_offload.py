"""Weights that wait in main memory. The CPU takes the place of a device, and meta that of main memory."""

from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks import memory
from internvlu_core import InputError, InternVLU
from internvlu_core.cli import main
from internvlu_core.offload import Offload
from internvlu_core.quantization import repeated_blocks
from support.checkpoints import CHECKPOINT, GOLDEN
from support.fake_device import build_hollow

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


def test_who_is_called_or_asked_in_between_may_use_the_model(plain):
    """Previews in a callback, and pictures drawn for the next request, bring another network to the device."""
    model = InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float32, device_map="auto", max_memory=max(sizes(plain)))
    small = {"height": 64, "width": 64, "steps": 2}

    def mixed(model: InternVLU) -> list:
        seen = []
        drawn = model.generate("a boat", **small, callback=lambda step, steps, x: seen.append(model.decode(x)))
        requests = (
            {"prompt": "what is it?", "images": model.generate(prompt, **small).images, "max_new_tokens": 3}
            for prompt in ("a boat", "a house")
        )
        answers = [outcome.unwrap().token_ids for outcome in model.answer_many(requests, ordered=True)]
        said = model.answer("hi", max_new_tokens=3, on_token=lambda *_: model.generate("a boat", **small))
        return [[answers, said.token_ids], drawn.latents, *seen]

    assert same(mixed(model), mixed(plain))


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


def test_released_sizes_in_little_memory():
    """Layers are copied one by one as soon as a network does not fit, and no more of them than necessary."""
    limit = 1_500_000_000
    networks = build_hollow(memory.released_config(), torch.bfloat16, "fp8")
    offload = Offload(networks, torch.device("cpu"), limit)
    for name, (network, state) in networks.items():
        sizes = {
            block: sum(t.nbytes for key, t in state.items() if key.startswith(f"{block}."))
            for block in repeated_blocks(network)
        }
        streamed = [block for block in sizes if not any(k.startswith(f"{block}.") for k in offload.resident[network])]
        resident = sum(tensor.nbytes for tensor in offload.resident[network].values())
        assert offload.sizes[network] == resident + max((sizes[block] for block in streamed), default=0) <= limit
        assert streamed == list(sizes)[: len(streamed)], "the first ones"
        assert bool(streamed) == (name != "VAE")
        if streamed:
            largest = max((sizes[block] for block in streamed[:-1]), default=0)
            assert resident + sizes[streamed[-1]] + largest > limit, "with one block less it would not fit"
