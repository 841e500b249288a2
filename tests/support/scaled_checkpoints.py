"""Random weights of the released sizes, or of a smaller scale: checkpoints written shard by shard, or models in memory.

Names and shapes are those of the networks in internvlu_core, so they cannot drift from what it loads; the tokenizer and
every JSON value that is not a size are the test checkpoint's.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from internvlu_core import InternVLU
from internvlu_core.checkpoints import load as weights
from internvlu_core.checkpoints.config import RELEASED_VAE, Config
from internvlu_core.checkpoints.files import COMPONENTS
from internvlu_core.models.vae import VAE
from internvlu_core.models.vlm import VLM
from internvlu_core.prompt import Tokenizer

from .checkpoints import copy_json, merge_json
from .networks import randomise

SHARD_BYTES = 2**30

# {scale: {file: values that differ from the test checkpoint's}}
SCALES = {
    "small": {},
    "released": {
        "vlm/config.json": {
            "force_image_size": 448,
            "vision_config": {
                "hidden_size": 1024,
                "image_size": 448,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
            },
            "llm_config": {
                "head_dim": 128,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "max_position_embeddings": 40960,
                "num_attention_heads": 16,
                "num_hidden_layers": 28,
                "num_key_value_heads": 8,
                "vocab_size": 151936,
            },
        },
        "generation_decoder/config.json": {
            "decoder_config": {
                "attention_head_dim": 128,
                "axes_dims_rope": [16, 56, 56],
                "joint_attention_dim": 4096,
                "num_attention_heads": 12,
                "num_layers": 20,
            },
            "gen_image_height": 512,
            "gen_image_width": 512,
            "input_hidden_size": 4096,
            "max_sequence_length": 768,
            "output_hidden_size": 4096,
        },
        "vae/config.json": {"base_dim": RELEASED_VAE.base_channels, "num_res_blocks": RELEASED_VAE.num_res_blocks},
        "processor/processor_config.json": {
            "image_seq_length": 256,
            "image_processor_kwargs": {"size": {"height": 448, "width": 448}},
            "image_gen_processor_kwargs": {"min_dynamic_patch": 4096, "max_dynamic_patch": 16384, "max_length": 1024},
        },
    },
}

Shapes = dict[str, tuple[int, ...]]


def write_checkpoint(folder: Path, scale: str):
    copy_json(folder, SCALES[scale])
    generator = torch.Generator().manual_seed(0)
    for names, shapes in stored_shapes(folder):
        write_shards(folder / names.folder, names.stem, shapes, generator)


def random_model(scale: str, device: str, dtype: torch.dtype) -> InternVLU:
    """A model whose weights are made on the device, and of which nothing stays on the disk."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / scale
        copy_json(folder, SCALES[scale])
        config, tokenizer = Config.read(folder), Tokenizer(folder / "processor")
    networks = (weights.build_on_meta(config, component).to(dtype).to_empty(device=device) for component in COMPONENTS)
    return InternVLU(config, tokenizer, *(randomise(network, seed) for seed, network in enumerate(networks)))


def stored_shapes(folder: Path) -> list[tuple[weights.TensorNames, Shapes]]:
    """What belongs into the weight files of a folder that has its JSON files."""
    config = Config.read(folder)
    vlm, mmdit, vae = (weights.build_on_meta(config, component) for component in COMPONENTS)
    temporal = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["temperal_downsample"]
    shapes = vlm_shapes(vlm), network_shapes(mmdit), vae_shapes(vae, temporal)
    stored = []
    for component, of_network in zip(COMPONENTS, shapes, strict=True):
        names = weights.tensor_names(config, component)
        stored.append((names, {names.file_name(name): shape for name, shape in of_network.items()}))
    stored[1][1]["encoder_padding_token"] = (config.mmdit.joint_size,)
    return stored


# For the benchmarks, as changes of the released sizes.
SCALES |= {
    name: merge_json(SCALES["released"], changes)
    for name, changes in {
        # For machines that cannot hold more. The head is tied: alone it has more weights than all layers together.
        "shallow": {
            "vlm/config.json": {
                "vision_config": {"num_hidden_layers": 4},
                "llm_config": {"num_hidden_layers": 4, "tie_word_embeddings": True},
            },
            "generation_decoder/config.json": {"decoder_config": {"num_layers": 2}},
        },
        # The whole language model, and little else.
        "text": {
            "vlm/config.json": {"vision_config": {"num_hidden_layers": 1}},
            "generation_decoder/config.json": {"decoder_config": {"num_layers": 1}},
            "vae/config.json": {"base_dim": 8, "num_res_blocks": 1},
        },
        # A language model so small that the program around it takes the time.
        "narrow": {
            "vlm/config.json": {
                "vision_config": {"num_hidden_layers": 1},
                "llm_config": {
                    "head_dim": 64,
                    "hidden_size": 512,
                    "intermediate_size": 1536,
                    "num_attention_heads": 8,
                    "num_hidden_layers": 4,
                    "num_key_value_heads": 4,
                    "vocab_size": 32768,
                },
            },
            "generation_decoder/config.json": {
                "decoder_config": {"joint_attention_dim": 1024, "num_layers": 1},
                "input_hidden_size": 1024,
                "output_hidden_size": 1024,
            },
            "vae/config.json": {"base_dim": 8, "num_res_blocks": 1},
        },
    }.items()
}


def network_shapes(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def vlm_shapes(vlm: VLM) -> Shapes:
    """Free-standing vectors are one-row tables in the network (see vision.py)."""
    shapes = network_shapes(vlm)
    for name, shape in shapes.items():
        if name.endswith(("ls1.weight", "ls2.weight")):
            shapes[name] = shape[1:]
        elif name.endswith(("class_embedding.weight", "position_embedding.weight")):
            shapes[name] = (1, *shape)
    return shapes


def vae_shapes(vae: VAE, temporal: list[bool]) -> Shapes:
    """As the released VAE stores them: for video, with kernels of three axes and layers between frames."""
    shapes = network_shapes(vae)
    video = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and "resample" not in name and "attentions" not in name:
            shape = (*shape[:2], shape[-1], *shape[2:])
        elif name.endswith("gamma") and "attentions" not in name:
            shape = (*shape, 1)
        video[name] = shape
    for half, flags, growth in (("encoder", temporal, 1), ("decoder", temporal[::-1], 2)):
        samplers = [name for name in shapes if name.startswith(half) and name.endswith("resample.1.weight")]
        for name, flag in zip(samplers, flags, strict=True):
            if flag:
                prefix, channels = name.removesuffix("resample.1.weight"), shapes[name][1]
                video[f"{prefix}time_conv.weight"] = (growth * channels, channels, 3, 1, 1)
                video[f"{prefix}time_conv.bias"] = (growth * channels,)
    return video


def write_shards(folder: Path, stem: str, shapes: Shapes, generator: torch.Generator):
    shards = list(split(shapes))
    if len(shards) == 1:
        save_file(random_tensors(shapes, generator), folder / f"{stem}.safetensors", {"format": "pt"})
        return
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = random_tensors(shard, generator)
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def split(shapes: Shapes) -> Iterator[Shapes]:
    """In order, at most SHARD_BYTES of bfloat16 each (more only where one tensor has more)."""
    shard, size = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if shard and size + nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += nbytes
    yield shard


def random_tensors(shapes: Shapes, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: random_tensor(name, shape, generator) for name, shape in shapes.items()}


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """At a scale that keeps activations near 1: scales of norms and layers near 1, biases small, kernels by fan-in."""
    values = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator)
    if name.endswith("bias"):
        return values.mul_(0.1)
    if sum(side > 1 for side in shape) < 2:
        return values.mul_(0.2).add_(1)
    return values.mul_(values[0].numel() ** -0.5)
