"""From a checkpoint's files to a MODEL, a VLM and a VAE."""

import torch

from ...internvlu_core.checkpoints import load as weights
from ...internvlu_core.checkpoints.config import Config
from ...internvlu_core.checkpoints.files import Source
from ...internvlu_core.models.mmdit import MMDiT
from ...internvlu_core.models.vae import VAE
from ...internvlu_core.models.vlm import VLM
from ...internvlu_core.prompt import Tokenizer
from .model import build_model
from .vae import ComfyVAE
from .vlm import ComfyVLM

# Meta networks say which tensors there must be; the weights themselves stay memory-mapped until they are used.


def load_model(source: Source, config: Config, dtype: torch.dtype | None, disable_dynamic: bool = False):
    """A MODEL. disable_dynamic is how newer ComfyUIs ask for a patcher of the kind that this one always is."""
    with torch.device("meta"):
        network = MMDiT(config.mmdit)
    model = build_model(config, weights.load_state_dict(source, weights.MMDIT, network), dtype)
    if hasattr(model, "cached_patcher_init"):  # for a copy with weights of its own: to train, for a second GPU
        model.cached_patcher_init = load_model, (source, config, dtype)
    return model


def load_vlm(source: Source, config: Config, dtype: torch.dtype | None) -> ComfyVLM:
    with source.tokenizer_folder() as folder:
        tokenizer = Tokenizer(folder)
    with torch.device("meta"):
        network = VLM(config)
    state = weights.load_state_dict(source, weights.vlm_layout(config), network)
    return ComfyVLM(config, tokenizer, state, dtype)


def load_vae(source: Source, config: Config) -> ComfyVAE:
    with torch.device("meta"):
        network = VAE(config.vae)
    return ComfyVAE(config.vae, weights.load_state_dict(source, weights.VAE, network))
