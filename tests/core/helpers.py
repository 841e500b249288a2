"""What several test files compare with."""

from types import SimpleNamespace

import torch
from checkpoints import randomise
from torch import Tensor

from internvlu_core.checkpoints.config import LanguageConfig
from internvlu_core.models.language import Qwen3


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖, in float64; shapes must agree."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def language_config(**changes) -> LanguageConfig:
    """A tiny Qwen3, of whose sizes no two are equal."""
    sizes = {
        "vocab_size": 31,
        "hidden_size": 40,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 12,
        "mlp_size": 56,
        "norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "tied_head": False,
        "max_positions": 512,
    }
    return LanguageConfig(**(sizes | changes))


def tiny_language(*, seed: int = 0, **changes) -> SimpleNamespace:
    """A random language model and no eyes: what generate_tokens needs of a VLM."""
    network = randomise(Qwen3(language_config(**changes)), seed)
    for layer in network.model["layers"]:  # else it repeats itself after a few tokens
        layer.self_attn.q_norm.weight.mul_(3)
        layer.self_attn.o_proj.weight.mul_(4)
    return SimpleNamespace(language_model=network, embed_generated=network.model["embed_tokens"])
