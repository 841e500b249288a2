"""The core's branches as CONDITIONING."""

import torch

from ...internvlu_core.conditioning import Branch


def conditioning(branch: Branch) -> list:
    """A CONDITIONING. References are raw latents here, as stock nodes have them; the MODEL normalises them."""
    values = {"image_mask": branch.image_mask.tolist(), "image_grids": branch.image_grids}
    if branch.reasoned:  # only then, so that others are what they were
        values["reasoned"] = True  # a stock node that combines or changes conditionings keeps it
    if branch.references:
        values["reference_latents"] = branch.references
    hidden = branch.hidden[None].to(device="cpu", dtype=torch.float32)
    return [[hidden, values]]
