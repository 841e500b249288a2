"""Attention for training: it takes a padding mask, and its backward pass is fast on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """softmax(qkᵀ/√D) v for q, k, v [B, heads, T, D].

    mask: [B, T_k], False for keys that are padding; not together with is_causal.
    """
    if q.device.type != "cpu":
        mask = None if mask is None else mask[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
    # On a CPU the backward pass of the fused kernel took a third of a training step; plain matrix products are faster.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.float().softmax(-1).to(v.dtype) @ v
