"""Weights kept in 8 bits: half of bfloat16's memory. They are cast where they are used, so a GPU need not know float8.

float8_e4m3fn has 3 bits of mantissa from 2⁻⁶ up to 448, and ever fewer below. Usual weights, near 0.02, lie where it is
coarse, so each row of a matrix is scaled to end near its top (BENCHMARKS.md has the errors of the schemes). The factors
are powers of two: as exact as any, since the precision is relative, and without rounding of their own in any dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPE = torch.float8_e4m3fn


class Float8Linear(nn.Module):
    """A Linear whose weight is float8, with a factor for each of its rows."""

    def __init__(self, size_in: int, size_out: int, bias: bool, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_out, size_in, dtype=DTYPE), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(size_out, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size_out, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        # Not on the output, which would be cheaper: sums of values up to 448 leave float16's range.
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype)[:, None], self.bias)


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of a network's repeated transformer layers. A VAE has none."""
    return {
        f"{name}.{index}": block
        for name, layers in network.named_modules()
        if name.rpartition(".")[2] in ("transformer_blocks", "layers")
        for index, block in enumerate(layers)
    }


def keep_in_float8(network: nn.Module, state: dict[str, Tensor]):
    """Replace the matrices of a network's repeated layers, and their weights in its state dict, in place.

    The rest, 1% of the released MMDiT, stays as it is: the time embedding alone would cost more precision than these.
    """
    for block_name, block in blocks(network).items():
        for name, layer in list(block.named_modules()):
            if not isinstance(layer, nn.Linear):
                continue
            path = f"{block_name}.{name}"
            weight, scale = quantise(state[f"{path}.weight"])
            replacement = Float8Linear(layer.in_features, layer.out_features, layer.bias is not None, scale.dtype)
            parent, _, attribute = path.rpartition(".")
            setattr(network.get_submodule(parent), attribute, replacement.to("meta"))
            state |= {f"{path}.weight": weight, f"{path}.scale": scale}


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] → (float8 [out, in], factors [out] in its own dtype): weight ≈ float8 · factor, row by row."""
    largest = weight.float().abs().amax(dim=1).clamp(min=2**-15)  # of zeros too; the factor is then float16's least
    scale = torch.exp2(torch.ceil(torch.log2(largest / torch.finfo(DTYPE).max)))
    return (weight.float() / scale[:, None]).to(DTYPE), scale.to(weight.dtype)
