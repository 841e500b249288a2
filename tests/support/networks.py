"""Tiny networks with random weights."""

from types import SimpleNamespace

import torch
from torch import nn

from internvlu_core.checkpoints.config import LanguageConfig
from internvlu_core.models.language import Qwen3
from internvlu_core.quantization import QuantisedWeight, WeightFormat, hold_quantised, network_formats


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that keep activations near 1, so that every weight matters to the result. Returns the network."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(generator=generator)
            if name.endswith("bias"):
                parameter.mul_(0.1)
            elif parameter.squeeze().ndim == 1:  # scales: of norms and layers
                parameter.mul_(0.2).add_(1)
            else:
                parameter.mul_(parameter[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


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


def quantise_network(network: nn.Module, state: dict[str, torch.Tensor], weight_format: WeightFormat):
    """Replace a network's layers, and their weights in its state dict, as loading in a weight format does."""
    for path, of_layer in network_formats(network, weight_format).items():
        weight = state[f"{path}.weight"]
        state[f"{path}.weight"] = QuantisedWeight(of_layer, of_layer.quantise(weight))
        hold_quantised(network, state, weight.dtype)
