"""Stand-ins for attention packages that need a GPU.

They have the packages' signatures, refuse what the packages refuse, and compute with torch. Each call is in CALLS.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F

CALLS = []


def check_inputs(q, k, v, largest_head: int):
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
    assert all(t.stride(-1) == 1 for t in (q, k, v)), "kernels need contiguous channels"
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] <= largest_head
    assert k.shape == v.shape


def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
    assert tensor_layout == "HND" and not is_causal and sm_scale is None and not return_lse
    assert kwargs.get("attn_mask") is None, "the package ignores a mask without a word"
    check_inputs(q, k, v, 128)
    assert q.ndim == 4 and q.shape[:2] == k.shape[:2]
    CALLS.append("sageattn")
    return F.scaled_dot_product_attention(q, k, v)


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    assert not dropout_p and softmax_scale is None and not causal and not return_attn_probs
    check_inputs(q, k, v, 256)
    assert q.ndim == 4 and (len(q), q.shape[2]) == (len(k), k.shape[2])
    CALLS.append("flash_attn_func")
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    assert not dropout_p and softmax_scale is None and not causal and not return_attn_probs
    return attention_of_sequences(
        "flash_attn_varlen_func", q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    )


def attention_of_sequences(called, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """softmax(q·kᵀ/√D)·v of each sequence, of tokens [T, heads, D], written out."""
    check_inputs(query, key, value, 256)
    for tokens, ends, longest in ((query, cu_seq_q, max_q), (key, cu_seq_k, max_k)):
        assert tokens.ndim == 3 and ends.dtype == torch.int32 and ends.device == tokens.device
        assert ends[0] == 0 and ends[-1] == len(tokens) and ends.diff().max() == longest
    CALLS.append(called)
    found = []
    for (a, b), (c, d) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        q, k, v = (t.float().transpose(0, 1) for t in (query[a:b], key[c:d], value[c:d]))
        found.append(((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(found).to(query.dtype)
