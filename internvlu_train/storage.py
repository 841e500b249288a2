"""Networks from and to folders in the released layout, whole or not at all."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from internvlu_core.checkpoints import load as weights
from internvlu_core.checkpoints.config import Config
from internvlu_core.checkpoints.files import open_source
from internvlu_core.conditioning import Conditioner
from internvlu_core.models.mmdit import MMDiT
from internvlu_core.models.vae import VAE
from internvlu_core.models.vlm import VLM
from internvlu_core.prompt import Tokenizer

from .attention import masked_attention

LAYOUTS = {"vlm": weights.VLM_NAMES, "generation_decoder": weights.MMDIT_NAMES, "vae": weights.VAE_NAMES}


class Networks(nn.Module):
    """A checkpoint's three networks in float32, made to be trained, with the conditioner of its prompts."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        """Raises CheckpointError as InternVLU.from_pretrained does."""
        super().__init__()
        source = open_source(folder)
        self.config = Config.read(source)
        with source.tokenizer_folder() as processor:
            tokenizer = Tokenizer(processor)
        with torch.device("meta"):
            self.vlm = VLM(self.config, attention=masked_attention)
            self.mmdit = MMDiT(self.config.mmdit, attention=masked_attention)
            self.vae = VAE(self.config.vae)
        layouts = {**LAYOUTS, "vlm": weights.tensor_names(self.config, "vlm")}
        for name, network in self.stored().items():
            state = weights.load_state_dict(source, layouts[name], network, dtype=torch.float32, device=device)
            # Tensors may be views of mapped files, which learning must not write to.
            network.load_state_dict({key: tensor.clone() for key, tensor in state.items()}, assign=True)
        self.conditioner = Conditioner(self.vlm, tokenizer, self.config)

    def stored(self) -> dict[str, nn.Module]:
        """{folder in a checkpoint: network}."""
        return {"vlm": self.vlm, "generation_decoder": self.mmdit, "vae": self.vae}


def write_network(folder: Path, name: str, network: nn.Module, dtype: torch.dtype):
    """Write one network's weights under their released names and in their released shapes."""
    layout, tensors = LAYOUTS[name], {}
    for key, tensor in network.state_dict().items():
        tensors |= _released(name, layout.file_name(key), tensor.detach().to("cpu", dtype))
    if name == "generation_decoder":
        tensors["encoder_padding_token"] = torch.zeros(network.config.joint_size, dtype=dtype)
    if name == "vae":
        tensors |= _between_frames(tensors, json.loads((folder / "vae/config.json").read_text(encoding="utf-8")))
    (folder / name).mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / name / f"{layout.stem}.safetensors", {"format": "pt"})


def _released(name: str, key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A network's tensor in its released shape: vectors without rows, kernels with their taps in time."""
    if name == "vlm" and key.endswith((".ls1", ".ls2")):
        tensor = tensor[0]
    elif name == "vlm" and key.endswith(("class_embedding", "position_embedding")):
        tensor = tensor[None]
    elif name == "vae" and "resample" not in key and "attentions" not in key:
        if tensor.ndim == 4:
            earlier = [torch.zeros_like(tensor)] * (tensor.shape[-1] - 1)  # which a single frame never meets
            tensor = torch.stack([*earlier, tensor], dim=2)
        elif key.endswith("gamma"):
            tensor = tensor[..., None]
    return {key: tensor}


def _between_frames(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Zeros for the video VAE's layers between frames, which loaders of the released layout expect."""
    flags, added = config["temperal_downsample"], {}
    for half, on, growth in (("encoder", flags, 1), ("decoder", flags[::-1], 2)):
        resamplers = [key for key in tensors if key.startswith(half) and key.endswith("resample.1.weight")]
        for key in (key for key, flag in zip(resamplers, on, strict=True) if flag):
            like, prefix = tensors[key], key.removesuffix("resample.1.weight")
            added[f"{prefix}time_conv.weight"] = like.new_zeros(growth * like.shape[1], like.shape[1], 3, 1, 1)
            added[f"{prefix}time_conv.bias"] = like.new_zeros(growth * like.shape[1])
    return added


def write_checkpoint(folder: Path, base: Path, networks: Networks, trained: tuple[str, ...], dtype: torch.dtype):
    """The checkpoint `base` with the trained networks in place of its own; `folder` is replaced as a whole.

    trained: prefixes of parameter names. Latent statistics are those of networks.config.
    """
    with replaced(folder) as new:
        shutil.copytree(base, new, dirs_exist_ok=True)
        names = {"vlm": "vlm", "mmdit": "generation_decoder", "vae": "vae"}
        for name in {names[prefix.partition(".")[0]] for prefix in trained}:
            for old in (new / name).glob("*.safetensors*"):
                old.unlink()
            write_network(new, name, networks.stored()[name], dtype)
        file = new / "vae/config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values |= {key: list(getattr(networks.config.vae, key)) for key in ("latents_mean", "latents_std")}
        if any(prefix.startswith("vae.") for prefix in trained):
            values.pop("latent_preview", None)  # it was fitted to what the VAE was
        file.write_text(json.dumps(values, indent=2), encoding="utf-8")


@contextmanager
def replaced(path: Path):
    """A new path to write a file or a folder to, which takes the place of `path` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{ending}") for ending in ("new", "old"))
    for stale in (new, old):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    yield new
    if path.is_dir():
        os.rename(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)
