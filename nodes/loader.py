"""InternVL-U Load: a checkpoint folder → MODEL, VLM, VAE."""

import torch
from comfy_api.latest import io

from ..internvlu_core import weights
from ..internvlu_core.config import Config
from ..internvlu_core.mmdit import MMDiT
from ..internvlu_core.prompt import Tokenizer
from ..internvlu_core.vae import VAE
from ..internvlu_core.vlm import VLM
from . import folders
from .mmdit import build_model
from .schema import CATEGORY
from .vae import ComfyVAE
from .vlm import ComfyVLM, Vlm

DTYPES = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}


class InternVLULoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLULoader",
            display_name="InternVL-U Load",
            category=CATEGORY,
            description="Loads an InternVL-U checkpoint folder from models/internvl_u.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(folders.checkpoints()),
                    tooltip="A folder in models/internvl_u (or extra_model_paths.yaml) in the released layout.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="How weights are kept. auto: what ComfyUI prefers on this device.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The image generator."),
                Vlm.Output(display_name="VLM", tooltip="The vision-language model that reads, reasons and answers."),
                io.Vae.Output(display_name="VAE", tooltip="Pixels to latents and back."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, weight_dtype):
        try:
            folders.checkpoint(checkpoint)
        except ValueError as error:
            return str(error)
        return True if weight_dtype in DTYPES else f"weight_dtype {weight_dtype!r} is not one of {', '.join(DTYPES)}"

    @classmethod
    def fingerprint_inputs(cls, checkpoint, weight_dtype):
        """Files replaced on disk are loaded anew."""
        files = sorted(path for path in folders.checkpoint(checkpoint).rglob("*") if path.is_file())
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    @classmethod
    def execute(cls, checkpoint, weight_dtype) -> io.NodeOutput:
        folder, dtype = folders.checkpoint(checkpoint), DTYPES[weight_dtype]
        config = Config.read(folder)
        tokenizer = Tokenizer(folder / "processor")
        # Meta networks say which tensors there must be; the weights themselves stay memory-mapped until they are used.
        with torch.device("meta"):
            networks = VLM(config), MMDiT(config.mmdit), VAE(config.vae)
        layouts = weights.vlm_layout(config), weights.MMDIT, weights.VAE
        vlm, mmdit, vae = (
            weights.load_state_dict(folder, layout, network) for layout, network in zip(layouts, networks, strict=True)
        )
        return io.NodeOutput(
            build_model(config, mmdit, dtype),
            ComfyVLM(config, tokenizer, vlm, dtype),
            ComfyVAE(config.vae, vae),
        )
