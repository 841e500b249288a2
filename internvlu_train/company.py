"""What a process computes without effect, so that all processes use their sharded networks at the same time.

A process gathers the weights of a sharded block from all others when it uses the block, and they wait for it. But while
one process has a question, another may have a drawing. So the batches of one round, a micro-batch per process, are
brought to one form: what a batch lacks and another has is computed on a blank input, and multiplied by 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from internvlu_core.conditioning import Conditioner
from internvlu_core.prompt import IMG

from .data import Batch, Context, TokenBatch, TokenRow, make_token_batch


@dataclass(frozen=True)
class Form:
    """Which networks a micro-batch uses: text, flow: for which losses. text_tiles, flow_tiles: and the ViT for them."""

    text: bool = False
    text_tiles: bool = False
    flow: bool = False
    flow_tiles: bool = False


def union(forms: Iterable[Form]) -> Form:
    """The form that all micro-batches of a round are brought to."""
    forms = list(forms)
    return Form(*(any(getattr(form, name) for form in forms) for name in Form.__dataclass_fields__))


def brought_to(form: Form, batch: Batch, conditioner: Conditioner, cached: bool) -> Batch:
    """A micro-batch with all that a form has. cached: whether the conditionings of pictures are."""
    idle = []
    if form.text and batch.text is None:
        batch = replace(batch, text=_blank_tokens(conditioner, True))
        idle.append("text")
    if form.flow and batch.latents is None:
        batch = _with_blank_picture(batch, conditioner, cached)
        idle.append("flow")
    if form.text_tiles:
        batch = replace(batch, text=_with_tiles(batch.text, conditioner))
    if form.flow_tiles and not cached:
        batch = replace(batch, context_tokens=_with_tiles(batch.context_tokens, conditioner))
    return replace(batch, idle=tuple(idle))


def _blank_tokens(conditioner: Conditioner, text: bool) -> TokenBatch:
    """One short row. text: with the mask of the next-token loss."""
    prompt = conditioner.prompts.unconditional(0, None)
    ids, mask = (*prompt.ids, conditioner.tokenizer.id(IMG)), (*prompt.image_mask, False)
    row = TokenRow(ids, mask, prompt.start, (False,) * len(ids) if text else ())
    return make_token_batch([row], [()], conditioner)


def _with_blank_picture(batch: Batch, conditioner: Conditioner, cached: bool) -> Batch:
    config = conditioner.config
    latents = torch.zeros(1, config.vae.latent_channels, config.mmdit.patch_size, config.mmdit.patch_size)
    if not cached:
        return replace(batch, latents=latents, context_tokens=_blank_tokens(conditioner, False))
    hidden = torch.zeros(1, 1, config.mmdit.context_size)
    on = torch.ones(1, 1, dtype=torch.bool)
    return replace(batch, latents=latents, context=Context(hidden, on, ~on[0], []))


def _with_tiles(tokens: TokenBatch, conditioner: Conditioner) -> TokenBatch:
    if tokens.tiles is not None:
        return tokens
    size = conditioner.config.processor.tile_size
    return replace(tokens, idle_tiles=torch.zeros(1, 3, size, size))
