"""The core's VAE as a ComfyUI VAE."""

import math
from functools import partial

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from PIL import Image

from ...internvlu_core import imaging
from ...internvlu_core.checkpoints.config import Config, ProcessorConfig, VAEConfig
from ...internvlu_core.checkpoints.convert import as_wan
from ...internvlu_core.models.vae import VAE
from .dtypes import assign
from .images import from_pil

# Working memory (scripts/measure_vae.py): elements of the VAE's dtype per pixel at base 96, whatever the size and the
# dtype, and bytes for the convolutions' own use.
ENCODE_ELEMENTS, DECODE_ELEMENTS = 310, 390
FIXED = 16 * 2**20


class FrameVAE(VAE):
    """ComfyUI's latents are videos [B, C, T, h, w] and not normalised; each frame here is a picture of its own."""

    def encode(self, pixels):
        return self._frames(self.encode_raw, pixels)

    def decode(self, latents):
        return self._frames(self.decode_raw, latents)

    @staticmethod
    def _frames(function, x):
        out = function(x.movedim(2, 1).flatten(0, 1))
        if not out.isfinite().all():  # else a picture turns black on its way to 8 bits
            raise FloatingPointError(f"the VAE's result is not finite in {out.dtype}; its input may not have been")
        return out.unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


class ComfyVAE(comfy.sd.VAE):
    """A comfy.sd.VAE in everything but how its network is made."""

    def __init__(self, config: Config, state_dict: dict):
        # A one-parameter network stands in, so that every attribute this version of ComfyUI wants gets its default.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.disable_offload = False
        self._set_network(config.vae, state_dict)
        self._set_shapes(config.vae)
        self.process_input = partial(imaging.normalise_reference, config=config.processor)

    def _set_network(self, config: VAEConfig, state_dict: dict):
        offload_device = comfy.model_management.vae_offload_device()
        with torch.device("meta"):
            self.first_stage_model = FrameVAE(config, comfy.ops.disable_weight_init)
        assign(self.first_stage_model, state_dict, self.vae_dtype, offload_device)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=offload_device
        )
        self.size = None
        self.model_size()

    def _set_shapes(self, config: VAEConfig):
        """Sizes of latents, and the memory that they take to work on."""
        factor = config.scale_factor
        self.latent_channels = config.latent_channels
        self.latent_dim, self.not_video = 3, True
        self.downscale_ratio = self.upscale_ratio = (lambda frames: frames, factor, factor)
        self.downscale_index_formula = self.upscale_index_formula = (1, factor, factor)

        def memory(shape, elements, dtype):
            pixels = math.prod(shape[2:])  # of all frames: they are a batch here
            return FIXED + pixels * elements * config.base_channels / 96 * comfy.model_management.dtype_size(dtype)

        self.memory_used_encode = lambda shape, dtype: memory(shape, ENCODE_ELEMENTS, dtype)
        self.memory_used_decode = lambda shape, dtype: memory(shape, DECODE_ELEMENTS * factor**2, dtype)

    def get_sd(self):
        """For VAESave: in the form that the stock VAELoader reads, if this VAE has the shape that it builds."""
        state_dict = super().get_sd()
        return as_wan(self.first_stage_model.config, state_dict) or state_dict


def encode_reference(vae: comfy.sd.VAE, image: Image.Image, config: ProcessorConfig) -> torch.Tensor:
    """The latent [1, z, 1, h, w], not normalised, of a reference picture as the core reads it."""
    pixels = from_pil(imaging.resize_reference(image, config))
    if not isinstance(vae, ComfyVAE):  # a stock one, loaded from a file of its own, makes 2 · pixels − 1 of them
        pixels = (imaging.normalise_reference(pixels.movedim(-1, 1), config).movedim(1, -1) + 1) / 2
    return vae.encode(pixels)
