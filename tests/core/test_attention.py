"""Attention by other functions than torch's, and several branches in one call; see tests/support/gpu_attention.py."""

import inspect
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from internvlu_core import InputError, InternVLU, cli
from internvlu_core.checkpoints.config import Config
from internvlu_core.models.attention import NAMES, Flash, TorchVarlen, by_branch, find_attention
from internvlu_core.models.mmdit import MMDiT, pack
from support.checkpoints import CHECKPOINT
from support.gpu_attention import CALLS, attention_of_sequences, flash_attn_func, flash_attn_varlen_func, sageattn
from support.networks import randomise
from support.tensors import noise, relative

CONFIG = Config.read(CHECKPOINT).mmdit
GPU, HALF = torch.device("cuda"), torch.bfloat16


@pytest.fixture
def packages(monkeypatch):
    """sageattention, flash_attn, and torch's varlen_attn."""
    CALLS.clear()
    functions = {"sageattention": [sageattn], "flash_attn": [flash_attn_func, flash_attn_varlen_func]}
    for name, members in functions.items():
        module = ModuleType(name)
        vars(module).update({function.__name__: function for function in members})
        monkeypatch.setitem(sys.modules, name, module)
    signature = inspect.signature(varlen.varlen_attn)

    def varlen_attn(*args, **kwargs):
        return attention_of_sequences("varlen_attn", **signature.bind(*args, **kwargs).arguments)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)


# Functions


def random_branches(q_lengths, k_lengths, batch=2, heads=3, size=16):
    q, k, v = (noise(batch, sum(n), heads, size, seed=i) for i, n in enumerate((q_lengths, k_lengths, k_lengths)))
    return q.to(HALF), k.to(HALF), v.to(HALF), q_lengths, k_lengths


@pytest.mark.parametrize("kind", [Flash, TorchVarlen])
@pytest.mark.parametrize("lengths", [((5, 9, 2), (5, 9, 2)), ((4, 4), (7, 5)), ((3,), (8,))], ids=str)
def test_one_call_equals_one_for_each_branch(packages, kind, lengths):
    """Also of a batch, and of queries that are fewer than keys, as in the last block."""
    arguments = random_branches(*lengths)
    module = varlen if kind is TorchVarlen else sys.modules["flash_attn"]
    found = kind(module).packed(*arguments)
    expected = by_branch(F.scaled_dot_product_attention, *arguments)
    assert len(CALLS) == 1 and len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and relative(a, b) < 1e-2


@pytest.fixture(scope="module")
def network():
    return randomise(MMDiT(CONFIG)).to(HALF)


def velocities(network, attention, pictures=2):
    """Of three branches, one of which has a reference."""
    network.use_attention(attention)
    x, reference = (noise(n, 16, 4, 6, seed=n).to(HALF) for n in (pictures, 1))
    contexts = [noise(1, length, CONFIG.context_size, seed=length).to(HALF) for length in (9, 4, 7)]
    branches = [
        network.prepare(network.grid(x), context, torch.zeros(context.shape[1], dtype=torch.bool), [], references)
        for context, references in zip(contexts, ([reference], [], [reference]), strict=True)
    ]
    return torch.stack(network.velocities(x, torch.full((pictures,), 500.0), pack(branches)))


@pytest.mark.parametrize(
    ("name", "called", "times"),
    [("sage", "sageattn", 3), ("flash", "flash_attn_varlen_func", 1), ("varlen", "varlen_attn", 1)],
)
@torch.inference_mode()
def test_a_network_computes_the_same(network, packages, name, called, times):
    expected = velocities(network, F.scaled_dot_product_attention)
    found = velocities(network, find_attention(name, GPU, HALF, CONFIG.head_dim))
    assert relative(found, expected) < 2e-2
    assert [called] * times * CONFIG.num_layers == CALLS
    wrong = velocities(network, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0))
    assert relative(wrong, expected) > 5e-2, "the attention must matter here"


# Names


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_torch_is_the_default(name):
    assert find_attention(name, torch.device("cpu"), torch.float32, 512) is F.scaled_dot_product_attention


@pytest.mark.parametrize(
    ("name", "device", "dtype", "head_dim", "message"),
    [
        ("fast", GPU, HALF, 128, "'fast'.*auto, torch, sage, flash, varlen, or a function"),
        ("sage", torch.device("cpu"), HALF, 128, "needs a GPU.*'cpu'"),
        ("flash", GPU, torch.float32, 128, "float16 or bfloat16; the dtype is torch.float32"),
        ("sage", GPU, HALF, 192, "heads of at most 128; these have 192"),
    ],
)
def test_what_cannot_be_computed(packages, name, device, dtype, head_dim, message):
    with pytest.raises(InputError, match=message):
        find_attention(name, device, dtype, head_dim)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("sage", "sageattention", "sageattention"),
        ("flash", "flash_attn", "flash-attn"),
        ("varlen", "torch.nn.attention.varlen", "torch 2.10 or newer"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"needs {package}, which is not installed here"):
        find_attention(name, GPU, HALF, 128)


def test_a_function_of_the_caller(photo):
    """It gets the MMDiT's calls, and those alone."""
    calls = []

    def attention(q, k, v):
        calls.append((q.shape, k.shape))
        return F.scaled_dot_product_attention(q, k, v)

    model = InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float32, attention=attention)
    assert len(model.answer("What is <image>?", [photo], max_new_tokens=1).token_ids) == 1 and not calls
    expected = InternVLU.from_pretrained(CHECKPOINT, dtype=torch.float32).generate(
        "a cat", height=64, width=80, steps=2
    )
    found = model.generate("a cat", height=64, width=80, steps=2)
    assert torch.equal(found.latents, expected.latents)
    assert len(calls) == 2 * 2 * CONFIG.num_layers, "steps, branches, blocks"


def test_command_line(monkeypatch, capsys):
    options = cli.parser().parse_args(["generate", str(CHECKPOINT), "a cat", "--device", "cpu", "--attention", "sage"])
    with pytest.raises(InputError, match="needs a GPU"):
        cli.load(options)
    for name in NAMES:
        assert cli.parser().parse_args(["answer", "folder", "a cat", "--attention", name]).attention == name
