"""Editing at the size the model likes, and back to the picture's own size without a shift."""

from dataclasses import dataclass

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..internvlu_core import imaging
from ..internvlu_core.errors import InputError
from .comfy.clip import as_vlm
from .comfy.images import from_pil, to_pil
from .comfy.latents import empty_latent
from .comfy.vae import encode_reference
from .schema import CATEGORY, EditType, aliases, vlm_input


@dataclass(frozen=True)
class Edit:
    """What puts a result back: the picture [1, H, W, 3], and the mask of what may change [1, H, W] or None; in 0…1."""

    image: torch.Tensor
    mask: torch.Tensor | None


class InternVLUEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUEdit",
            display_name="InternVL-U Fit Picture for Editing",
            **aliases("inpaint", "mask", "image edit", "fit size", "resize", "scale image"),
            category=CATEGORY,
            description="Scales a picture to the size at which the model edits best. Restore Size undoes it.",
            inputs=[
                vlm_input(),
                io.Vae.Input("vae", tooltip="From InternVL-U Load."),
                io.Image.Input("image", tooltip="The picture to edit."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture may change. Every other pixel stays exactly as it is.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture at the model's size, for VAE Encode."),
                io.Latent.Output(display_name="latent", tooltip="For the sampler."),
                EditType.Output(display_name="edit", tooltip="For InternVL-U Restore Size."),
                io.Int.Output(display_name="width", tooltip="The size of the latent, in pixels."),
                io.Int.Output(display_name="height", tooltip="The size of the latent, in pixels."),
            ],
        )

    @classmethod
    def execute(cls, vlm, vae, image, mask=None) -> io.NodeOutput:
        if len(image) != 1:
            raise InputError(
                f"{len(image)} pictures are connected to InternVL-U Fit Picture for Editing; it takes one at a time"
            )
        vlm = as_vlm(vlm)
        picture, processor = to_pil(image[0]), vlm.config.processor
        resized = from_pil(imaging.resize_reference(picture, processor))
        height, width = resized.shape[1:3]
        if mask is None:
            latent = empty_latent(width, height)
        else:
            mask = fit_mask(mask, image.shape[1:3])
            samples = encode_reference(vae, picture, processor)
            # Of the latent's own size: ComfyUI shrinks any other by interpolation, in which a thin stroke is lost.
            latent = {"samples": samples, "noise_mask": fit_mask(mask, samples.shape[-2:])}
        edit = Edit(image[..., :3], mask)
        return io.NodeOutput(resized, latent, edit, width, height)


class InternVLUEditRestore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUEditRestore",
            display_name="InternVL-U Restore Size",
            **aliases("paste back", "composite", "original size"),
            category=CATEGORY,
            description="Scales an edited picture back to the original's size. Outside the mask it is the original.",
            inputs=[
                EditType.Input("edit", display_name="edit info", tooltip="From InternVL-U Fit Picture for Editing."),
                io.Image.Input("image", tooltip="The edited picture, from VAE Decode."),
            ],
            outputs=[io.Image.Output(tooltip="The picture at the size of the original.")],
        )

    @classmethod
    def execute(cls, edit: Edit, image) -> io.NodeOutput:
        original = edit.image.to(image)
        size = original.shape[1:3]
        result = image[..., :3]
        if result.shape[1:3] != size:
            result = (
                F.interpolate(result.movedim(-1, 1), size, mode="bicubic", antialias=True).movedim(1, -1).clamp(0, 1)
            )
        if edit.mask is not None:
            weight = edit.mask.to(image)[..., None]
            # Not left to the arithmetic: x · 1 + y · 0 is x only if y is finite.
            result = torch.where(weight > 0, original.lerp(result, weight), original)
        return io.NodeOutput(result.to(comfy.model_management.intermediate_device()))


def fit_mask(mask: torch.Tensor, size) -> torch.Tensor:
    """A MASK [h, w] or [1, h, w] → [1, *size]. Where it shrinks, a pixel is masked if any part of it was."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if len(mask) != 1:
        raise InputError(f"{len(mask)} masks are connected for one picture")
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask[0]
    if size[0] < mask.shape[-2] or size[1] < mask.shape[-1]:
        return F.adaptive_max_pool2d(mask, size)[0]
    return F.interpolate(mask, size, mode="bilinear", align_corners=False)[0]
