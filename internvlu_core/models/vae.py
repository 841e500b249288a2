"""The VAE of Qwen-Image (arXiv 2508.02324) for single pictures; its network is Wan 2.1's (arXiv 2503.20314).

The original is a causal 3-D network for video. On a single frame only the last temporal tap of a causal convolution has
any effect, so 2-D convolutions with that tap give the same result. The layers between frames are never used.

Source: docs/model.md, "VAE".
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.config import VAEConfig
from .operations import Operations


class VAE(nn.Module):
    """Pixels in [-1, 1] ↔ normalised latents, both [N, C, H, W].

    operations: a namespace of layers, ours or a host's own. factory: dtype and device of the parameters.
    """

    def __init__(self, config: VAEConfig, operations=Operations, **factory):
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config, operations, **factory)
        self.quant_conv = operations.Conv2d(2 * z, 2 * z, 1, **factory)
        self.post_quant_conv = operations.Conv2d(z, z, 1, **factory)
        self.decoder = Decoder(config, operations, **factory)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in [-1, 1] → normalised latents [N, z, H / 8, W / 8], the mode of the distribution."""
        mode = self.encode_raw(pixels)
        return (mode - self._channels("latents_mean", mode)) / self._channels("latents_std", mode)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [N, z, h, w] → pixels [N, 3, 8h, 8w] in [-1, 1]."""
        return self.decode_raw(
            latents * self._channels("latents_std", latents) + self._channels("latents_mean", latents)
        )

    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Pixels → latents, as encode but without normalising them."""
        return self.quant_conv(self.encoder(_laid_out(pixels))).chunk(2, dim=1)[0].contiguous()

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Latents → pixels, as decode but from latents that are not normalised."""
        return self.decoder(self.post_quant_conv(_laid_out(latents))).clamp(-1, 1).contiguous()

    def _channels(self, name: str, like: Tensor) -> Tensor:
        return torch.tensor(getattr(self.config, name), dtype=like.dtype, device=like.device)[:, None, None]


def _laid_out(x: Tensor) -> Tensor:
    """x in the memory layout that all layers then keep. On a CPU, channels last makes them a fifth faster."""
    # A GPU was not measured.
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


class Encoder(nn.Module):
    """Pixels [N, 3, H, W] → mean and log variance of the latents [N, 2z, H / 8, W / 8], before quant_conv."""

    def __init__(self, config: VAEConfig, operations, **factory):
        super().__init__()
        sizes = [config.base_channels * m for m in (1, *config.multipliers)]
        self.conv_in = operations.Conv2d(3, sizes[0], 3, padding=1, **factory)
        self.down_blocks = nn.ModuleList()  # flat, as the checkpoint numbers them
        for level in range(len(config.multipliers)):
            size_in, size_out = sizes[level], sizes[level + 1]
            for _ in range(config.num_res_blocks):
                self.down_blocks.append(ResBlock(size_in, size_out, operations, **factory))
                size_in = size_out
            if level < len(config.multipliers) - 1:
                self.down_blocks.append(Downsample(size_out, operations, **factory))
        self.mid_block = MidBlock(sizes[-1], operations, **factory)
        self.norm_out = ChannelNorm(sizes[-1], **factory)
        self.conv_out = operations.Conv2d(sizes[-1], 2 * config.latent_channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.norm_out(self.mid_block(x)))


class Decoder(nn.Module):
    """Latents [N, z, h, w], after post_quant_conv → pixels [N, 3, 8h, 8w], not clamped."""

    def __init__(self, config: VAEConfig, operations, **factory):
        super().__init__()
        sizes = [config.base_channels * m for m in (config.multipliers[-1], *reversed(config.multipliers))]
        self.conv_in = operations.Conv2d(config.latent_channels, sizes[0], 3, padding=1, **factory)
        self.mid_block = MidBlock(sizes[0], operations, **factory)
        self.up_blocks = nn.ModuleList()
        for level in range(len(config.multipliers)):
            size_in = sizes[level] if level == 0 else sizes[level] // 2  # each upsampling halves the channels
            upsample = level < len(config.multipliers) - 1
            self.up_blocks.append(
                UpBlock(size_in, sizes[level + 1], config.num_res_blocks + 1, upsample, operations, **factory)
            )
        self.norm_out = ChannelNorm(sizes[-1], **factory)
        self.conv_out = operations.Conv2d(sizes[-1], 3, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            for layer in (*block.resnets, *block.upsamplers):  # a forward of the block would keep its input
                x = layer(x)
        return self.conv_out(self.norm_out(x))


class UpBlock(nn.Module):
    """The layers of one level of the decoder. Decoder.forward runs them, so that no input outlives its layer."""

    def __init__(self, size_in: int, size_out: int, num_resnets: int, upsample: bool, operations, **factory):
        super().__init__()
        sizes = [size_in] + [size_out] * num_resnets
        self.resnets = nn.ModuleList(ResBlock(a, b, operations, **factory) for a, b in pairwise(sizes))
        self.upsamplers = nn.ModuleList([Upsample(size_out, operations, **factory)] if upsample else [])


class MidBlock(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, size: int, operations, **factory):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(size, size, operations, **factory) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(size, operations, **factory)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class ResBlock(nn.Module):
    """Two normalised convolutions beside a shortcut: [N, size_in, h, w] → [N, size_out, h, w]."""

    def __init__(self, size_in: int, size_out: int, operations, **factory):
        super().__init__()
        self.norm1 = ChannelNorm(size_in, **factory)
        self.conv1 = operations.Conv2d(size_in, size_out, 3, padding=1, **factory)
        self.norm2 = ChannelNorm(size_out, **factory)
        self.conv2 = operations.Conv2d(size_out, size_out, 3, padding=1, **factory)
        self.conv_shortcut = (
            operations.Conv2d(size_in, size_out, 1, **factory) if size_in != size_out else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        # Intermediate results have no names, so that each is freed at once: a picture's activations are gigabytes.
        return self.conv2(self.norm2(self.conv1(self.norm1(x)))).add_(self.conv_shortcut(x))


class Attention(nn.Module):
    """Single-head self-attention over all pixels of x [N, C, h, w]."""

    def __init__(self, size: int, operations, **factory):
        super().__init__()
        self.norm = ChannelNorm(size, activation=False, **factory)
        self.to_qkv = operations.Conv2d(size, 3 * size, 1, **factory)
        self.proj = operations.Conv2d(size, size, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        # Fused attention kernels need contiguous tensors. Others take gigabytes for H·W × H·W weights at 1024 × 1024.
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous()[:, None]  # [N, 1, H·W, 3C]
        out = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return x + self.proj(out[:, 0].transpose(1, 2).view_as(x))


class Downsample(nn.Module):
    """[N, size, h, w] → [N, size, h / 2, w / 2] by a convolution."""

    def __init__(self, size: int, operations, **factory):
        super().__init__()
        # The padding is a layer of its own because the released names count it.
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), operations.Conv2d(size, size, 3, stride=2, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Upsample(nn.Module):
    """[N, size, h, w] → [N, size / 2, 2h, 2w], by nearest neighbours and a convolution."""

    def __init__(self, size: int, operations, **factory):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest-exact"),
            operations.Conv2d(size, size // 2, 3, padding=1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of each pixel, then SiLU unless activation is False."""

    def __init__(self, size: int, activation: bool = True, **factory):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size, 1, 1, **factory))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        # A host that loads weights partially can have gamma on another device.
        x = F.normalize(x, dim=1).mul_(x.shape[1] ** 0.5 * self.gamma.to(x))
        return F.silu(x, inplace=True) if self.activation else x
