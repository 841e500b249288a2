"""Other attention functions than torch's for the MMDiT, from packages that a user may have installed.

A network calls an attention function with q, k, v [B, heads, T, head_dim]. A function that has a method `packed`
computes several branches of different lengths in one call; see by_branch for its arguments.

Signatures: SageAttention 2.2 (arXiv 2411.10958), `sageattn`; FlashAttention 2.1 and later (arXiv 2307.08691),
`flash_attn_func` and `flash_attn_varlen_func`; torch 2.10 and later, `torch.nn.attention.varlen.varlen_attn`.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

Attention = Callable[..., Tensor]
Lengths = tuple[int, ...]  # tokens of each branch


def by_branch(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, q_lengths: Lengths, k_lengths: Lengths, **options
) -> list[Tensor]:
    """The attention output [B, tokens, heads, D] of each branch, one call after the other.

    q, k, v [B, tokens of all branches, heads, D], the branches one after the other. q_lengths, k_lengths: tokens of
    each branch in q, and in k and v. options go to the attention function.
    """
    branches = zip(q.split(q_lengths, 1), k.split(k_lengths, 1), v.split(k_lengths, 1), strict=True)
    return [attention(*(t.transpose(1, 2) for t in branch), **options).transpose(1, 2) for branch in branches]


class Sage:
    """SageAttention: queries and keys in 8 bits, so the result is not exact."""

    package, module, largest_head = "sageattention", "sageattention", 128

    def __init__(self, module):
        self.function = module.sageattn

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(q, k, v, tensor_layout="HND", is_causal=False)


class Flash:
    """FlashAttention, with all branches in one call."""

    package, module, largest_head = "flash-attn", "flash_attn", 256

    def __init__(self, module):
        self.function, self.varlen = module.flash_attn_func, module.flash_attn_varlen_func

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, q_lengths: Lengths, k_lengths: Lengths) -> list[Tensor]:
        """As by_branch."""
        # Of a batch, each row is as many sequences as there are branches.
        ends = (cumulative(lengths, len(q), q.device) for lengths in (q_lengths, k_lengths))
        rows = (t.flatten(0, 1) for t in (q, k, v))  # [all tokens, heads, D]
        out = self.varlen(*rows, *ends, max(q_lengths), max(k_lengths))
        return list(out.unflatten(0, (len(q), -1)).split(q_lengths, 1))


class TorchVarlen(Flash):
    """torch's own FlashAttention for sequences of different lengths; a single branch is torch's usual attention."""

    package, module = "torch 2.10 or newer", "torch.nn.attention.varlen"

    def __init__(self, module):
        self.varlen = module.varlen_attn

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


PACKAGES = {"sage": Sage, "flash": Flash, "varlen": TorchVarlen}
NAMES = ("auto", "torch", *PACKAGES)  # "auto" is torch's: "varlen" was slower (docs/speed.md)
DTYPES = (torch.float16, torch.bfloat16)


def find_attention(name: str | Attention, device: torch.device, dtype: torch.dtype, head_dim: int) -> Attention:
    """The attention function of a name in NAMES, which a function may take the place of.

    device, dtype, head_dim: of what it will compute. Raises InputError for another name, a package that is not
    installed, or a device, dtype or head that the package does not compute.
    """
    if callable(name):
        return name
    if name not in NAMES:
        raise InputError(f"attention is {name!r}; it must be one of {', '.join(NAMES)}, or a function")
    if name not in PACKAGES:
        return F.scaled_dot_product_attention
    kind = PACKAGES[name]
    if device.type != "cuda":
        raise InputError(f"attention={name!r} needs a GPU of NVIDIA or AMD; the device is {str(device)!r}")
    if dtype not in DTYPES:
        raise InputError(f"attention={name!r} computes in float16 or bfloat16; the dtype is {dtype}")
    if head_dim > kind.largest_head:
        raise InputError(f"attention={name!r} computes heads of at most {kind.largest_head}; these have {head_dim}")
    try:
        return kind(import_module(kind.module))
    except (ImportError, AttributeError) as error:
        raise InputError(f"attention={name!r} needs {kind.package}, which is not installed here: {error}") from error


@lru_cache(maxsize=16)
def cumulative(lengths: Lengths, times: int, device: torch.device) -> Tensor:
    """0, and where each sequence ends [times · branches + 1], int32. Kept, for a step must not copy to the device."""
    return torch.tensor([0, *accumulate(lengths * times)], dtype=torch.int32, device=device)
