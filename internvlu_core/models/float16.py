"""Computing in float16, in which everything above 65504 is infinite, without overflow.

Values grow where residual streams add up, in the products inside SwiGLU, and in the projections back into a stream. So
with float16 as the compute dtype a stream is kept in float32, and what is read from it or projected into it is scaled
by a power of two per token, which costs no precision. Float32 and bfloat16 pass through here bit by bit unchanged.

Why not simply keep float16 for storage: GPUs without bfloat16 (Turing) would then compute in float32, several times
slower. Nor are the projections computed in float32, as T5's are elsewhere: they are half of a block's arithmetic.
"""

import torch
from torch import Tensor, nn

# No partial sum of a projection can overflow while its weights' absolute row sums stay below 65504 / 16 = 4094. A row
# of 6144 weights of the usual size, 0.02, sums up to 100.
LIMIT = 16


def to_residual_dtype(x: Tensor) -> Tensor:
    """In float32 if it is float16, as residual streams are; else as it is."""
    return x.float() if x.dtype == torch.float16 else x


def scale_down(x: Tensor, limit: float = LIMIT) -> tuple[Tensor, Tensor]:
    """(x / scale, scale [..., 1]): per token the least power of two from 1 up for which no value exceeds limit."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    scale = torch.exp2(torch.ceil(torch.log2(largest / limit))).clamp(min=1)
    return x / scale, scale


def scale_for_norm(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A stream's values in the compute dtype, up to a factor per token: norms over channels do not see it."""
    return scale_down(x)[0].to(dtype) if dtype == torch.float16 else x


def project_to_residual(linear: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """linear(x) [B, T, C] for a stream, whose dtype it has, computed in dtype."""
    if dtype != torch.float16:
        return linear(x)
    x, scale = scale_down(to_residual_dtype(x))
    # A row of zeros more tells the bias, which must not be scaled. (A host may hold, patch and move it: ask the layer.)
    out = linear(nn.functional.pad(x.to(dtype), (0, 0, 0, 1))).float()
    out, bias = out[..., :-1, :], out[..., -1:, :]
    return (out - bias) * scale + bias
