"""The loss functions of the stages."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from internvlu_core.models.vae import VAE
from internvlu_core.sampling import sigma_to_timestep

from .data import Batch, Context, TokenBatch
from .settings import PictureStage, Stage, TextStage, VAEStage
from .storage import Networks


@dataclass(frozen=True)
class Losses:
    """total: what is minimised. parts: its terms before weighting, by name."""

    total: Tensor
    parts: dict[str, Tensor]


def losses(networks: Networks, batch: Batch, stage: Stage, step: int) -> Losses:
    """The loss of a micro-batch. step: from 0, for losses that are ramped up."""
    if isinstance(stage, VAEStage):
        return vae_loss(networks.vae, batch, stage, step)
    if isinstance(stage, TextStage):
        loss = text_loss(networks, batch.text)
        return Losses(loss, {"text": loss})
    parts, total = {}, 0
    if batch.text is not None:
        parts["text"] = text_loss(networks, batch.text)
        total = total + stage.text_weight * parts["text"]
    if batch.latents is not None:
        parts["flow"] = flow_loss(networks, batch, stage)
        total = total + stage.flow_weight * parts["flow"]
    return Losses(total, parts)


# The VAE


def vae_loss(vae: VAE, batch: Batch, stage: VAEStage, step: int) -> Losses:
    """Reconstruction and KL loss (see VAEStage).

    The whole VAE is trained on samples of the posterior. The decoder alone is trained on its mode, optionally with
    noise, because that is what it decodes at inference.
    """
    pixels = batch.pixels
    whole = any(parameter.requires_grad for parameter in vae.encoder.parameters())
    mean, log_variance = vae.quant_conv(vae.encoder(pixels)).float().chunk(2, dim=1)
    latents = mean
    if whole:
        latents = mean + (0.5 * log_variance).exp() * noise_like(mean, batch.generator)
    elif stage.noise:
        deviation = mean.new_tensor(vae.config.latents_std)[:, None, None]
        strength = torch.rand(len(mean), 1, 1, 1, generator=batch.generator, device=batch.generator.device)
        strength = stage.noise * strength.to(mean.device)
        latents = mean + strength * deviation * noise_like(mean, batch.generator)
    difference = vae.decoder(vae.post_quant_conv(latents)).float() - pixels  # no clamp: it has no gradient outside
    parts = {"mse": difference.square().mean(), "l1": difference.abs().mean()}
    ramp = min(1.0, (step + 1) / stage.l1_ramp)
    total = stage.mse * parts["mse"] + stage.l1 * ramp * parts["l1"]
    if whole:
        parts["kl"] = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total = total + stage.kl * parts["kl"]
    return Losses(total, parts)


# Text


def text_loss(networks: Networks, tokens: TokenBatch) -> Tensor:
    """Mean cross-entropy of the trained tokens, each predicted from all tokens before it."""
    language = networks.vlm.language_model
    (hidden,) = language(embed(networks, tokens), (language.config.num_layers,))
    trained = tokens.trained[:, 1:]
    logits = language.logits(hidden[:, :-1][trained])
    return F.cross_entropy(logits.float(), tokens.ids[:, 1:][trained])


def embed(networks: Networks, tokens: TokenBatch) -> Tensor:
    """Input embeddings [B, T, C]: of the ids, and ViT tokens at the positions of image_mask."""
    x = networks.vlm.embed(tokens.ids, networks.conditioner.tokenizer.special_ids.to(tokens.ids.device))
    if tokens.tiles is None:
        return x
    features = networks.vlm.image_features(tokens.tiles).to(x.dtype)
    return x.masked_scatter(tokens.image_mask[..., None], features.flatten(0, 1))


# Pictures


def flow_loss(networks: Networks, batch: Batch, stage: PictureStage) -> Tensor:
    """Mean squared error of the predicted velocity against noise − latents, at x = (1 − σ)·latents + σ·noise."""
    latents = batch.latents
    context = batch.context or context_of(networks, batch.context_tokens)
    sigma = noise_levels(len(latents), stage, batch.generator).to(latents.device)
    noise = noise_like(latents, batch.generator)
    at = sigma[:, None, None, None]
    velocity = networks.mmdit(
        (1 - at) * latents + at * noise,
        sigma_to_timestep(sigma),
        context.hidden,
        context.image_mask,
        context.image_grids,
        list(batch.references),
        mask=joint_mask(networks, latents, batch.references, context.mask),
    )
    return F.mse_loss(velocity.float(), noise - latents)


def noise_levels(count: int, stage: PictureStage, generator: torch.Generator) -> Tensor:
    """σ [count], on the generator's device: the sigmoid of a normal variable, or, for the share stage.even, uniform.

    They are then shifted towards noise, as the sampler's schedule is.
    """
    options = {"generator": generator, "device": generator.device}
    sigma = torch.randn(count, **options).sigmoid()
    even = torch.rand(count, **options) < stage.even
    sigma = torch.where(even, torch.rand(count, **options), sigma)
    return stage.shift * sigma / (1 + (stage.shift - 1) * sigma)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape of x, drawn where the generator is: on the CPU the same for every device."""
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)


def context_of(networks: Networks, tokens: TokenBatch) -> Context:
    """Run the language model on token rows, and take the hidden states that condition the MMDiT."""
    states = networks.vlm.language_model(embed(networks, tokens), networks.config.mmdit.select_layers)
    hidden = torch.cat(states, dim=-1)
    rows = [row[start:end] for row, start, end in zip(hidden, tokens.starts, tokens.lengths, strict=True)]
    masks = [row[start:end] for row, start, end in zip(tokens.image_mask, tokens.starts, tokens.lengths, strict=True)]
    return make_context(networks, rows, masks)


def make_context(networks: Networks, rows: list[Tensor], image_masks: list[Tensor]) -> Context:
    """Pad the hidden states [T_i, C] of several rows to one batch.

    image_masks: [T_i] of each row; the ViT tokens have the same positions in every row.
    """
    hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=hidden.device)
    mask = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    image_mask = max(image_masks, key=len).cpu()
    grid = networks.config.tile_grid
    count = int(image_mask.sum()) // (grid[1] * grid[2])
    return Context(hidden, mask, image_mask, [grid] * count)


def joint_mask(networks: Networks, latents: Tensor, references, context: Tensor) -> Tensor:
    """Attention mask [B, tokens], False for padding, in the MMDiT's order of tokens: latents, references, context."""
    patch = networks.config.mmdit.patch_size**2
    count = sum(x.shape[-2] * x.shape[-1] // patch for x in (latents, *references))
    return torch.cat([context.new_ones(len(context), count), context], dim=1)
