"""The layers of the networks."""

import pytest
import torch
import torch.nn.functional as F

from internvlu_core.models import operations
from internvlu_core.models.operations import Conv2d, Linear
from internvlu_core.quantization import find_format
from support.tensors import noise, relative


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows, dtype", [(1, torch.float32), (2, torch.float32), (1, torch.bfloat16)])
def test_linear(monkeypatch, rows, dtype, bias):
    """oneDNN's product for what F.linear leaves to one thread, and only for that; the same numbers."""
    assert Linear.by_rows is not None, "this torch has oneDNN"
    calls, by_rows = [], Linear.by_rows

    def spy(*args):
        calls.append(args[0].shape)
        return by_rows(*args)

    monkeypatch.setattr(Linear, "by_rows", staticmethod(spy))
    layer = Linear(48, 96, bias=bias).to(dtype)
    x = noise(1, rows, 48).to(dtype)
    with torch.inference_mode():
        found = layer(x)
    assert found.shape == (1, rows, 96) and found.dtype == dtype
    assert relative(found.float(), F.linear(x, layer.weight, layer.bias).float()) < 1e-5
    assert len(calls) == (rows == 1 and dtype == torch.float32)


def test_linear_learns():
    layer = Linear(48, 96)
    layer(noise(1, 1, 48)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.fixture
def emulation(monkeypatch):
    """A CPU without bfloat16 instructions. Returns the dtypes in which products are computed."""
    monkeypatch.setattr(operations, "CPU_BFLOAT16", False)
    dtypes = []
    for name in ("linear", "conv2d"):
        product = getattr(F, name)
        spy = lambda x, *args, product=product: (dtypes.append(x.dtype), product(x, *args))[1]  # noqa: E731
        monkeypatch.setattr(F, name, spy)
    return dtypes


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 40])
def test_bfloat16_on_a_cpu_without_its_instructions(monkeypatch, emulation, rows, bias):
    """The product in pieces is the exact one, rounded once."""
    monkeypatch.setattr(operations, "PIECE", 100)
    monkeypatch.setattr(operations, "LEAST_ROWS", 4)
    layer = Linear(24, 37, bias=bias, dtype=torch.bfloat16)
    x = noise(2, rows, 24).bfloat16()[:1]
    with torch.inference_mode():
        found = layer(x)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert found.dtype == torch.bfloat16 and relative(found.double(), exact) < 4e-3
    assert emulation[:-1] == ([torch.bfloat16] if rows <= 4 else [torch.float32] * 10)


def test_bfloat16_convolutions_on_a_cpu_without_its_instructions(emulation):
    layer = Conv2d(3, 5, 3, stride=2, padding=1, dtype=torch.bfloat16)
    x = noise(2, 3, 9, 8).bfloat16()
    with torch.inference_mode():
        found = layer(x)
    assert emulation == [torch.float32]
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), 2, 1)
    assert found.dtype == torch.bfloat16 and relative(found.double(), exact) < 4e-3


@pytest.mark.parametrize("name", ["fp8", "int8_tensorwise"])
def test_weights_in_fewer_bits_on_a_cpu_without_bfloat16_instructions(emulation, name):
    stored = find_format(name).quantise(noise(37, 32).bfloat16())
    with torch.inference_mode():
        found = find_format(name).multiply(noise(2, 9, 32).bfloat16(), stored, None)
    assert found.dtype == torch.bfloat16 and emulation == [torch.float32]


@pytest.mark.parametrize("kind, sizes, shape", [(Linear, (8, 4), (2, 9, 8)), (Conv2d, (3, 4, 3), (2, 3, 8, 8))])
def test_other_products_are_pytorchs(emulation, kind, sizes, shape):
    """Those whose gradients are recorded, and those of float32."""
    learning, plain = kind(*sizes, dtype=torch.bfloat16), kind(*sizes)
    learning(noise(*shape).bfloat16()).sum().backward()
    with torch.inference_mode():
        plain(noise(*shape))
    assert emulation == [torch.bfloat16, torch.float32] and learning.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "capability, instructions, has", [("AVX2", False, False), ("AVX512", False, False), ("AVX512", True, True)]
)
def test_emulation_does_not_count_as_bfloat16(monkeypatch, capability, instructions, has):
    """oneDNN says that it supports bfloat16 on every AVX-512. On an Ice Lake it takes four times as long as float32."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, raising=False)
    assert operations._cpu_has_bfloat16() == has
