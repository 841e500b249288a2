"""A new checkpoint: the released configuration files with smaller sizes, a tokenizer, random weights."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from internvlu_core.checkpoints.config import CHAT_TEMPLATE, SAMPLER, Config
from internvlu_core.models.mmdit import MMDiT
from internvlu_core.models.vae import VAE
from internvlu_core.models.vlm import VLM

from ..settings import TextStage
from ..storage import replaced, write_network
from .presets import Sizes
from .tokenizer import write_tokenizer
from .world import TASKS
from .world.mixture import samples

VAE_FACTOR, VIT_PATCH, LATENT_CHANNELS = 8, 14, 16
FASTEST = 1 / 8  # periods per timestep; with faster sinusoids, neighbouring timesteps have unrelated embeddings
LOG_VARIANCE = -5.0  # of a new VAE; at 0 its noise hides the picture, and reconstructions stay grey


TOKENIZER_SAMPLES = 4000


def write_new(folder: Path, sizes: Sizes):
    """Write the checkpoint that the first stage starts from. Its tokenizer is trained on the toy world's texts."""
    tasks = sorted({(task, 1) for tasks in TASKS.values() for task in tasks})
    made = samples(TextStage(trained=(), tasks=tuple(tasks), samples=TOKENIZER_SAMPLES))
    texts = [text for sample in made for text in (sample.prompt, sample.words)]
    with replaced(folder) as new:
        write_fresh(new, sizes, texts)


def write_fresh(folder: Path, sizes: Sizes, texts: list[str], seed: int = 0):
    """Write a checkpoint in the released layout, in float32. texts: what the tokenizer is trained on."""
    processor = folder / "processor"
    tokens = write_tokenizer(processor, texts, sizes.vocabulary)
    ids = json.loads((processor / "added_tokens.json").read_text(encoding="utf-8"))
    for name, values in configs(sizes, tokens, ids).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=2), encoding="utf-8")
    config = Config.read(folder)
    generator = torch.Generator().manual_seed(seed)
    networks = {"vlm": VLM(config), "generation_decoder": MMDiT(config.mmdit), "vae": VAE(config.vae)}
    for name, network in networks.items():
        initialise(network, generator)
        write_network(folder, config, name, network, torch.float32)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator):
    """Random weights whose scale preserves that of activations; the MMDiT's blocks start as identities (adaLN-zero)."""
    for name, parameter in network.named_parameters():
        parameter.copy_(_initial(name, parameter.shape, generator))
    if isinstance(network, MMDiT):
        embedding = network.time_text_embed
        periods = 1000 * embedding.frequencies() / (2 * math.pi)  # per timestep
        embedding.timestep_embedder["linear_1"].weight[:, (periods > FASTEST).repeat(2)] = 0  # cosines, sines
    if isinstance(network, VAE):
        network.quant_conv.bias[network.config.latent_channels :] = LOG_VARIANCE


# Weights that start at 0: a block adds nothing to its residual stream, and the velocity is 0 (arXiv 2212.09748).
_ZERO = ("img_mod.1.weight", "txt_mod.1.weight", "norm_out.linear.weight", "proj_out.weight")
_SCALES = ("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "gamma", "ls1.weight", "ls2.weight")
_SCALES += ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight", "mlp1.0.weight")


# Output layers of the VLM's blocks start small, so that the last hidden states, which condition the MMDiT, are still
# close to the embeddings of the words.
_RESIDUAL = ("self_attn.o_proj.weight", "mlp.down_proj.weight", "attn.proj.weight", "mlp.fc2.weight")
RESIDUAL = 0.1


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith("bias") or name.endswith(_ZERO):
        return torch.zeros(shape)
    if name.endswith(_SCALES):
        return torch.ones(shape)
    values = torch.randn(shape, generator=generator)
    if "embed" in name and "patch_embedding" not in name and "time_text_embed" not in name:
        return values
    scale = RESIDUAL if name.endswith(_RESIDUAL) else 1.0
    return scale * values * values[0].numel() ** -0.5


def configs(sizes: Sizes, tokens: int, ids: dict[str, int]) -> dict[str, dict]:
    """The configuration files and their content. tokens: size of the vocabulary. ids: of the special tokens."""
    return {
        "model_index.json": {
            "_class_name": "InternVLUPipeline",
            "_diffusers_version": "0.35.1",
            "vlm": ["internvlu.vlm", "InternVLUChatModel"],
            "generation_decoder": ["internvlu.diffusion", "InternVLUGenerationDecoder"],
            "vae": ["diffusers", "AutoencoderKLQwenImage"],
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
            "processor": ["internvlu.processing_internvlu", "InternVLUProcessor"],
        },
        "vlm/config.json": _vlm(sizes, tokens, ids),
        "generation_decoder/config.json": _mmdit(sizes),
        "vae/config.json": {
            "_class_name": "AutoencoderKLQwenImage",
            "_diffusers_version": "0.35.1",
            "attn_scales": [],
            "base_dim": sizes.vae_base,
            "dim_mult": [1, 2, 4, 4],
            "dropout": 0.0,
            "latents_mean": [0.0] * LATENT_CHANNELS,
            "latents_std": [1.0] * LATENT_CHANNELS,
            "num_res_blocks": sizes.vae_blocks,
            "temperal_downsample": [False, True, True],
            "z_dim": LATENT_CHANNELS,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DPMSolverMultistepScheduler",
            "_diffusers_version": "0.35.1",
            **SAMPLER,
            "final_sigmas_type": "zero",
            "flow_shift": sizes.flow_shift,
            "lower_order_final": True,
        },
        "processor/processor_config.json": _processor(sizes),
    }


def _vlm(sizes: Sizes, tokens: int, ids: dict[str, int]) -> dict:
    return {
        "architectures": ["InternVLUChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": sizes.tile,
        "llm_config": _language(sizes, tokens, ids),
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvlu_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": CHAT_TEMPLATE,
        "tie_word_embeddings": False,
        "use_thumbnail": True,
        "vision_config": _vision(sizes),
    }


def _vision(sizes: Sizes) -> dict:
    return {
        "architectures": ["InternVisionModel"],
        "hidden_act": "gelu",
        "hidden_size": sizes.vit_width,
        "image_size": sizes.tile,
        "intermediate_size": 4 * sizes.vit_width,
        "layer_norm_eps": 1e-6,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": sizes.vit_width // 32,
        "num_channels": 3,
        "num_hidden_layers": sizes.vit_layers,
        "patch_size": VIT_PATCH,
        "qk_normalization": False,
        "qkv_bias": True,
    }


def _language(sizes: Sizes, tokens: int, ids: dict[str, int]) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "eos_token_id": ids["<|im_end|>"],
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": sizes.llm_width,
        "intermediate_size": 3 * sizes.llm_width,
        "max_position_embeddings": 4096,
        "model_type": "qwen3",
        "num_attention_heads": sizes.llm_width // 32,
        "num_hidden_layers": sizes.llm_layers,
        "num_key_value_heads": sizes.llm_width // 32,
        "pad_token_id": ids["<|endoftext|>"],
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1e6,
        "use_sliding_window": False,
        "vocab_size": tokens,
    }


def _mmdit(sizes: Sizes) -> dict:
    context = 2 * sizes.llm_width
    in_channels = LATENT_CHANNELS * sizes.patch**2
    decoder = {
        "attention_head_dim": sizes.head_dim,
        "axes_dims_rope": list(sizes.rope_axes),
        "in_channels": in_channels,
        "joint_attention_dim": context,
        "num_attention_heads": sizes.mmdit_heads,
        "num_layers": sizes.mmdit_layers,
        "out_channels": LATENT_CHANNELS,
        "patch_size": sizes.patch,
        "video_position_scale_factor": 1.0,
        "vlm_cond_position_scale_factor": 0.25,
    }
    return {
        "architectures": ["InternVLUGenerationDecoder"],
        "decoder_config": decoder,
        "decoder_projector_type": "identity",
        "flow_shift": sizes.flow_shift,
        "gen_image_height": sizes.picture,
        "gen_image_width": sizes.picture,
        "input_hidden_size": context,
        "max_sequence_length": 768,
        "model_type": "internvlu_generation_decoder",
        "output_hidden_size": context,
        "pad_to_fix_length": False,
        "vae_downsample_factor": VAE_FACTOR,
        "video_position_scale_factor": 1.0,
        "vlm_cond_position_scale_factor": 0.25,
        "vlm_select_layer": [-1, -2],
    }


def _processor(sizes: Sizes) -> dict:
    side = sizes.tile // VIT_PATCH // 2
    return {
        "processor_class": "InternVLUProcessor",
        "image_seq_length": side**2,
        "image_processor_kwargs": {
            "size": {"height": sizes.tile, "width": sizes.tile},
            "do_resize": True,
            "do_normalize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
        },
        "image_gen_processor_class": "InternVLUDynamicResGenerationImageProcessor",
        "image_gen_processor_kwargs": {
            "do_resize": True,
            "resample": 3,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "min_dynamic_patch": sizes.min_side**2 // VAE_FACTOR**2,
            "max_dynamic_patch": sizes.max_side**2 // VAE_FACTOR**2,
            "max_length": sizes.max_side,
            "vae_downsample_factor": VAE_FACTOR,
            "gen_down_sample_ratio": 0.5,  # references in steps of 16 pixels, as ComfyUI makes all sizes
        },
    }
