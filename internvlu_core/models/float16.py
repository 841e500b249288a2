"""Computing in float16 without overflow: its largest finite value is 65504.

Values grow where residual streams add up, in the products inside SwiGLU, and in the projections back into a stream.
With float16 as the compute dtype, a stream is therefore kept in float32, and what is read from it or projected into it
is divided by a power of two for each token, which costs no precision. Float32 and bfloat16 pass through unchanged.

GPUs without bfloat16 (Turing) need this: in float32 they are several times slower. The projections are not computed in
float32 either, as some T5 implementations do, since they are half of a block's arithmetic.

Source: docs/model.md, "Differences from the official code".
"""

import torch
from torch import Tensor, nn

# Inputs up to this value cannot overflow a projection whose weights' absolute row sums stay below 65504 / 16 = 4094. A
# row of 6144 weights of the usual size, 0.02, sums up to about 100.
LIMIT = 16


def to_residual_dtype(x: Tensor) -> Tensor:
    """The dtype of a residual stream: float32 for float16, otherwise that of x."""
    return x.float() if x.dtype == torch.float16 else x


def scale_down(x: Tensor, limit: float = LIMIT) -> tuple[Tensor, Tensor]:
    """(x / scale, scale [..., 1]). scale is, for each token, the least power of two ≥ 1 that keeps |x| ≤ limit."""
    largest = x.abs().amax(dim=-1, keepdim=True).float()
    scale = torch.exp2(torch.ceil(torch.log2(largest / limit))).clamp(min=1)
    return x / scale.to(x.dtype), scale


def scale_for_norm(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of a residual stream [..., C] as the input of a norm over C, in the compute dtype.

    In float16 each token may be scaled down, which such a norm does not see.
    """
    return scale_down(x)[0].to(dtype) if dtype == torch.float16 else x


def project_to_residual(linear: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """linear(x) [B, T, C], to be added to a residual stream, in the stream's dtype. dtype: of the computation."""
    if dtype != torch.float16:
        return linear(x)
    # In float16 if x is in it: that takes half the memory, and a division by a power of two rounds as in float32.
    x, scale = scale_down(x)
    # The bias must not be scaled. A further row of zeros gives it, also where a host patches or moves the weights.
    x = nn.functional.pad(x.to(dtype), (0, 0, 0, 1))  # by the same name, so that the smaller one is freed
    out = linear(x).float()
    out, bias = out[..., :-1, :], out[..., -1:, :]
    return (out - bias) * scale + bias
