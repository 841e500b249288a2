"""The generation decoder: a two-stream diffusion transformer with gated attention (docs/model.md, "MMDiT").

Latent tokens (generated and reference) form the image stream, context tokens the text stream. Each stream has weights
of its own; in each block both take part in one full attention.

Official code, commit 018a59c: `internvlu/diffusion/internvlu_transformer.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checkpoints.config import MMDiTConfig
from ..errors import InputError
from .attention import by_branch
from .float16 import project_to_residual, scale_down
from .operations import Operations
from .rope import Grid, joint_positions, rope_table_3d, rotate_pairs

NORM_EPS = 1e-6


@dataclass(frozen=True)
class SequenceLayout:
    """The order of the tokens of one or several branches in the two streams, and their rotary tables.

    Image stream: the generated tokens of each branch (`generated` of them), then the reference tokens of each branch
    (`references[i]`). Text stream: the context tokens of each branch (`texts[i]`). img_rope, txt_rope: the tables of
    these tokens [tokens, head_dim / 2, 2]. Below, T in [B, T, …] counts the tokens of a whole stream.
    """

    generated: int
    references: tuple[int, ...]
    texts: tuple[int, ...]
    img_rope: Tensor
    txt_rope: Tensor

    @property
    def all_generated(self) -> int:
        """The number of generated tokens of all branches."""
        return self.generated * len(self.texts)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each branch."""
        return tuple(self.generated + sum(sizes) for sizes in zip(self.references, self.texts, strict=True))

    def join(self, img: Tensor, txt: Tensor) -> Tensor:
        """Both streams → [B, tokens of all branches, …], branch by branch: generated, references, context."""
        generated = img[:, : self.all_generated].split(self.generated, dim=1)
        references = img[:, self.all_generated :].split(self.references, dim=1)
        branches = zip(generated, references, txt.split(self.texts, dim=1), strict=True)
        return torch.cat([tokens for branch in branches for tokens in branch], dim=1)  # one kernel for all

    def part(self, branches: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of join, of the branches [B, tokens, …] one by one."""
        sizes = zip(self.references, self.texts, strict=True)
        parts = [x.split([self.generated, *size], dim=1) for x, size in zip(branches, sizes, strict=True)]
        generated, references, texts = zip(*parts, strict=True)
        return torch.cat(generated + references, dim=1), torch.cat(texts, dim=1)


@dataclass(frozen=True)
class Prepared:
    """What is the same in all sampling steps, for one or several branches.

    references, txt: the tokens that enter the streams [1 or B, tokens, size], in the order of layout.
    """

    references: Tensor
    txt: Tensor
    layout: SequenceLayout


def pack(branches: list[Prepared]) -> Prepared:
    """Several branches of one picture size as one, so that each linear layer runs, and is read, once in a step.

    Nothing is padded; the attention alone is computed branch by branch.
    """
    layouts = [branch.layout for branch in branches]
    generated = layouts[0].generated
    img_ropes = [layout.img_rope.tensor_split([layout.all_generated]) for layout in layouts]
    layout = SequenceLayout(
        generated,
        sum((layout.references for layout in layouts), ()),
        sum((layout.texts for layout in layouts), ()),
        torch.cat([rope for ropes in zip(*img_ropes, strict=True) for rope in ropes]),
        torch.cat([layout.txt_rope for layout in layouts]),
    )
    streams = ([getattr(branch, name) for branch in branches] for name in ("references", "txt"))
    return Prepared(*(torch.cat(tokens, dim=1) for tokens in streams), layout)


# A token's share of what a step needs beside the weights, in vectors of the hidden size: the table of memory in
# BENCHMARKS.md, at 1024 × 1024 in bfloat16, 0.33 GB for 8,300 tokens and 0.84 GB for 21,000.
WORKING_VECTORS = 13


def working_bytes(config: MMDiTConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that one forward of so many tokens, of all branches together, needs beside the weights; an estimate."""
    return tokens * WORKING_VECTORS * config.hidden_size * dtype.itemsize


class MMDiT(nn.Module):
    """The velocity of noisy latents, given the conditioning of one branch; see forward.

    operations: a namespace of layers, ours or a host's own. attention: a function of q, k, v [B, heads, T,
    head_dim], see attention.py. factory: dtype and device of the parameters.
    """

    def __init__(self, config: MMDiTConfig, operations=Operations, attention=F.scaled_dot_product_attention, **factory):
        super().__init__()
        self.config, self.rope = config, partial(rope_tables, config)
        size = config.hidden_size
        if config.projector == "mlp2x_gelu":  # its activation is SiLU, in spite of the name
            self.decoder_projector = nn.Sequential(
                operations.Linear(config.context_size, 3 * config.joint_size, **factory),
                nn.SiLU(),
                operations.Linear(3 * config.joint_size, config.joint_size, **factory),
            )
        else:
            self.decoder_projector = nn.Identity()
        self.txt_norm = operations.RMSNorm(config.joint_size, eps=NORM_EPS, **factory)
        self.txt_in = operations.Linear(config.joint_size, size, **factory)
        self.img_in = operations.Linear(config.in_channels, size, **factory)
        self.time_text_embed = TimeEmbedding(size, operations, **factory)
        self.transformer_blocks = nn.ModuleList(
            Block(config, operations, attention, **factory) for _ in range(config.num_layers)
        )
        self.norm_out = OutputNorm(size, operations, **factory)
        self.proj_out = operations.Linear(size, config.in_channels, **factory)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        image_mask: Tensor,
        image_grids: list[Grid],
        references: list[Tensor] = (),
        **attention_options,
    ) -> Tensor:
        """Predict the velocity [B, C, h, w] of noisy latents x at timestep [B] in 0…1000.

        context: hidden states [1 or B, T, context_size]; image_mask [T] marks its ViT tokens, image_grids are their
        grids in order. references: normalised latents [1 or B, C, h_i, w_i]. attention_options go to the attention
        function. Raises InputError if a latent's sides are not multiples of the patch size.
        """
        prepared = self.prepare(self.grid(x), context, image_mask, image_grids, references)
        return self.velocities(x, timestep, prepared, **attention_options)[0]

    def prepare(
        self,
        grid: Grid,
        context: Tensor,
        image_mask: Tensor | tuple[bool, ...],
        image_grids: list[Grid],
        references: list[Tensor] = (),
    ) -> Prepared:
        """What one branch needs in all steps, for latents of this grid of patches. Other arguments as in forward."""
        grids = (grid, *(self.grid(latent) for latent in references))
        mask = image_mask if isinstance(image_mask, tuple) else tuple(image_mask.tolist())
        img_rope, txt_rope = self.rope(grids, mask, tuple(map(tuple, image_grids)), context.device)
        txt = project_to_residual(self.txt_in, self.txt_norm(self.decoder_projector(context)), context.dtype)
        if references:
            patches = torch.cat([self.patchify(latent) for latent in references], dim=1)
            tokens = project_to_residual(self.img_in, patches, context.dtype)
        else:
            tokens = txt[:, :0]
        layout = SequenceLayout(math.prod(grid), (tokens.shape[1],), (txt.shape[1],), img_rope, txt_rope)
        return Prepared(tokens, txt, layout)

    def velocities(
        self, x: Tensor | Sequence[Tensor], timestep: Tensor, prepared: Prepared, **attention_options
    ) -> list[Tensor]:
        """The velocity [B, C, h, w] of each prepared branch, in order. x: for all branches, or one for each."""
        layout = prepared.layout
        latents = [x] if isinstance(x, Tensor) else x
        x, batch = latents[0], len(latents[0])
        patches = torch.cat([self.patchify(latent) for latent in latents], dim=1)
        generated = project_to_residual(self.img_in, patches, x.dtype).repeat(1, len(layout.texts) // len(latents), 1)
        img = torch.cat([generated, prepared.references.expand(batch, -1, -1)], dim=1)
        txt = prepared.txt.expand(batch, -1, -1)
        temb = self.time_text_embed(timestep, x.dtype)
        for index in range(len(self.transformer_blocks)):
            img, txt = self.run_block(index, img, txt, temb, layout, **attention_options)
        out = self.proj_out(self.norm_out(img[:, : layout.all_generated], temb))
        return [self.unpatchify(tokens, self.grid(x)) for tokens in out.split(layout.generated, dim=1)]

    def run_block(
        self, index: int, img: Tensor, txt: Tensor, temb: Tensor, layout: SequenceLayout, **attention_options
    ):
        """Both streams [B, T, size] after a block; after the last, only the generated tokens. Hosts may override."""
        last = index == len(self.transformer_blocks) - 1
        return self.transformer_blocks[index](img, txt, temb, layout, generated_only=last, **attention_options)

    def use_attention(self, attention):
        """Compute with another attention function from now on. attention: as for the class."""
        for block in self.transformer_blocks:
            block.attn.attention = attention

    def bound_context(self, context: Tensor) -> Tensor:
        """Hidden states [..., T, C] scaled into float16's range, without effect on the velocity.

        Their first layer is a norm, which does not see a factor. A projector in front of it would, so then they are
        left as they are.
        """
        return scale_down(context, 2**15)[0] if isinstance(self.decoder_projector, nn.Identity) else context

    def grid(self, latent: Tensor) -> Grid:
        """The grid of patches of a latent [..., h, w]. Raises InputError if a side is no multiple of the patch size."""
        h, w = latent.shape[-2:]
        p = self.config.patch_size
        if h % p or w % p:
            raise InputError(f"latents of {h} × {w} do not divide into patches of {p} × {p}")
        return 1, h // p, w // p

    def patchify(self, latent: Tensor) -> Tensor:
        """[B, C, h, w] → [B, patches, C·p²], row by row."""
        p = self.config.patch_size
        return rearrange(latent, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=p, pw=p)

    def unpatchify(self, tokens: Tensor, grid: Grid) -> Tensor:
        """The inverse of patchify."""
        p = self.config.patch_size
        return rearrange(tokens, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=grid[1], w=grid[2], ph=p, pw=p)


def rope_tables(
    config: MMDiTConfig, grids: tuple[Grid, ...], image_mask: tuple[bool, ...], image_grids: tuple[Grid, ...], device
) -> tuple[Tensor, Tensor]:
    """The rotary tables (img_rope, txt_rope) of one branch, see SequenceLayout. grids: those of its latents."""
    mask = torch.tensor(image_mask, dtype=torch.bool, device="cpu")
    positions = joint_positions(grids, mask, image_grids, config.latent_scale, config.vit_scale)
    table = rope_table_3d(positions, config.rope_axes)
    return table.to(device).tensor_split([len(table) - len(mask)])


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep, then a two-layer MLP."""

    def __init__(self, size: int, operations, channels: int = 256, **factory):
        super().__init__()
        self.channels = channels
        self.timestep_embedder = nn.ModuleDict(
            {
                "linear_1": operations.Linear(channels, size, **factory),
                "linear_2": operations.Linear(size, size, **factory),
            }
        )

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """timestep [B] → [B, size] in dtype."""
        mlp = self.timestep_embedder
        return mlp["linear_2"](F.silu(mlp["linear_1"](self.sinusoids(timestep, dtype).to(dtype))))

    def sinusoids(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """timestep [B] → [B, channels], float32."""
        # The rounding to the compute dtype and the order of these float32 operations are part of the model: arguments
        # reach 1e6, where one more rounding changes the first velocity by 2e-3 to 5e-3.
        angles = 1000 * (timestep.to(dtype).float()[:, None] * self.frequencies(timestep.device))
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Of the sinusoids [channels / 2], in radians for a thousandth of a timestep, in descending order."""
        half = self.channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=device) / half
        return torch.exp(exponent)


class Block(nn.Module):
    """One block with two streams. img_ and to_ weights belong to the image stream, txt_ and add_ to the text stream."""

    def __init__(self, config: MMDiTConfig, operations, attention, **factory):
        super().__init__()
        size = config.hidden_size
        self.img_mod = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **factory))
        self.txt_mod = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **factory))
        self.attn = GatedAttention(config, operations, attention, **factory)
        self.img_mlp = FeedForward(size, operations, **factory)
        self.txt_mlp = FeedForward(size, operations, **factory)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        temb: Tensor,
        layout: SequenceLayout,
        generated_only: bool = False,
        **attention_options,
    ) -> tuple[Tensor, Tensor]:
        """Both streams [B, T, size] after this block; with generated_only the generated tokens, and txt unchanged."""
        img_shift1, img_scale1, img_gate1, *img_mod2 = modulation(self.img_mod, temb)
        txt_shift1, txt_scale1, txt_gate1, *txt_mod2 = modulation(self.txt_mod, temb)
        img_attn, txt_attn = self.attn(
            modulate(img, img_shift1, img_scale1),
            modulate(txt, txt_shift1, txt_scale1),
            layout,
            generated_only,
            **attention_options,
        )
        img = torch.addcmul(img[:, : img_attn.shape[1]], img_gate1, img_attn)
        img = self.img_mlp(img, *img_mod2)
        if not generated_only:
            txt = self.txt_mlp(torch.addcmul(txt, txt_gate1, txt_attn), *txt_mod2)
        return img, txt


class GatedAttention(nn.Module):
    """Full attention over both streams, with a gate on each output after its projection (arXiv 2505.06708)."""

    def __init__(self, config: MMDiTConfig, operations, attention, **factory):
        super().__init__()
        size, self.heads, self.attention = config.hidden_size, config.num_heads, attention
        self.to_q = operations.Linear(size, 2 * size, **factory)  # per head: query, gate
        self.to_k = operations.Linear(size, size, **factory)
        self.to_v = operations.Linear(size, size, **factory)
        self.to_out = nn.ModuleList([operations.Linear(size, size, **factory)])
        self.add_q_proj = operations.Linear(size, 2 * size, **factory)
        self.add_k_proj = operations.Linear(size, size, **factory)
        self.add_v_proj = operations.Linear(size, size, **factory)
        self.to_add_out = operations.Linear(size, size, **factory)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            self.add_module(name, operations.RMSNorm(config.head_dim, eps=NORM_EPS, **factory))

    def forward(self, img: Tensor, txt: Tensor, layout: SequenceLayout, generated_only: bool, **attention_options):
        """Both streams' outputs [B, T, size]; with generated_only those of the generated tokens, and None."""
        branches, img_gate, txt_gate = self.attend(img, txt, layout, generated_only, **attention_options)
        if generated_only:
            return gated(self.to_out[0], torch.cat(branches, dim=1), img_gate), None
        img, txt = layout.part(branches)
        del branches
        return gated(self.to_out[0], img, img_gate), gated(self.to_add_out, txt, txt_gate)

    def attend(self, img: Tensor, txt: Tensor, layout: SequenceLayout, generated_only: bool, **attention_options):
        """The attention output of each branch [B, tokens, heads·D], and the gates of both streams.

        A method of its own, so that queries, keys and values are freed before the output is projected.
        """
        keys, values = self.keys(img, txt, layout)
        queries, *gates = self.queries(img, txt, layout, generated_only)
        lengths = (layout.generated,) * len(layout.texts) if generated_only else layout.lengths
        packed = getattr(self.attention, "packed", None) or partial(by_branch, self.attention)
        found = packed(queries, keys, values, lengths, layout.lengths, **attention_options)
        return [branch.flatten(2) for branch in found], *gates

    def keys(self, img: Tensor, txt: Tensor, layout: SequenceLayout) -> tuple[Tensor, Tensor]:
        """Keys and values [B, tokens of all branches, heads, D], see SequenceLayout.join."""
        img_k = rotate_pairs(self.norm_k(self.heads_of(self.to_k(img))), layout.img_rope)
        txt_k = rotate_pairs(self.norm_added_k(self.heads_of(self.add_k_proj(txt))), layout.txt_rope)
        keys = layout.join(img_k, txt_k)
        del img_k, txt_k
        return keys, layout.join(self.heads_of(self.to_v(img)), self.heads_of(self.add_v_proj(txt)))

    def queries(self, img: Tensor, txt: Tensor, layout: SequenceLayout, generated_only: bool):
        """Queries [B, tokens, heads, D] of all branches, and the gates [B, T, heads·D] of both streams, or None."""
        if generated_only:
            img = img[:, : layout.all_generated]
        img_q, img_gate = self.heads_of(self.to_q(img)).chunk(2, dim=-1)
        img_q, img_gate = rotate_pairs(self.norm_q(img_q), layout.img_rope), img_gate.flatten(2)
        if generated_only:
            return img_q, img_gate, None
        txt_q, txt_gate = self.heads_of(self.add_q_proj(txt)).chunk(2, dim=-1)
        txt_q = rotate_pairs(self.norm_added_q(txt_q), layout.txt_rope)
        return layout.join(img_q, txt_q), img_gate, txt_gate.flatten(2)

    def heads_of(self, x: Tensor) -> Tensor:
        """[B, T, heads·n] → [B, T, heads, n]."""
        return x.unflatten(-1, (self.heads, -1))


class FeedForward(nn.Module):
    """A modulated residual branch: MLP of four times the width, with tanh-GELU."""

    def __init__(self, size: int, operations, **factory):
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.ModuleDict({"proj": operations.Linear(size, 4 * size, **factory)}),
                nn.Identity(),  # in place of dropout, which the released names count
                operations.Linear(4 * size, size, **factory),
            ]
        )

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        # No name holds the hidden layer, so that what is made of it can take its place.
        return torch.addcmul(x, gate, project_to_residual(self.net[2], self.hidden(x, shift, scale), scale.dtype))

    def hidden(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """[B, T, size] → [B, T, 4·size]."""
        # In place, which F.gelu cannot: no tensor in the network is larger.
        return torch.ops.aten.gelu_(self.net[0]["proj"](modulate(x, shift, scale)), approximate="tanh")


class OutputNorm(nn.Module):
    """LayerNorm of the image stream [B, T, size], scaled and shifted by the timestep; computed in float32."""

    def __init__(self, size: int, operations, **factory):
        super().__init__()
        self.linear = operations.Linear(size, 2 * size, **factory)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(temb)).float()[:, None].chunk(2, dim=-1)
        return (F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift).to(temb.dtype)


def modulation(mod: nn.Module, temb: Tensor) -> tuple[Tensor, ...]:
    """shift1, scale1, gate1, shift2, scale2, gate2, each [B, 1, size]."""
    return mod(temb)[:, None].chunk(6, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of a stream [B, T, size], computed in float32, then scaled and shifted, in the dtype of these two."""
    normed = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)  # its kernels compute in float32 for every dtype
    return torch.addcmul(shift, normed, 1 + scale).to(scale.dtype)


def gated(linear: nn.Module, x: Tensor, gate: Tensor) -> Tensor:
    """The attention output of a stream [B, T, size], projected, then gated."""
    return project_to_residual(linear, x, x.dtype) * gate.sigmoid()
