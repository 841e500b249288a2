"""FLOPs and bytes that the networks need, from their configurations. The floors in BENCHMARKS.md follow from them.

Matrix products and convolutions are counted, with 2 FLOPs per multiply-add, as torch's FlopCounterMode does. A token is
multiplied with the weights of its own stream only, and each weight is read once per call.
"""

from internvlu_core.checkpoints.config import LanguageConfig, MMDiTConfig, VAEConfig, VisionConfig


def linear(tokens: int, size_in: int, size_out: int) -> int:
    return 2 * tokens * size_in * size_out


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum. width: channels of all heads together."""
    return 2 * linear(queries, keys, width)


def conv(pixels: int, size_in: int, size_out: int, kernel: int) -> int:
    """pixels: of the output."""
    return 2 * pixels * size_in * size_out * kernel**2


def mmdit_prepared(config: MMDiTConfig, references: int, context: int) -> int:
    """What is computed once per branch, before the first step."""
    size, projector = config.hidden_size, 0
    if config.projector == "mlp2x_gelu":
        projector = linear(context, config.context_size, 3 * config.joint_size)
        projector += linear(context, 3 * config.joint_size, config.joint_size)
    return projector + linear(context, config.joint_size, size) + linear(references, config.in_channels, size)


def mmdit_step(config: MMDiTConfig, generated: int, branches: list[tuple[int, int]], batch: int = 1) -> int:
    """One sampling step. branches: (reference tokens, context tokens) of each distinct branch.

    The time embedding and the modulation are computed once per step. The last block computes generated tokens only.
    """
    size, last = config.hidden_size, config.num_layers - 1
    modulation = config.num_layers * 2 * linear(1, size, 6 * size)
    flops = linear(1, 256, size) + linear(1, size, size) + modulation + linear(1, size, 2 * size)
    for references, context in branches:
        tokens = generated + references + context
        flops += linear(generated, config.in_channels, size) + linear(generated, size, config.in_channels)
        flops += last * _block(tokens, tokens, size) + _block(generated, tokens, size)
    return batch * flops


def _block(queries: int, tokens: int, size: int) -> int:
    """Keys and values of all tokens; queries, gate, output and MLP of those whose result is used."""
    projected = linear(tokens, size, 2 * size) + linear(queries, size, 3 * size)
    return projected + attention(queries, tokens, size) + 2 * linear(queries, size, 4 * size)


def mmdit(config: MMDiTConfig, generated: int, references: int, context: int, batch: int = 1) -> int:
    """One forward pass of one branch. generated, references, context: numbers of tokens."""
    prepared = mmdit_prepared(config, references, context)
    return prepared + mmdit_step(config, generated, [(references, context)], batch)


def language(config: LanguageConfig, tokens: int, cached: int = 0, heads: int = 1) -> int:
    """Process tokens after `cached` others. heads: for how many of them logits are computed.

    Attention is counted without the causal mask, as torch counts fused kernels.
    """
    size, q, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = linear(tokens, size, 2 * q + 2 * kv) + 3 * linear(tokens, size, config.mlp_size)
    layer = projections + attention(tokens, cached + tokens, q)
    return config.num_layers * layer + linear(heads, size, config.vocab_size)


def language_bytes(config: LanguageConfig, cached: int, itemsize: int) -> int:
    """Bytes read for one new token: the matrices of all layers, the head, and the keys and values before it."""
    size, q, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = size * (2 * q + 2 * kv) + 3 * size * config.mlp_size + 2 * cached * kv
    return itemsize * (config.num_layers * layer + size * config.vocab_size)


def vision(config: VisionConfig, language_size: int, tiles: int = 1) -> int:
    """From the tiles of a picture to tokens of the language model."""
    size, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
    tokens = patches + 1
    layer = linear(tokens, size, 4 * size) + 2 * linear(tokens, size, config.mlp_size) + attention(tokens, tokens, size)
    folded = patches // config.fold**2
    projector = linear(folded, config.token_size, language_size) + linear(folded, language_size, language_size)
    return tiles * (conv(patches, 3, size, config.patch_size) + config.num_layers * layer + projector)


def vae_decode(config: VAEConfig, height: int, width: int) -> int:
    """height, width: of the picture, in pixels."""
    scale, z = config.scale_factor, config.latent_channels
    pixels = height * width // scale**2
    sizes = [config.base_channels * m for m in (config.multipliers[-1], *reversed(config.multipliers))]
    flops = conv(pixels, z, z, 1) + conv(pixels, z, sizes[0], 3) + _middle(pixels, sizes[0])
    size = sizes[0]
    for level, size_out in enumerate(sizes[1:]):
        for _ in range(config.num_res_blocks + 1):
            flops += _res_block(pixels, size, size_out)
            size = size_out
        if level < len(config.multipliers) - 1:
            pixels *= 4
            flops += conv(pixels, size, size // 2, 3)
            size //= 2
    return flops + conv(pixels, size, 3, 3)


def vae_encode(config: VAEConfig, height: int, width: int) -> int:
    """height, width: of the picture, in pixels."""
    pixels, z = height * width, config.latent_channels
    size = config.base_channels
    flops = conv(pixels, 3, size, 3)
    for level, multiplier in enumerate(config.multipliers):
        for _ in range(config.num_res_blocks):
            flops += _res_block(pixels, size, config.base_channels * multiplier)
            size = config.base_channels * multiplier
        if level < len(config.multipliers) - 1:
            pixels //= 4
            flops += conv(pixels, size, size, 3)
    return flops + _middle(pixels, size) + conv(pixels, size, 2 * z, 3) + conv(pixels, 2 * z, 2 * z, 1)


def _res_block(pixels: int, size_in: int, size_out: int) -> int:
    shortcut = conv(pixels, size_in, size_out, 1) if size_in != size_out else 0
    return conv(pixels, size_in, size_out, 3) + conv(pixels, size_out, size_out, 3) + shortcut


def _middle(pixels: int, size: int) -> int:
    attended = attention(pixels, pixels, size) + conv(pixels, size, 4 * size, 1)
    return 2 * _res_block(pixels, size, size) + attended
