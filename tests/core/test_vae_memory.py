"""The VAE's attention must not hold a weight for every pair of pixels."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def test_attention_runs_in_a_fused_kernel(model):
    latents = torch.randn(1, 16, 6, 10, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.vae.decode(latents)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where the kernel cannot take these tensors
            torch.testing.assert_close(model.vae.decode(latents), expected)
            model.vae.encode(expected)
