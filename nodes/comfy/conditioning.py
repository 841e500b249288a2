"""The core's branches as CONDITIONING."""

import torch

from ...internvlu_core.conditioning import Branch, Context


def conditioning(branch: Branch) -> list:
    """A CONDITIONING. References are raw latents here, as stock nodes have them; the MODEL normalises them."""
    values = {"image_mask": branch.image_mask.tolist(), "image_grids": branch.image_grids}
    if branch.reasoned:  # only then, so that others are what they were
        values["reasoned"] = True  # a stock node that combines or changes conditionings keeps it
    if branch.references:
        values["reference_latents"] = branch.references
    hidden = branch.hidden[None].to(device="cpu", dtype=torch.float32)
    return [[hidden, values]]


def conditionings(context: Context) -> tuple[list, list, list]:
    """The full, the partial and the unconditional CONDITIONING.

    Where the last two are one branch they are one object, by which samplers see that one evaluation is enough.
    """
    full, unconditional = conditioning(context.full), conditioning(context.unconditional)
    same = context.partial is context.unconditional
    return full, unconditional if same else conditioning(context.partial), unconditional
