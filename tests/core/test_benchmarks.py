"""The pieces of benchmarks/: what they count, fit and say, on the recorded checkpoint."""

import pytest
import torch
from checkpoints import CHECKPOINT
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import counts
from internvlu_core.config import Config
from internvlu_core.language import Qwen3
from internvlu_core.mmdit import MMDiT
from internvlu_core.vae import VAE
from internvlu_core.vlm import VLM


@pytest.fixture(scope="module")
def config():
    return Config.read(CHECKPOINT)


def counted(run, device="meta") -> int:
    """By torch."""
    with FlopCounterMode(display=False) as counter, torch.device(device), torch.inference_mode():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("batch", "references", "context"), [(1, 0, 7), (2, 1, 24)])
def test_flops_of_the_mmdit(config, batch, references, context):
    def run():
        # In two products, since torch does not count its fused kernel on the CPU.
        network = MMDiT(config.mmdit, attention=lambda q, k, v: (q @ k.mT).softmax(-1) @ v)
        pictures = [torch.empty(1, 16, 8, 10)] * references
        mask = torch.zeros(context, dtype=torch.bool)
        states = torch.empty(1, context, config.mmdit.context_size)
        network(torch.empty(batch, 16, 12, 16), torch.empty(batch), states, mask, [], pictures)

    # Its positions are values, so not on the meta device.
    assert counted(run, "cpu") == counts.mmdit(config.mmdit, 6 * 8, references * 4 * 5, context, batch)


@pytest.mark.parametrize("tokens", [1, 9])
def test_flops_of_the_language_model(config, tokens):
    def run():
        network = Qwen3(config.language)
        (hidden,) = network(torch.empty(1, tokens, config.language.hidden_size), (config.language.num_layers,))
        network.logits(hidden[:, -1])

    assert counted(run) == counts.language(config.language, tokens)


def test_flops_of_the_vit(config):
    side = config.vision.image_size

    def run():
        VLM(config).see(torch.empty(2, 3, side, side))

    assert counted(run) == counts.vision(config.vision, config.language.hidden_size, tiles=2)


def test_flops_of_the_vae(config):
    network = {}

    def decode():
        network["vae"] = VAE(config.vae)
        network["vae"].decode_raw(torch.empty(1, 16, 6, 8))

    assert counted(decode) == counts.vae_decode(config.vae, 48, 64)
    assert counted(lambda: network["vae"].encode_raw(torch.empty(1, 3, 48, 64))) == counts.vae_encode(
        config.vae, 48, 64
    )


def test_bytes_of_a_token_are_the_matrices_and_the_cache(config):
    language = config.language
    with torch.device("meta"):
        network = Qwen3(language)
    matrices = {name: p for name, p in network.named_parameters() if p.ndim == 2}
    del matrices["model.embed_tokens.weight"]  # of which one row is read
    weights = 4 * sum(p.numel() for p in matrices.values())
    cache = 4 * 2 * language.num_layers * language.num_kv_heads * language.head_dim * 100
    assert counts.language_bytes(language, 100, 4) == weights + cache
