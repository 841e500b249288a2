"""The language model's own layers."""

import pytest
import torch
import torch.nn.functional as F

from internvlu_core.models import language
from internvlu_core.models.language import Linear
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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 40])
def test_bfloat16_on_a_cpu_without_its_instructions(monkeypatch, rows, bias):
    """The product in pieces is the exact one, rounded once."""
    monkeypatch.setattr(language, "CPU_BFLOAT16", False)
    monkeypatch.setattr(language, "PIECE", 100)
    layer = language.Linear(24, 37, bias=bias, dtype=torch.bfloat16)
    x = noise(2, rows, 24).bfloat16()[:1]
    pieces = []
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda t, *args, **k: (pieces.append(1), split(t, *args, **k))[-1])
    with torch.inference_mode():
        found = layer(x)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert found.dtype == torch.bfloat16 and relative(found.double(), exact) < 4e-3
    assert bool(pieces) == (rows > 4)
