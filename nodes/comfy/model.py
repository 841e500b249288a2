"""The core's MMDiT as a ComfyUI MODEL: a BaseModel that a stock ModelPatcher, sampler and guider can drive."""

from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.cli_args import args
from comfy.ldm.modules import attention as kernels
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...internvlu_core.checkpoints import files as source
from ...internvlu_core.checkpoints import load as weights
from ...internvlu_core.checkpoints.config import Config, MMDiTConfig
from ...internvlu_core.errors import CheckpointError, InputError
from ...internvlu_core.models.mmdit import MMDiT, pack
from ...internvlu_core.sampling import TIMESTEPS, flow_sigmas
from .dtypes import COMPUTE_DTYPES, as_floats, assign, choose_dtypes
from .float8 import scaled_state_dict
from .latents import CHANNELS, GRID, check_size
from .notice import notify
from .packing import Contexts, Form, Forms, References
from .patcher import Patcher
from .quantised import Formats, stored_tensors


def attention(q, k, v, transformer_options=None):
    """ComfyUI's attention of choice, for q, k, v [B, heads, T, head_dim]."""
    function = kernels.optimized_attention
    # Where the user has not chosen, ComfyUI computes a CPU's in chunks. In float32 that takes twice PyTorch's time.
    unchosen = function is kernels.attention_sub_quad and not args.use_quad_cross_attention
    if unchosen and q.device.type == "cpu" and q.dtype == torch.float32:
        function = kernels.attention_pytorch
    return function(
        q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True, transformer_options=transformer_options
    )


ANY_TEXT = Form()  # a context of text alone


class ComfyMMDiT(MMDiT):
    """The same network behind ComfyUI's calling convention: latents are videos of one frame [B, C, 1, h, w]."""

    def __init__(self, config: MMDiTConfig, image_model=None, dtype=None, device=None, operations=None):
        super().__init__(config, operations, attention, dtype=dtype, device=device)
        self.dtype = dtype  # BaseModel reads it
        self.in_channels = config.in_channels // config.patch_size**2  # of a latent; RenormCFG reads it
        # ComfyUI prepares nothing for a run, but rotary tables depend on sizes alone: no weights, no hooks. One for
        # 1024 × 1024 with a reference takes 4 MB. LoRA training must not find those that sampling left behind unusable
        # in a backward pass, as tensors made in inference mode are.
        self.rope = torch.compiler.disable(lru_cache(maxsize=8)(torch.inference_mode(False)(self.rope)))

    def forward(self, x, timestep, context, forms=(ANY_TEXT,), ref_latents=(), transformer_options=None, **kwargs):
        """x, timestep and context are those of every form's branch, one after the other."""
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        # Some wrappers (EasyCache) write into x, which in float32 is the very tensor that the sampler goes on with.
        return WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x.clone() if wrappers else x, timestep, context, forms, ref_latents, options, **kwargs
        )

    def _forward(self, x, timestep, context, forms, ref_latents, transformer_options, **kwargs):
        check_size(x)  # here too: a window of the picture may have another size than the whole
        latents, references = one_frame(x), iter([one_frame(latent) for latent in ref_latents])
        references = [[next(references) for _ in range(form.references)] for form in forms]
        if len(set(forms)) == 1:  # a batch
            references = [torch.cat(each) for each in zip(*references, strict=True)]
            prepared = self.prepare_form(latents, forms[0], context, references)
            velocities = self.velocities(latents, timestep, prepared, transformer_options=transformer_options)
            return velocities[0].unsqueeze(2)
        latents, timesteps, contexts = (tensor.chunk(len(forms)) for tensor in (latents, timestep, context))
        lengths = (len(form.image_mask) for form in forms)
        contexts = [context[:, :length] for context, length in zip(contexts, lengths, strict=True)]
        branches = zip(latents, forms, contexts, references, strict=True)
        prepared = [self.prepare_form(*branch) for branch in branches]
        if looks_inside(transformer_options):
            velocities = []
            for index, branch in enumerate(zip(latents, timesteps, prepared, strict=True)):
                velocities += self.velocities(*branch, transformer_options=options_of(transformer_options, index))
        else:
            # Branches are at one timestep: ComfyUI repeats it for each.
            velocities = self.velocities(latents, timesteps[0], pack(prepared), transformer_options=transformer_options)
        return torch.cat(velocities).unsqueeze(2)

    def prepare_form(self, latents, form: Form, context, references):
        image_mask = fit(form.image_mask, context.shape[1])  # no tensor: torch.compile cannot read one's values
        return self.prepare(self.grid(latents), context, image_mask, form.image_grids, references)

    def run_block(self, index, img, txt, temb, layout, transformer_options):
        """A block, or what a patch (skip-layer guidance, say) puts in its place."""
        transformer_options["block_index"] = index
        replace = transformer_options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))
        patches = transformer_options.get("patches", {}).get("double_block", ())
        if replace is None and not patches:
            return super().run_block(index, img, txt, temb, layout, transformer_options=transformer_options)

        def block(args):
            # Whole streams even from the last block: a patch may look at every token.
            img, txt = self.transformer_blocks[index](
                args["img"], args["txt"], args["vec"], args["pe"], transformer_options=transformer_options
            )
            return {"img": img, "txt": txt}

        arguments = {"img": img, "txt": txt, "vec": temb, "pe": layout, "transformer_options": transformer_options}
        out = replace(arguments, {"original_block": block}) if replace else block(arguments)
        img, txt = out["img"], out["txt"]
        for patch in patches:
            out = patch({"img": img, "txt": txt, "block_index": index, "transformer_options": transformer_options})
            img, txt = out["img"], out["txt"]
        return img, txt


def one_frame(latent: torch.Tensor) -> torch.Tensor:
    """[B, C, 1, h, w] → [B, C, h, w]."""
    if latent.shape[2] != 1:
        raise InputError(f"a latent of {latent.shape[2]} frames is a video; InternVL-U draws single pictures")
    return latent[:, :, 0]


def fit(image_mask, length: int) -> tuple[bool, ...]:
    """Tokens that other nodes appended to a conditioning are text."""
    return (tuple(image_mask) + (False,) * length)[:length]


def looks_inside(transformer_options: dict) -> bool:
    """Whether there are patches, which count on one branch a row."""
    replaced = transformer_options.get("patches_replace", {}).get("dit")
    patched = transformer_options.get("patches", {}).get("double_block")
    return bool(replaced or patched or "optimized_attention_override" in transformer_options)


def options_of(transformer_options: dict, index: int) -> dict:
    """What patches are told when one branch of several goes alone."""
    names = [name for name in ("cond_or_uncond", "uuids") if name in transformer_options]
    return transformer_options | {name: transformer_options[name][index : index + 1] for name in names}


# Working memory as memory_required counts it, context included, by compute dtype. Measured with pytorch's attention, at
# any size and number of references: 0.48, 0.37 and 0.66, for in float16 the streams are float32.
MEMORY_USAGE_FACTORS = {torch.bfloat16: 0.55, torch.float32: 0.42, torch.float16: 0.72}


class ModelConfig(comfy.supported_models_base.BASE):
    unet_extra_config: ClassVar = {}
    latent_format = comfy.latent_formats.Wan21
    supported_inference_dtypes: ClassVar = COMPUTE_DTYPES

    network: ComfyMMDiT  # the one that is made with this config

    def __init__(self, config: Config):
        super().__init__({"image_model": "internvl_u", "config": config.mmdit})
        self.checkpoint, self.texts = config, config.texts
        self.sampling_settings = {"shift": config.mmdit.flow_shift, "multiplier": TIMESTEPS}
        for name in ("latents_mean", "latents_std"):
            setattr(self.latent_format, name, torch.tensor(getattr(config.vae, name)).view(1, -1, 1, 1, 1))
        if config.vae.preview:  # then Wan's numbers, and its small decoder, are of another VAE
            self.latent_format.latent_rgb_factors = list(map(list, config.vae.preview.factors))
            self.latent_format.latent_rgb_factors_bias = list(config.vae.preview.bias)
            self.latent_format.taesd_decoder_name = None

    # What ModelSave and CheckpointSave write: released names, which ComfyUI takes for no other model's (the network's
    # own txt_norm would be Qwen-Image's), and the text files, for which those nodes leave no other place than a tensor.

    def process_unet_state_dict_for_saving(self, state_dict):
        texts = {name: self.texts[name] for name in source.CONFIG_FILES if name in self.texts}
        state_dict = scaled_state_dict(self.network, stored_tensors(state_dict))
        released = {weights.MMDIT_NAMES.file_name(name): tensor for name, tensor in state_dict.items()}
        return super().process_unet_state_dict_for_saving({**released, source.SAVED_TEXTS: source.pack_texts(texts)})

    def process_clip_state_dict_for_saving(self, state_dict):
        released = {weights.VLM_NAMES.file_name(name): tensor for name, tensor in state_dict.items()}
        return super().process_clip_state_dict_for_saving(
            {**released, source.SAVED_TEXTS: source.pack_texts(self.texts)}
        )


class ModelSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        # The official sampler starts at σ = 0.9997, from noise that is not scaled by it.
        # σ is one number, or under a noise mask one number per picture.
        if torch.as_tensor(sigma).max() >= flow_sigmas(1, self.shift)[0].to(noise.device):
            return noise
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)


class InternVLUModel(comfy.model_base.BaseModel):
    def __init__(self, model_config: ModelConfig, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=ComfyMMDiT)
        model_config.network = self.diffusion_model
        self.model_sampling = ModelSampling(model_config)
        self.told_of_size = False
        dtype = self.manual_cast_dtype or self.get_dtype()
        self.memory_usage_factor = MEMORY_USAGE_FACTORS.get(dtype, MEMORY_USAGE_FACTORS[torch.bfloat16])
        self.memory_usage_factor_conds = ("ref_latents", "c_crossattn")
        patch = model_config.unet_config["config"].patch_size ** 2
        self.memory_usage_shape_process = {"c_crossattn": lambda shape: [shape[0], 1, patch * shape[1]]}

    def extra_conds(self, **kwargs):
        check_size(kwargs["noise"])
        self.tell_of_size(kwargs["noise"])
        conds = super().extra_conds(**kwargs)
        context = kwargs.get("cross_attn")
        size = self.diffusion_model.config.context_size
        if context is None or context.shape[-1] != size:
            found = "none" if context is None else f"one of {context.shape[-1]} channels"
            raise InputError(
                f"this InternVL-U MODEL needs a conditioning of {size} channels, not {found}; use InternVL-U Encode "
                "with the VLM of the same checkpoint"
            )
        references = kwargs.get("reference_latents") or ()
        mask = fit(kwargs.get("image_mask", ()), context.shape[1])
        form = Form(mask, tuple(map(tuple, kwargs.get("image_grids", ()))), len(references))
        # On the device before the first step, which ComfyUI leaves to each step.
        device = kwargs.get("device")
        conds["c_crossattn"] = Contexts(self.diffusion_model.bound_context(context).to(device))
        conds["forms"] = Forms((form,))
        conds["ref_latents"] = References([self.reference(latent).to(device) for latent in references])
        return conds

    def tell_of_size(self, noise: torch.Tensor):
        """Say once that the model was not trained for pictures of this size."""
        height, width = (side * 8 for side in noise.shape[-2:])
        if self.told_of_size or not self.model_config.checkpoint.is_far(height, width):
            return
        self.told_of_size = True
        made = self.diffusion_model.config
        sizes = {"width": width, "height": height, "made_width": made.image_width, "made_height": made.image_height}
        message = (
            "{width} × {height} is far from the {made_width} × {made_height} pixels that this checkpoint was made for; "
            "the picture will probably be poor"
        )
        notify(message.format(**sizes), "far_size", **sizes)

    def reference(self, latent: torch.Tensor) -> torch.Tensor:
        """A LATENT's samples as the network reads them [B, C, 1, h, w]."""
        if latent.ndim != 5:
            raise InputError(
                f"a reference latent of {latent.ndim} dimensions is of another model's VAE; InternVL-U's have 5; "
                "encode it with the VAE of this model"
            )
        # Stock nodes (TextEncodeQwenImageEdit) choose the size of a reference themselves, in steps of 8 pixels: what
        # makes no whole patch at the right and the bottom is left out.
        height, width = (side * 8 // GRID * GRID // 8 for side in latent.shape[-2:])
        return self.process_latent_in(latent[..., :height, :width])

    def extra_conds_shapes(self, **kwargs):
        shapes = {}
        if kwargs.get("cross_attn") is not None:
            shapes["c_crossattn"] = list(kwargs["cross_attn"].shape)
        if references := kwargs.get("reference_latents"):
            channels = self.latent_format.latent_channels
            shapes["ref_latents"] = [1, channels, sum(latent.numel() for latent in references) // channels]
        return shapes

    def process_latent_in(self, latent):
        channels = self.latent_format.latent_channels
        if latent.shape[1] != channels:
            raise InputError(
                f"a latent has {latent.shape[1]} channels, InternVL-U's have {channels}: it is of another model's VAE; "
                "encode it with the VAE of this model"
            )
        return super().process_latent_in(latent)

    def process_latent_out(self, latent):
        # Every sampler's result passes here. NaNs would be decoded to a black picture.
        if not latent.isfinite().all():
            raise FloatingPointError("the sampled latents are not finite; load the model with another weight_dtype")
        return super().process_latent_out(latent)

    def process_timestep(self, timestep, **kwargs):
        # The network is driven by whole steps of 0…1000, whatever unit a patched model_sampling counts in.
        multiplier = getattr(self.model_sampling, "multiplier", 1.0)
        return (timestep * (TIMESTEPS / multiplier)).trunc()


def build_model(
    config: Config, state_dict: dict, dtype: torch.dtype | None, formats: Formats = MappingProxyType({})
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from the core's state dict. dtype: of the weights, None for what ComfyUI thinks best.

    formats: of the layers that the state dict has in fewer bits; a dtype of floats turns them into floats.

    Raises CheckpointError for a checkpoint whose latents differ from the released one's: ComfyUI's sizes assume those.
    """
    found = config.vae.scale_factor, config.mmdit.patch_size, config.vae.latent_channels
    if found[0] != GRID // 2 or GRID % config.size_factor or found[2] != CHANNELS:
        raise CheckpointError(
            f"latents of 1/{found[0]} of a side, patches of {found[1]} and {found[2]} channels work only outside "
            f"ComfyUI; the nodes need 1/{GRID // 2}, at most 2 and {CHANNELS}"
        )
    model_config = ModelConfig(config)
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    formats = as_floats(state_dict, formats, dtype)
    dtype, compute_dtype = choose_dtypes(state_dict, dtype, load_device, formats)
    model_config.set_inference_dtype(dtype, compute_dtype)
    model = InternVLUModel(model_config, device=torch.device("meta"))
    more = {"formats": formats, "load_device": load_device}
    assign(model.diffusion_model, state_dict, dtype, offload_device, compute_dtype, **more)
    model.device = offload_device
    return Patcher(model, load_device=load_device, offload_device=offload_device)
