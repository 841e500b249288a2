"""Qwen3, the language model: hidden states for the MMDiT, logits for text.

Source: docs/model.md, "Language model"; Qwen3, arXiv 2505.09388.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.config import LanguageConfig
from .attention import Lengths, by_branch
from .float16 import project_to_residual, scale_for_norm, to_residual_dtype
from .operations import Operations, linear
from .rope import rope_table_1d, rotate_half

WINDOW = (
    256  # tokens; a step of fixed shape attends over a multiple of this many, and is prepared anew for the next one
)


def windows(tokens: int) -> int:
    """This many tokens, rounded up to whole windows."""
    return -(-tokens // WINDOW) * WINDOW


class Cache:
    """What all caches tell the attention.

    mask: added to the attention scores of a new token; None: it attends to all that extend returns. prompts: tokens of
    each of several prompts, which do not see each other; (): all tokens are of one text.
    """

    mask: Tensor | None = None
    prompts: Lengths = ()


class KVCache(Cache):
    """Keys and values [batch, kv_heads, capacity, head_dim] of each layer, for the `length` tokens read so far."""

    def __init__(self, config: LanguageConfig, batch: int, capacity: int, *, dtype, device):
        self.config, self.length = config, 0
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.rope = rope_table(config, capacity, dtype, device)

    def begin(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The rows of the rotary table for the next tokens. extend takes these for each layer, then advance counts."""
        cos, sin = self.rope
        return cos.narrow(0, self.length, tokens), sin.narrow(0, self.length, tokens)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values [batch, kv_heads, tokens, head_dim]. Returns those of all tokens so far."""
        return self._append(self.keys[layer], k), self._append(self.values[layer], v)

    def _append(self, stored: Tensor, new: Tensor) -> Tensor:
        stored.narrow(2, self.length, new.shape[2]).copy_(new)
        return stored.narrow(2, 0, self.length + new.shape[2])

    def advance(self, tokens: int):
        """Count the new tokens, after the last layer has stored them."""
        self.length += tokens

    def select(self, rows: Tensor):
        """Let batch row i continue the text of row rows[i]; the number of rows may change. For beam search."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                if len(rows) != len(tensor):
                    tensors[layer] = tensor[rows]
                else:  # in place, without a copy of the spare capacity
                    tensor[:, :, : self.length] = tensor[rows, :, : self.length]

    def copy(self, length: int, capacity: int, device) -> "KVCache":
        """A new cache with the first `length` tokens of this one."""
        first = self.keys[0]
        other = KVCache(self.config, len(first), capacity, dtype=first.dtype, device=device)
        for mine, its in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            its[:, :, :length] = mine[:, :, :length]
        other.length = length
        return other


class FixedStep(Cache):
    """A KVCache for reading one more token, with tensor shapes that stay the same from token to token.

    A CUDA graph needs that (see replay.py), and so does torch.compile(mode="reduce-overhead"). The new token goes to
    `position` [1]; attention runs over the first `window` slots of the cache and masks those behind the token.
    """

    def __init__(self, cache: KVCache, window: int):
        self.cache, self.window = cache, window
        device = cache.keys[0].device
        self.position = torch.tensor([cache.length], device=device)
        self.slots = torch.arange(window, device=device)
        self.mask = torch.zeros(1, window, dtype=cache.keys[0].dtype, device=device)
        for tensor in (*cache.keys, *cache.values):  # values behind the mask are multiplied by 0, so must be finite
            tensor[:, :, cache.length : window] = 0

    def begin(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The rows of the rotary table for the new token. Sets `mask` [1, window] for all layers."""
        self.mask.zero_().masked_fill_(self.slots > self.position, -math.inf)
        cos, sin = self.cache.rope
        return cos.index_select(0, self.position), sin.index_select(0, self.position)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new token's keys and values. Returns those of the whole window."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(2, self.position, k)
        values.index_copy_(2, self.position, v)
        return keys.narrow(2, 0, self.window), values.narrow(2, 0, self.window)

    def advance(self, tokens: int):
        """Nothing: the session counts, outside of the compiled step."""


class RowCache(Cache):
    """Keys and values of texts of different lengths, a row each, for reading one more token of every text at once.

    lengths: the tokens read of each row in use; these are the first rows. Below, rows counts them. keys, values: as in
    KVCache, with spare rows. mask [rows, 1, 1, window]: hides the slots behind each row's new token.
    """

    def __init__(self, config: LanguageConfig, *, dtype, device):
        self.config, self.dtype, self.device = config, dtype, device
        self.lengths: list[int] = []
        empty = torch.zeros(0, config.num_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self.keys, self.values = [[empty] * config.num_layers for _ in range(2)]

    def reserve(self, rows: int, capacity: int):
        """Have room for this many rows and tokens a row; what is stored in the rows in use is kept."""
        used, length = len(self.lengths), max(self.lengths, default=0)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):  # one by one, so that little is there twice
                tensors[layer] = old.new_zeros(rows, old.shape[1], capacity, old.shape[3])
                tensors[layer][:used, :, :length] = old[:used, :, :length]
        self.rope = rope_table(self.config, capacity, self.dtype, self.device)
        self.slots = torch.arange(capacity, device=self.device)

    @property
    def room(self) -> tuple[int, int]:
        """Rows, and tokens a row."""
        return self.keys[0].shape[0], self.keys[0].shape[2]

    def remove(self, row: int):
        """Free a row; the last row in use moves to its place."""
        last = len(self.lengths) - 1
        if row != last:
            for tensor in (*self.keys, *self.values):
                tensor[row] = tensor[last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def begin(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The rows of the rotary table [rows, 1, 1, head_dim] for the new tokens. Sets `mask` for all layers."""
        self.window = windows(max(self.lengths) + 1)
        self.positions = torch.tensor(self.lengths, device=self.device)
        self.index = torch.arange(len(self.lengths), device=self.device)
        hidden = self.slots[: self.window] > self.positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill(hidden, -math.inf)
        self.mask = mask[:, None, None]
        cos, sin = self.rope
        return cos[self.positions, None], sin[self.positions, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a new token's keys and values [rows, kv_heads, 1, head_dim]. Returns those of the window."""
        return self._store(self.keys[layer], k), self._store(self.values[layer], v)

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        stored[self.index, :, self.positions] = new[:, :, 0]
        return stored[: len(self.lengths), :, : self.window]

    def advance(self, tokens: int):
        """Count the new tokens, after the last layer has stored them."""
        self.lengths = [length + tokens for length in self.lengths]


class PackedPrompts(Cache):
    """Reads several prompts in one forward, one after the other in x [1, tokens, C], into the next rows of a RowCache.

    prompts: tokens of each. The rows must have room for them. They are in use once all layers have stored them.
    """

    def __init__(self, rows: RowCache, prompts: Lengths):
        self.rows, self.prompts = rows, prompts

    def begin(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The rows of the rotary table [tokens, 1, head_dim], from the beginning for each prompt."""
        first, device = len(self.rows.lengths), self.rows.device
        rows = range(first, first + len(self.prompts))
        for tensor in (*self.rows.keys, *self.rows.values):
            tensor[rows.start : rows.stop] = 0  # values behind the mask are multiplied by 0, so must be finite
        lengths = torch.tensor(self.prompts, device="cpu")
        self.index = torch.tensor(rows, device="cpu").repeat_interleave(lengths).to(device)
        self.positions = torch.cat([torch.arange(length, device="cpu") for length in self.prompts]).to(device)
        cos, sin = self.rows.rope
        return cos[self.positions], sin[self.positions]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values [1, kv_heads, tokens, head_dim]. Returns them."""
        for stored, new in ((self.rows.keys[layer], k), (self.rows.values[layer], v)):
            stored[self.index, :, self.positions] = new[0].transpose(0, 1)
        return k, v

    def advance(self, tokens: int):
        """Count the new rows, after the last layer has stored them."""
        self.rows.lengths += self.prompts


def cache_bytes(config: LanguageConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


class Qwen3(nn.Module):
    """Embeddings [B, T, C] → hidden states; see forward. Its parameter names are those of the checkpoint.

    operations: a namespace of layers, ours or a host's own. attention: a function of q, k, v [B, heads, T,
    head_dim] with an option is_causal. factory: dtype and device of the parameters.
    """

    def __init__(
        self, config: LanguageConfig, operations=Operations, attention=F.scaled_dot_product_attention, **factory
    ):
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

    def forward(self, x: Tensor, select: tuple[int, ...], cache: Cache | None = None) -> list[Tensor]:
        """The hidden states [B, T, C] that select names.

        select: indices of [input of layer 0, …, input of the last layer, output of the final norm]. Inputs of layers
        are float32 where x is float16, since they can leave its range. cache: x continues its tokens; either x is a
        whole prompt and the cache is empty, or x is one token; or x is several prompts, for PackedPrompts.
        """
        tokens, dtype = x.shape[1], x.dtype
        rope = cache.begin(tokens) if cache else rope_table(self.config, tokens, dtype, x.device)
        last = self.config.num_layers
        states, x = {}, to_residual_dtype(x)
        for index, layer in enumerate(self.model["layers"]):
            if index in select:
                states[index] = x
            if index == max(select):
                break
            x = layer(x, dtype, rope, cache)
        if last in select:
            states[last] = self.model["norm"](scale_for_norm(x, dtype))
        if cache:
            cache.advance(tokens)
        return [states[index] for index in select]

    def logits(self, hidden: Tensor) -> Tensor:
        """Output of the final norm [..., C] → logits of the next token [..., vocabulary], float32."""
        if self.config.tied_head:
            table = self.model["embed_tokens"].weight
            return linear(hidden, table.to(hidden.device, hidden.dtype)).float()
        return self.lm_head(hidden).float()


class Layer(nn.Module):
    """Pre-norm transformer layer for a residual stream [B, T, C]. dtype: in which it computes (see float16.py)."""

    def __init__(self, config: LanguageConfig, index: int, operations, attention, **factory):
        super().__init__()
        self.input_layernorm = operations.RMSNorm(config.hidden_size, eps=config.norm_eps, **factory)
        self.self_attn = Attention(config, index, operations, attention, **factory)
        self.post_attention_layernorm = operations.RMSNorm(config.hidden_size, eps=config.norm_eps, **factory)
        self.mlp = MLP(config, operations, **factory)

    def forward(self, x: Tensor, dtype: torch.dtype, rope: tuple[Tensor, Tensor], cache) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(scale_for_norm(x, dtype)), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(scale_for_norm(x, dtype)))


class Attention(nn.Module):
    """Causal grouped-query attention of x [B, T, C], with RMSNorm on the queries and keys of each head."""

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

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache) -> Tensor:
        heads = (*x.shape[:-1], -1, self.config.head_dim)
        q, k, v = self.q_proj(x).view(heads), self.k_proj(x).view(heads), self.v_proj(x).view(heads)
        q = rotate_half(self.q_norm(q), rope).transpose(1, 2)  # [B, heads, T, D]
        k = rotate_half(self.k_norm(k), rope).transpose(1, 2)  # [B, kv_heads, T, D]
        v = v.transpose(1, 2)
        mask, prompts = None, ()
        if cache:
            k, v = cache.extend(self.index, k, v)
            mask, prompts = cache.mask, cache.prompts
        return project_to_residual(self.o_proj, self.attend(q, k, v, mask, prompts).transpose(1, 2).flatten(2), x.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, prompts: Lengths) -> Tensor:
        """q [B, heads, T, D], k and v [B, kv_heads, T′, D] → [B, heads, T, D].

        mask, prompts: as in Cache. T is 1 with a mask.
        """
        groups = self.config.num_heads // self.config.num_kv_heads
        if q.shape[2] == 1:
            # A new token attends to all keys. The query heads that share keys therefore pass as query positions of one
            # head, and the cache need not be repeated for each of them.
            grouped = q.view(len(q), -1, groups, q.shape[-1])
            masked = {} if mask is None else {"attn_mask": mask}
            return self.attention(grouped, k, v, **masked).reshape(q.shape)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        if len(prompts) > 1:
            by_token = (t.transpose(1, 2) for t in (q, k, v))
            return torch.cat(by_branch(self.attention, *by_token, prompts, prompts, is_causal=True), 1).transpose(1, 2)
        return self.attention(q, k, v, is_causal=True)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202) of x [B, T, C]."""

    def __init__(self, config: LanguageConfig, operations, **factory):
        super().__init__()
        self.gate_proj = operations.Linear(config.hidden_size, config.mlp_size, bias=False, **factory)
        self.up_proj = operations.Linear(config.hidden_size, config.mlp_size, bias=False, **factory)
        self.down_proj = operations.Linear(config.mlp_size, config.hidden_size, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        product = F.silu(to_residual_dtype(self.gate_proj(x))) * to_residual_dtype(self.up_proj(x))
        return project_to_residual(self.down_proj, product, x.dtype)


def rope_table(config: LanguageConfig, length: int, dtype: torch.dtype, device) -> tuple[Tensor, Tensor]:
    """rope_table_1d with the head size and base of this language model."""
    return rope_table_1d(length, config.head_dim, config.rope_theta, dtype, device)
