"""From a checkpoint's files to a MODEL, a VLM and a VAE. Weights stay memory-mapped until they are used."""

import torch

from ...internvlu_core.checkpoints.config import Config
from ...internvlu_core.checkpoints.files import Source
from ...internvlu_core.checkpoints.load import read_formats, read_weights
from ...internvlu_core.prompt import Tokenizer
from .model import build_model
from .vae import ComfyVAE
from .vlm import ComfyVLM


def load_model(source: Source, config: Config, dtype: torch.dtype | None, disable_dynamic: bool = False):
    """A MODEL. disable_dynamic: newer versions of ComfyUI ask by it for a patcher of the kind that this always is."""
    formats = read_formats(source, config, "generation_decoder")
    model = build_model(config, read_weights(source, config, "generation_decoder"), dtype, formats)
    if hasattr(model, "cached_patcher_init"):  # for a copy with weights of its own: to train, for a second GPU
        model.cached_patcher_init = load_model, (source, config, dtype)
    return model


def load_vlm(source: Source, config: Config, dtype: torch.dtype | None) -> ComfyVLM:
    with source.tokenizer_folder() as folder:
        tokenizer = Tokenizer(folder)
    return ComfyVLM(config, tokenizer, read_weights(source, config, "vlm"), dtype, read_formats(source, config, "vlm"))


def load_vae(source: Source, config: Config) -> ComfyVAE:
    return ComfyVAE(config, read_weights(source, config, "vae"))
