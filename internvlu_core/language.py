"""Qwen3, the language model (arXiv 2505.09388): hidden states for the generator, logits for text."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LanguageConfig
from .float16 import for_norm, project, widened


class KVCache:
    """Keys and values [layers, batch, kv_heads, capacity, head_dim] of the tokens read so far."""

    def __init__(self, config: LanguageConfig, batch: int, capacity: int, *, dtype, device):
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens; return those of all tokens so far."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor):
        """Make batch row i continue the text of row rows[i] (beams; also widens the batch)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class Qwen3(nn.Module):
    """Embeddings [B, T, C] → hidden states; see forward. attention takes q, k, v and is_causal."""

    def __init__(self, config: LanguageConfig, operations=nn, attention=F.scaled_dot_product_attention, **factory):
        super().__init__()
        self.config = config
        layers = nn.ModuleList(Layer(config, i, operations, attention, **factory) for i in range(config.num_layers))
        self.model = nn.ModuleDict(
            {
                "embed_tokens": operations.Embedding(config.vocab_size, config.hidden_size, **factory),
                "layers": layers,
                "norm": operations.RMSNorm(config.hidden_size, eps=config.norm_eps, **factory),
            }
        )
        if not config.tied_head:
            self.lm_head = operations.Linear(config.hidden_size, config.vocab_size, bias=False, **factory)

    def forward(self, x: Tensor, select: tuple[int, ...], cache: KVCache | None = None) -> list[Tensor]:
        """Hidden states [B, T, C] at each index of [input of layer 0, …, input of the last layer, final norm].

        Layers' inputs are float32 where x is float16, whose range they can leave. With a cache, x continues the cached
        tokens: either the whole prompt (into an empty cache) or one token.
        """
        start = cache.length if cache else 0
        rope = rotary_table(self.config, torch.arange(start, start + x.shape[1], device=x.device))
        last = self.config.num_layers
        states, dtype, x = {}, x.dtype, widened(x)
        for index, layer in enumerate(self.model["layers"]):
            if index in select:
                states[index] = x
            if index == max(select):
                break
            x = layer(x, dtype, rope, cache)
        if last in select:
            states[last] = self.model["norm"](for_norm(x, dtype))
        if cache:
            cache.length += x.shape[1]
        return [states[index] for index in select]

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [..., C] → next-token logits [..., vocabulary], float32."""
        if self.config.tied_head:
            table = self.model["embed_tokens"].weight
            return F.linear(hidden, table.to(hidden.device, hidden.dtype)).float()
        return self.lm_head(hidden).float()


class Layer(nn.Module):
    def __init__(self, config: LanguageConfig, index: int, operations, attention, **factory):
        super().__init__()
        self.input_layernorm = operations.RMSNorm(config.hidden_size, eps=config.norm_eps, **factory)
        self.self_attn = Attention(config, index, operations, attention, **factory)
        self.post_attention_layernorm = operations.RMSNorm(config.hidden_size, eps=config.norm_eps, **factory)
        self.mlp = MLP(config, operations, **factory)

    def forward(self, x: Tensor, dtype: torch.dtype, rope: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(for_norm(x, dtype)), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(for_norm(x, dtype)))


class Attention(nn.Module):
    """Causal grouped-query attention with RMSNorm on each head's queries and keys."""

    def __init__(self, config: LanguageConfig, index: int, operations, attention, **factory):
        super().__init__()
        self.config, self.index, self.attention = config, index, attention
        bias = config.attention_bias
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = operations.Linear(config.hidden_size, q_size, bias=bias, **factory)
        self.k_proj = operations.Linear(config.hidden_size, kv_size, bias=bias, **factory)
        self.v_proj = operations.Linear(config.hidden_size, kv_size, bias=bias, **factory)
        self.o_proj = operations.Linear(q_size, config.hidden_size, bias=bias, **factory)
        self.q_norm = operations.RMSNorm(config.head_dim, eps=config.norm_eps, **factory)
        self.k_norm = operations.RMSNorm(config.head_dim, eps=config.norm_eps, **factory)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.config.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = rotate(self.q_norm(q), rope).transpose(1, 2)  # [B, heads, T, D]
        k = rotate(self.k_norm(k), rope).transpose(1, 2)  # [B, kv_heads, T, D]
        v = v.transpose(1, 2)
        if cache:
            k, v = cache.extend(self.index, k, v)
        return project(self.o_proj, self.attend(q, k, v).transpose(1, 2).flatten(2), x.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = self.config.num_heads // self.config.num_kv_heads
        if q.shape[2] == 1:
            # One new token sees everything, so the heads that share keys can stand in for query positions and the
            # cache need not be repeated for each of them.
            return self.attention(q.unflatten(1, (-1, groups)).flatten(2, 3), k, v, is_causal=False).reshape(q.shape)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return self.attention(q, k, v, is_causal=True)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: LanguageConfig, operations, **factory):
        super().__init__()
        self.gate_proj = operations.Linear(config.hidden_size, config.mlp_size, bias=False, **factory)
        self.up_proj = operations.Linear(config.hidden_size, config.mlp_size, bias=False, **factory)
        self.down_proj = operations.Linear(config.mlp_size, config.hidden_size, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        product = F.silu(widened(self.gate_proj(x))) * widened(self.up_proj(x))
        return project(self.down_proj, product, x.dtype)


def rotary_table(config: LanguageConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, head_dim / 2] of the rotation angles, float32 (RoFormer, arXiv 2104.09864)."""
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[:, None] * (1.0 / config.rope_theta ** (channels / config.head_dim))
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, T, heads, D]; channel i is paired with channel i + D/2."""
    cos, sin = (t.to(x.dtype) for t in rope)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
