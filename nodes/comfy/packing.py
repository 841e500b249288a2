"""Conditionings of different lengths that ComfyUI can batch into one forward.

ComfyUI batches its own kinds only if their shapes are equal, which is seldom so for the branches of guidance. One
forward reads the weights once, which matters most where they are streamed to a small GPU.
"""

from dataclasses import dataclass

import comfy.conds
import torch
import torch.nn.functional as F

from ...internvlu_core.models.rope import Grid


@dataclass(frozen=True)
class Form:
    """What the network must know of one branch besides its tensors.

    image_mask: which of its context's tokens are the ViT's, as many as there are tokens; image_grids: their grids in
    order. references: how many reference latents it has.
    """

    image_mask: tuple[bool, ...] = ()
    image_grids: tuple[Grid, ...] = ()
    references: int = 0


class Forms(comfy.conds.CONDConstant):
    """A tuple of forms, one per branch."""

    def can_concat(self, other):
        return True

    def concat(self, others):
        return sum((other.cond for other in others), self.cond)


class Contexts(comfy.conds.CONDRegular):
    """Hidden states [B, T, C]; of several branches [branches · B, longest T, C], padded behind what forms count."""

    def can_concat(self, other):
        a, b = self.cond, other.cond
        return (len(a), a.shape[2], a.device) == (len(b), b.shape[2], b.device)

    def concat(self, others):
        contexts = [self.cond, *(other.cond for other in others)]
        longest = max(context.shape[1] for context in contexts)
        return torch.cat([F.pad(context, (0, 0, 0, longest - context.shape[1])) for context in contexts])


class References(comfy.conds.CONDList):
    """Latents [B, C, 1, h, w] of any number and size; those of several branches in the branches' order."""

    def can_concat(self, other):
        return True

    def concat(self, others):
        return sum((other.cond for other in others), self.cond)
