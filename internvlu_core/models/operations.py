"""The layers of the networks, unless a host gives its own: PyTorch's, with faster products where it is slow on a CPU.

On a processor without bfloat16 instructions (AVX2; AVX-512 before AVX512_BF16) PyTorch emulates them, at a quarter of
the speed of float32. There bfloat16 is computed in float32, and the result is rounded once, as such instructions round.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 4  # up to which emulation is about as fast or faster, since it reads half the bytes
PIECE = 2**18  # weights that are in float32 at a time, so that they stay in the processor's cache
LEAST_ROWS = 256  # of a weight, at a time: a product with fewer is slow


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 at least as fast as in float32."""
    return device.type != "cpu" or CPU_BFLOAT16


def _cpu_has_bfloat16() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512"):  # oneDNN says yes on every AVX-512, also where it emulates
        return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capability == "AVX512")()  # since torch 2.6
    return getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)()


CPU_BFLOAT16 = _cpu_has_bfloat16()


def emulated(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would emulate this product. False while gradients or a graph are recorded."""
    slow = x.dtype == weight.dtype == torch.bfloat16 and not bfloat16_is_fast(x.device)
    return slow and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, fast on any CPU."""
    if not emulated(x, weight) or x.shape[:-1].numel() <= FEW_ROWS:
        return F.linear(x, weight, bias)
    wide, out = x.float(), x.new_empty(*x.shape[:-1], weight.shape[0])
    rows = max(LEAST_ROWS, PIECE // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        piece = slice(start, start + rows)
        out[..., piece] = F.linear(wide, weight[piece].float(), None if bias is None else bias[piece].float())
    return out


class Linear(nn.Linear):
    """nn.Linear as `linear` computes it, but with oneDNN for a single float32 row on a CPU, where F.linear uses only
    one thread.
    """

    by_rows = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

    def forward(self, x: Tensor) -> Tensor:
        single = (
            x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and x.numel() == self.in_features
        )
        if self.by_rows is None or not single or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return linear(x, self.weight, self.bias)
        return self.by_rows(x, self.weight, self.bias, "none", [], "")


class Conv2d(nn.Conv2d):
    """nn.Conv2d, fast on any CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not emulated(x, self.weight):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(x.float(), self.weight.float(), bias).to(x.dtype)


class Operations:
    """The namespace of layers that the networks take."""

    Linear, Conv2d = Linear, Conv2d
    Embedding, LayerNorm, RMSNorm = nn.Embedding, nn.LayerNorm, nn.RMSNorm
