"""InternViT, the vision encoder, up to its folded tokens.

Source: docs/model.md, "Vision encoder"; InternVL, arXiv 2312.14238; InternVL-U, arXiv 2603.09877; official code, commit
018a59c, `internvlu/vlm/modeling_intern_vit.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.config import VisionConfig
from .float16 import project_to_residual, scale_for_norm, to_residual_dtype
from .operations import Operations


class InternViT(nn.Module):
    """Normalised pixels [N, 3, S, S] → tokens [N, T, token_size], where T = (S / patch / fold)².

    operations: a namespace of layers, ours or a host's own. attention: a function of q, k, v [N, heads, T,
    head_dim]. factory: dtype and device of the parameters.
    """

    def __init__(
        self, config: VisionConfig, operations=Operations, attention=F.scaled_dot_product_attention, **factory
    ):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, operations, **factory)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(Layer(config, operations, attention, **factory) for _ in range(config.num_layers))}
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = to_residual_dtype(self.embeddings(pixels))
        for layer in self.encoder["layers"][: self.config.select_layer]:
            x = layer(x, pixels.dtype)
        side_h, side_w = (side // self.config.patch_size for side in pixels.shape[-2:])
        return fold_patches(x[:, 1:].unflatten(1, (side_h, side_w)), self.config.fold)  # [:, 1:] drops the class token


class Embeddings(nn.Module):
    """Pixels [N, 3, H, W] → the class token and the patches, with learned positions [N, 1 + h·w, C]."""

    def __init__(self, config: VisionConfig, operations, **factory):
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        # Single vectors are tables of one row, since hosts cast, patch and offload leaf modules, not bare parameters.
        self.class_embedding = operations.Embedding(1, config.hidden_size, **factory)
        self.position_embedding = operations.Embedding(self.grid**2 + 1, config.hidden_size, **factory)
        self.patch_embedding = operations.Conv2d(
            3, config.hidden_size, config.patch_size, stride=config.patch_size, **factory
        )

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels)  # [N, C, h, w]
        h, w = patches.shape[-2:]
        index = torch.arange(self.grid**2 + 1, device=pixels.device)
        positions = self.position_embedding(index).to(patches.dtype)
        class_token = self.class_embedding(index[:1]).to(patches.dtype) + positions[:1]
        x = patches.flatten(2).transpose(1, 2) + self.resize(positions[1:], h, w)
        return torch.cat([class_token.expand(len(x), 1, -1), x], dim=1)

    def resize(self, positions: Tensor, h: int, w: int) -> Tensor:
        """Positions [grid², C] → [h·w, C] for h × w patches, by bicubic interpolation in float32."""
        if (h, w) == (self.grid, self.grid):
            return positions
        table = positions.float().unflatten(0, (self.grid, self.grid)).permute(2, 0, 1)[None]
        table = F.interpolate(table, (h, w), mode="bicubic", align_corners=False)
        return table[0].flatten(1).T.to(positions.dtype)


class Layer(nn.Module):
    """Pre-norm transformer layer with layer scale (arXiv 2103.17239), for a residual stream [N, T, C].

    dtype: in which it computes; that of the stream can be wider (see float16.py).
    """

    def __init__(self, config: VisionConfig, operations, attention, **factory):
        super().__init__()
        norm = operations.LayerNorm if config.norm_type == "layer_norm" else operations.RMSNorm
        self.norm1 = norm(config.hidden_size, eps=config.norm_eps, **factory)
        self.attn = Attention(config, operations, attention, **factory)
        self.ls1 = operations.Embedding(1, config.hidden_size, **factory)
        self.norm2 = norm(config.hidden_size, eps=config.norm_eps, **factory)
        self.mlp = MLP(config, operations, **factory)
        self.ls2 = operations.Embedding(1, config.hidden_size, **factory)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        row = torch.zeros(1, dtype=torch.long, device=x.device)
        x = x + self.attn(self.norm1(scale_for_norm(x, dtype))) * self.ls1(row).to(x.dtype)
        return x + self.mlp(self.norm2(scale_for_norm(x, dtype))) * self.ls2(row).to(x.dtype)


class Attention(nn.Module):
    """Full self-attention of x [N, T, C], with RMSNorm over all channels of queries and keys if the config says so."""

    def __init__(self, config: VisionConfig, operations, attention, **factory):
        super().__init__()
        self.num_heads, self.attention = config.num_heads, attention
        self.qkv = operations.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias, **factory)
        self.proj = operations.Linear(config.hidden_size, config.hidden_size, **factory)
        self.qk_norm = config.qk_norm
        if config.qk_norm:  # over all channels, not per head
            self.q_norm = operations.RMSNorm(config.hidden_size, eps=config.norm_eps, **factory)
            self.k_norm = operations.RMSNorm(config.hidden_size, eps=config.norm_eps, **factory)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return project_to_residual(self.proj, self.attention(q, k, v).transpose(1, 2).flatten(2), x.dtype)


class MLP(nn.Module):
    """Two linear layers with GELU between them, for x [N, T, C]."""

    def __init__(self, config: VisionConfig, operations, **factory):
        super().__init__()
        self.fc1 = operations.Linear(config.hidden_size, config.mlp_size, **factory)
        self.fc2 = operations.Linear(config.mlp_size, config.hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return project_to_residual(self.fc2, F.gelu(self.fc1(x)), x.dtype)


def fold_patches(x: Tensor, fold: int) -> Tensor:
    """Pixel shuffle, version 2: [N, h, w, C] → [N, h·w / fold², fold²·C], channels in (row, column, C) order."""
    n, h, w, c = x.shape
    x = x.view(n, h // fold, fold, w // fold, fold, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h * w // fold**2, fold * fold * c)
