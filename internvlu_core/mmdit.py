"""The generation decoder: a two-stream diffusion transformer with gated attention (model.md section 7).

Latent tokens (generated and reference) form the image stream, context tokens the text stream. A token only ever meets
its own stream's weights; the streams meet in one full attention per block.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import MMDiTConfig
from .errors import InputError
from .float16 import bounded, project
from .positions import Grid, joint_positions, rotary_table

NORM_EPS = 1e-6


class MMDiT(nn.Module):
    """Velocity of noisy latents, given one branch's conditioning. See forward.

    operations is a namespace of layers (torch.nn, or a host's casting twins); attention is a function of
    q, k, v [B, heads, T, head_dim].
    """

    def __init__(self, config: MMDiTConfig, operations=nn, attention=F.scaled_dot_product_attention, **factory):
        super().__init__()
        self.config = config
        size = config.hidden_size
        if config.projector == "mlp2x_gelu":  # the name notwithstanding, its activation is SiLU
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
        grids = [self.grid(latent) for latent in (x, *references)]
        positions = joint_positions(grids, image_mask, image_grids, self.config.latent_scale, self.config.vit_scale)
        rope = tuple(t.to(x.device) for t in rotary_table(positions, self.config.rope_axes))

        batch = x.shape[0]
        latents = [self.patchify(latent).expand(batch, -1, -1) for latent in (x, *references)]
        img = project(self.img_in, torch.cat(latents, dim=1), x.dtype)
        txt = project(self.txt_in, self.txt_norm(self.decoder_projector(context)), x.dtype).expand(batch, -1, -1)
        temb = self.time_text_embed(timestep, x.dtype)
        for index in range(len(self.transformer_blocks)):
            img, txt = self.run_block(index, img, txt, temb, rope, **attention_options)
        generated = math.prod(grids[0])
        return self.unpatchify(self.proj_out(self.norm_out(img[:, :generated], temb)), grids[0])

    def run_block(self, index: int, img: Tensor, txt: Tensor, temb: Tensor, rope, **attention_options):
        """Both streams [B, T, size] after block `index`. A host may replace blocks here."""
        return self.transformer_blocks[index](img, txt, temb, rope, **attention_options)

    def bound_context(self, context: Tensor) -> Tensor:
        """Hidden states [..., T, C] within float16's range, which a language model's can leave; for forward the same.

        The first thing that happens to them is a norm. A projector in front of it would see a difference.
        """
        return bounded(context, 2**15)[0] if isinstance(self.decoder_projector, nn.Identity) else context

    def grid(self, latent: Tensor) -> Grid:
        h, w = latent.shape[-2:]
        p = self.config.patch_size
        if h % p or w % p:
            raise InputError(f"latents of {h} × {w} do not divide into patches of {p} × {p}")
        return 1, h // p, w // p

    def patchify(self, latent: Tensor) -> Tensor:
        p = self.config.patch_size
        return rearrange(latent, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=p, pw=p)

    def unpatchify(self, tokens: Tensor, grid: Grid) -> Tensor:
        p = self.config.patch_size
        return rearrange(tokens, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=grid[1], w=grid[2], ph=p, pw=p)


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
        # The rounding to the compute dtype is part of the model, and so is the order of these float32 operations:
        # arguments reach 1e6, where one rounding more or less changes the first velocity by 2e-3 to 5e-3.
        half = self.channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = 1000 * (timestep.to(dtype).float()[:, None] * torch.exp(exponent))
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Block(nn.Module):
    """One two-stream block; the img_ and txt_ (to_ and add_) weights belong to their stream alone."""

    def __init__(self, config: MMDiTConfig, operations, attention, **factory):
        super().__init__()
        size = config.hidden_size
        self.img_mod = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **factory))
        self.txt_mod = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **factory))
        self.attn = GatedAttention(config, operations, attention, **factory)
        self.img_mlp = FeedForward(size, operations, **factory)
        self.txt_mlp = FeedForward(size, operations, **factory)

    def forward(self, img: Tensor, txt: Tensor, temb: Tensor, rope, **attention_options) -> tuple[Tensor, Tensor]:
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = modulation(self.img_mod, temb)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = modulation(self.txt_mod, temb)

        img_attn, txt_attn = self.attn(
            modulate(img, img_shift1, img_scale1),
            modulate(txt, txt_shift1, txt_scale1),
            rope,
            **attention_options,
        )
        img = img + img_gate1 * img_attn
        txt = txt + txt_gate1 * txt_attn
        img = img + img_gate2 * self.img_mlp(modulate(img, img_shift2, img_scale2))
        txt = txt + txt_gate2 * self.txt_mlp(modulate(txt, txt_shift2, txt_scale2))
        return img, txt


class GatedAttention(nn.Module):
    """Full attention over both streams; each output is gated after its projection (arXiv 2505.06708)."""

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

    def forward(self, img: Tensor, txt: Tensor, rope, **attention_options) -> tuple[Tensor, Tensor]:
        img_qkv, img_gate = self.project(img, self.to_q, self.to_k, self.to_v, self.norm_q, self.norm_k)
        txt_qkv, txt_gate = self.project(
            txt, self.add_q_proj, self.add_k_proj, self.add_v_proj, self.norm_added_q, self.norm_added_k
        )
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(img_qkv, txt_qkv, strict=True))
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, rope), rotate(k, rope), v))  # [B, heads, T, D]
        x = self.attention(q, k, v, **attention_options).transpose(1, 2).flatten(2)
        img, txt = x.split([img.shape[1], txt.shape[1]], dim=1)
        return (
            project(self.to_out[0], img, img.dtype) * img_gate.sigmoid(),
            project(self.to_add_out, txt, txt.dtype) * txt_gate.sigmoid(),
        )

    def project(self, x, to_q, to_k, to_v, norm_q, norm_k) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """One stream's queries, keys, values [B, T, heads, D], and its gate [B, T, heads·D]."""
        q, gate = to_q(x).unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)
        k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (to_k, to_v))
        return (norm_q(q), norm_k(k), v), gate.flatten(2)


class FeedForward(nn.Module):
    """MLP of width 4 with tanh-GELU."""

    def __init__(self, size: int, operations, **factory):
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.ModuleDict({"proj": operations.Linear(size, 4 * size, **factory)}),
                nn.Identity(),  # the released names count a dropout layer here
                operations.Linear(4 * size, size, **factory),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return project(self.net[2], F.gelu(self.net[0]["proj"](x), approximate="tanh"), x.dtype)


class OutputNorm(nn.Module):
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
    """A stream's LayerNorm, computed in float32, shifted and scaled; in the dtype of these two."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS).to(x.dtype)
    return (normed * (1 + scale) + shift).to(scale.dtype)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, T, heads, D] in float32; channel 2i is paired with channel 2i + 1."""
    cos, sin = (t[:, None] for t in rope)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
