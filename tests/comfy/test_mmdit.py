"""The MODEL's network by itself: what it keeps between forwards, and what patches on its blocks see."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from checkpoints import CHECKPOINT, randomise
from helpers import noise, relative
from inprocess import PACK, load_pack

TEXTS, TOKENS = 6, 16
LAYOUT = (False,) * 2 + (True,) * TOKENS + (False,) * 4, ((1, 4, 4),)


@pytest.fixture(scope="module")
def host():
    load_pack()
    names = {"nodes": "nodes.mmdit", "core": "internvlu_core.mmdit", "config": "internvlu_core.config"}
    return SimpleNamespace(**{key: importlib.import_module(f"{PACK}.{name}") for key, name in names.items()})


@pytest.fixture
def network(host):
    import comfy.ops

    config = host.config.Config.read(CHECKPOINT).mmdit
    operations = comfy.ops.disable_weight_init
    return randomise(host.nodes.ComfyMMDiT(config, dtype=torch.float32, operations=operations))


def forward(network, height=12, width=10, **options) -> torch.Tensor:
    context = noise(1, TEXTS + TOKENS, network.config.context_size, seed=1)
    reference = noise(1, 16, 1, 8, 8, seed=2)
    arguments = noise(1, 16, 1, height, width), torch.tensor([749.0]), context, LAYOUT, [reference]
    return network(*arguments, transformer_options=options)


@torch.inference_mode()
def test_rotary_tables_are_made_once_per_size(host, network, monkeypatch):
    made = []

    def spy(grids, *arguments):
        made.append(grids)
        return joint_positions(grids, *arguments)

    joint_positions = host.core.joint_positions
    monkeypatch.setattr(host.core, "joint_positions", spy)
    first = forward(network)
    other = forward(network, height=8, width=12)
    assert torch.equal(forward(network), first)
    assert made == [((1, 6, 5), (1, 4, 4)), ((1, 4, 6), (1, 4, 4))]
    monkeypatch.undo()
    fresh = host.core.MMDiT(network.config)
    fresh.load_state_dict(network.state_dict())
    mask, grids = torch.tensor(LAYOUT[0]), list(LAYOUT[1])
    for found, size in ((first, (12, 10)), (other, (8, 12))):
        context, reference = noise(1, TEXTS + TOKENS, network.config.context_size, seed=1), noise(1, 16, 8, 8, seed=2)
        expected = fresh(noise(1, 16, *size), torch.tensor([749.0]), context, mask, grids, [reference])
        assert relative(found[:, :, 0], expected) < 1e-5


def test_training_after_sampling(network):
    """Tensors made in inference mode cannot be saved for a backward pass."""
    with torch.inference_mode():
        forward(network)
    weight = network.transformer_blocks[0].attn.to_q.weight.requires_grad_()
    forward(network).square().mean().backward()
    assert weight.grad.norm() > 0


@torch.inference_mode()
def test_patches_see_whole_streams(network):
    """Of the last block too, where nothing else needs more than the generated tokens."""
    plain, seen = forward(network), []
    image, text = 6 * 5 + 4 * 4, TEXTS + TOKENS

    def look(out):
        seen.append((out["img"].shape[1], out["txt"].shape[1]))
        return out

    last = ("double_block", len(network.transformer_blocks) - 1)
    replace = {"dit": {last: lambda args, extra: look(extra["original_block"](args))}}
    assert relative(forward(network, patches_replace=replace), plain) < 1e-5
    assert seen == [(image, text)]
    seen.clear()
    assert relative(forward(network, patches={"double_block": [look]}), plain) < 1e-5
    assert seen == [(image, text)] * len(network.transformer_blocks)
