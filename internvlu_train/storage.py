"""Read networks from a checkpoint, and write them in the released layout, as a whole or not at all."""

import json
import os
import shutil
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from internvlu_core.checkpoints import load as weights
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import open_source
from internvlu_core.conditioning import Conditioner
from internvlu_core.prompt import Tokenizer

from .attention import masked_attention

ROPE_TABLES = 256


class Networks(nn.Module):
    """The three networks of a checkpoint in float32, ready to be trained, and their conditioner."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        """Raises CheckpointError as InternVLU.from_pretrained does."""
        super().__init__()
        source = open_source(folder)
        self.config = Config.read(source)
        with source.tokenizer_folder() as processor:
            tokenizer = Tokenizer(processor)
        networks = weights.load_networks(
            source, self.config, dtype=torch.float32, device=device, attention=masked_attention
        )
        self.vlm, self.mmdit, self.vae = networks
        # Tables of few lengths; making one anew in each step takes longer than the toy's MMDiT on a GPU.
        self.mmdit.rope = lru_cache(ROPE_TABLES)(self.mmdit.rope)
        for parameter in self.parameters():
            parameter.data = parameter.data.clone()  # it may be a view of a memory-mapped file
        self.requires_grad_(True).train()
        self.conditioner = Conditioner(self.vlm, tokenizer, self.config)

    def stored(self) -> dict[str, nn.Module]:
        """The networks by the names of their folders in a checkpoint."""
        return {"vlm": self.vlm, "generation_decoder": self.mmdit, "vae": self.vae}


def write_network(folder: Path, config: Config, name: str, network: nn.Module, dtype: torch.dtype):
    """Write the weights of one network, under the released names and in the released shapes."""
    names, tensors = weights.tensor_names(config, name), {}
    for key, tensor in network.state_dict().items():
        tensors |= _released(name, names.file_name(key), tensor.detach().to("cpu", dtype))
    if name == "generation_decoder":
        tensors["encoder_padding_token"] = torch.zeros(network.config.joint_size, dtype=dtype)
    if name == "vae":
        tensors |= _between_frames(tensors, json.loads((folder / "vae/config.json").read_text(encoding="utf-8")))
    (folder / name).mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / name / f"{names.stem}.safetensors", {"format": "pt"})


def _released(name: str, key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of a network in its released shape.

    Vectors that are rows of an Embedding here lose that axis; kernels of the VAE get their time axis.
    """
    if name == "vlm" and key.endswith((".ls1", ".ls2")):
        tensor = tensor[0]
    elif name == "vlm" and key.endswith(("class_embedding", "position_embedding")):
        tensor = tensor[None]
    elif name == "vae" and "resample" not in key and "attentions" not in key:
        if tensor.ndim == 4:
            earlier = [torch.zeros_like(tensor)] * (tensor.shape[-1] - 1)  # a single frame uses the last tap only
            tensor = torch.stack([*earlier, tensor], dim=2)
        elif key.endswith("gamma"):
            tensor = tensor[..., None]
    return {key: tensor}


def _between_frames(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Zeros for the layers between frames of the video VAE, which loaders of the released layout expect."""
    flags, added = config["temperal_downsample"], {}
    for half, on, growth in (("encoder", flags, 1), ("decoder", flags[::-1], 2)):
        resamplers = [key for key in tensors if key.startswith(half) and key.endswith("resample.1.weight")]
        for key in (key for key, flag in zip(resamplers, on, strict=True) if flag):
            like, prefix = tensors[key], key.removesuffix("resample.1.weight")
            added[f"{prefix}time_conv.weight"] = like.new_zeros(growth * like.shape[1], like.shape[1], 3, 1, 1)
            added[f"{prefix}time_conv.bias"] = like.new_zeros(growth * like.shape[1])
    return added


def write_checkpoint(folder: Path, base: Path, networks: Networks, trained: tuple[str, ...], dtype: torch.dtype):
    """Write to `folder` a copy of the checkpoint `base` in which the trained networks are replaced.

    trained: prefixes of parameter names. The mean and deviation of latents are those of networks.config.
    """
    with replaced(folder) as new:
        shutil.copytree(base, new, dirs_exist_ok=True)
        folders = {"vlm": "vlm", "mmdit": "generation_decoder", "vae": "vae"}
        for name in {folders[prefix.partition(".")[0]] for prefix in trained}:
            for old in (new / name).glob("*.safetensors*"):
                old.unlink()
            write_network(new, networks.config, name, networks.stored()[name], dtype)
        file = new / "vae/config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values |= {key: list(getattr(networks.config.vae, key)) for key in ("latents_mean", "latents_std")}
        if any("vae.encoder.".startswith(prefix) for prefix in trained):
            values.pop("latent_preview", None)  # it was fitted to the old latents
        file.write_text(json.dumps(values, indent=2), encoding="utf-8")


@contextmanager
def replaced(path: Path):
    """A context: a temporary path to write a file or folder to, which replaces `path` when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{ending}") for ending in ("new", "old"))
    for stale in (new, old):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    yield new
    if path.is_dir():
        os.rename(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)
