"""The MODEL's network by itself: what it keeps between forwards, and what patches on its blocks see."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from support import gpu_attention
from support.checkpoints import CHECKPOINT
from support.inprocess import PACK, load_pack
from support.networks import randomise
from support.tensors import noise, relative

TEXTS, TOKENS = 6, 16
IMAGE_MASK, GRIDS = (False,) * 2 + (True,) * TOKENS + (False,) * 4, ((1, 4, 4),)


@pytest.fixture(scope="module")
def host():
    load_pack()
    names = {
        "nodes": "nodes.comfy.model",
        "core": "internvlu_core.models.mmdit",
        "config": "internvlu_core.checkpoints.config",
    }
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
    forms = (importlib.import_module(f"{PACK}.nodes.comfy.packing").Form(IMAGE_MASK, GRIDS, 1),)
    arguments = noise(1, 16, 1, height, width), torch.tensor([749.0]), context, forms, [reference]
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
    mask, grids = torch.tensor(IMAGE_MASK), list(GRIDS)
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


@pytest.mark.parametrize(("patch", "channels"), [(3, 16), (4, 16), (1, 8)])
def test_latents_that_comfyuis_sizes_do_not_fit_are_refused(host, patch, channels):
    """Patches of 2, the released model's, and of 1, the toy's, divide the 16 pixels that all sizes are multiples of."""
    config = host.config.Config.read(CHECKPOINT)
    mmdit, vae = replace(config.mmdit, patch_size=patch), replace(config.vae, latent_channels=channels)
    error = importlib.import_module(f"{PACK}.internvlu_core.errors").CheckpointError
    with pytest.raises(error, match=f"patches of {patch} and {channels} channels"):
        host.nodes.build_model(replace(config, mmdit=mmdit, vae=vae), {}, None)


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


def branch_alone(network, form, length, references, seed, **options):
    """(inputs of a forward of one branch of two pictures, its velocity)."""
    inputs = {
        "x": noise(2, 16, 1, 12, 10, seed=seed),
        "timestep": torch.tensor([749.0, 512.0]),
        "context": noise(2, length, network.config.context_size, seed=seed + 1),
        "forms": (form,),
        "ref_latents": [noise(2, 16, 1, 8, width, seed=seed + width) for width in references],
    }
    return inputs, network(**inputs, transformer_options=options)


@pytest.mark.parametrize("inside", [None, "patches", "patches_replace", "override"])
@torch.inference_mode()
def test_branches_of_any_form_share_a_forward(network, inside):
    """As conds are concatenated; each branch as if alone. Patches and attention overrides see one branch at a time."""
    packing = importlib.import_module(f"{PACK}.nodes.comfy.packing")
    told = []

    def tell(args, *_):
        told.append((args["transformer_options"]["cond_or_uncond"], len(args["img"])))
        return args

    def override(function, *arguments, **options):
        told.append((options["transformer_options"]["cond_or_uncond"], len(arguments[0])))
        return function(*arguments, **options)

    options = {
        None: {},
        "patches": {"patches": {"double_block": [tell]}},
        "patches_replace": {
            "patches_replace": {"dit": {("double_block", 0): lambda args, more: more["original_block"](tell(args))}}
        },
        "override": {"optimized_attention_override": override},
    }[inside]
    forms = [
        packing.Form(IMAGE_MASK, GRIDS, 2),
        packing.Form((False,) * 5),
        packing.Form((False,) * TEXTS + (True,) * TOKENS, GRIDS, 1),
    ]
    inputs, expected = zip(
        *(
            branch_alone(network, form, len(form.image_mask), widths, seed, cond_or_uncond=[seed])
            for seed, (form, widths) in enumerate(zip(forms, ((8, 6), (), (4,)), strict=True))
        ),
        strict=True,
    )
    first, *others = (packing.Contexts(each["context"]) for each in inputs)
    context = first.concat(others)
    assert context.shape[:2] == (6, TEXTS + TOKENS)
    first, *others = (packing.References(each["ref_latents"]) for each in inputs)
    assert all(first.can_concat(other) for other in others)
    found = network(
        torch.cat([each["x"] for each in inputs]),
        torch.cat([each["timestep"] for each in inputs]),
        context,
        tuple(forms),
        first.concat(others),
        transformer_options={"cond_or_uncond": [0, 1, 2], **options},
    )
    assert relative(found, torch.cat(expected)) < 1e-5
    assert {tuple(which): rows for which, rows in told} == ({(0,): 2, (1,): 2, (2,): 2} if inside else {})


def test_contexts_that_cannot_share_a_forward():
    contexts = importlib.import_module(f"{PACK}.nodes.comfy.packing").Contexts
    one = contexts(torch.zeros(1, 4, 8))
    assert one.can_concat(contexts(torch.zeros(1, 9, 8)))
    for other in (torch.zeros(2, 4, 8), torch.zeros(1, 4, 6), torch.zeros(1, 4, 8, device="meta")):
        assert not one.can_concat(contexts(other))


@pytest.mark.parametrize(
    "dtype, kernel, chosen",
    [
        (torch.float32, "attention_pytorch", False),
        (torch.float32, "attention_sub_quad", True),
        (torch.bfloat16, "attention_sub_quad", False),
    ],
)
def test_attention_on_a_cpu(host, monkeypatch, dtype, kernel, chosen):
    """PyTorch's in float32, where ComfyUI's own choice takes twice as long, unless the user chose that."""
    from comfy.cli_args import args
    from comfy.ldm.modules import attention

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_sub_quad)
    monkeypatch.setattr(args, "use_quad_cross_attention", chosen)
    used = []
    for name in ("attention_pytorch", "attention_sub_quad"):
        spy = spying(getattr(attention, name), used)
        if attention.optimized_attention is getattr(attention, name):
            monkeypatch.setattr(attention, "optimized_attention", spy)
        monkeypatch.setattr(attention, name, spy)
    q = noise(1, 2, 5, 8).to(dtype)
    assert host.nodes.attention(q, q, q).shape == q.shape
    assert used == [kernel]


def spying(function, used: list[str]):
    def spy(*args, **kwargs):
        used.append(function.__name__)
        return function(*args, **kwargs)

    return spy


@pytest.mark.parametrize("name", ["sage", "flash"])
@torch.inference_mode()
def test_attention_that_the_user_chose(host, monkeypatch, caplog, name):
    """What --use-sage-attention and --use-flash-attention select gets every call in a form that its package takes."""
    import comfy.ldm.modules.attention as attention
    import comfy.ops

    config = replace(host.config.Config.read(CHECKPOINT).mmdit, num_layers=2)
    operations = comfy.ops.disable_weight_init
    network = randomise(host.nodes.ComfyMMDiT(config, dtype=torch.bfloat16, operations=operations)).bfloat16()

    def run():
        context, reference = noise(1, TEXTS + TOKENS, config.context_size, seed=1), noise(1, 16, 1, 8, 8, seed=2)
        forms = (importlib.import_module(f"{PACK}.nodes.comfy.packing").Form(IMAGE_MASK, GRIDS, 1),)
        x = noise(1, 16, 1, 12, 10).bfloat16()
        return network(x, torch.tensor([749.0]), context.bfloat16(), forms, [reference.bfloat16()])

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    expected = run()
    monkeypatch.setattr(attention, "sageattn", gpu_attention.sageattn, raising=False)
    monkeypatch.setattr(attention, "flash_attn_func", gpu_attention.flash_attn_func, raising=False)
    monkeypatch.setattr(attention, "optimized_attention", getattr(attention, f"attention_{name}"))
    gpu_attention.CALLS.clear()
    found = run()
    called = {"sage": "sageattn", "flash": "flash_attn_func"}[name]
    assert [called] * config.num_layers == gpu_attention.CALLS
    assert not caplog.records, "ComfyUI falls back to PyTorch's with a message"
    assert relative(found, expected) < 1e-2
