"""The loaders: a checkpoint folder or a single file → MODEL, VLM, VAE; and a file each for MODEL and VLM."""

import torch
from comfy_api.latest import io

from ..internvlu_core.checkpoints.config import Config
from ..internvlu_core.checkpoints.files import File, open_source
from .comfy import download, folders
from .comfy.dtypes import DTYPES
from .comfy.load import load_model, load_vae, load_vlm
from .schema import CATEGORY, Vlm, aliases


def dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "weight_dtype",
        options=list(DTYPES),
        default="auto",
        tooltip="The format of the weights in memory. auto: as in the file where it has 8 or 4 bits, else what ComfyUI "
        "prefers on this device. fp8_e4m3fn: 60% of the memory of bf16, for a slightly different picture.",
    )


def dtype_of(weight_dtype: str) -> torch.dtype | None:
    """What a choice of weight_dtype means to the functions of load. Raises ValueError for one that is not listed."""
    if weight_dtype not in DTYPES:
        raise ValueError(f"weight_dtype {weight_dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[weight_dtype]


def model_output() -> io.Model.Output:
    return io.Model.Output(display_name="MODEL", tooltip="The image generator.")


def vlm_output() -> io.Output:
    return Vlm.Output(display_name="VLM", tooltip="The vision-language model that reads, reasons and answers.")


class InternVLULoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLULoader",
            display_name="InternVL-U Load",
            **aliases("loader", "internvl", "load checkpoint", "unified", "multimodal", "any2any", "any to any"),
            category=CATEGORY,
            description="Loads an InternVL-U checkpoint from models/internvl_u, or downloads it if you choose that.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=download.choices(),
                    tooltip="In models/internvl_u (or extra_model_paths.yaml): a folder in the released layout, or a "
                    "single file made by the converter. The download, if listed, starts when the workflow is queued.",
                ),
                dtype_input(),
            ],
            outputs=[
                model_output(),
                vlm_output(),
                io.Vae.Output(display_name="VAE", tooltip="Encodes pictures as latents, and decodes latents."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint):
        # Nothing else: ComfyUI marks every input that is an argument here. One that comes over a link is None yet.
        try:
            if checkpoint is not None:
                download.resolve(checkpoint)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint, weight_dtype):
        """Files replaced on disk are loaded anew, but for those that a link names: they are not known yet."""
        # What is downloaded is pinned: as a choice it means the same before and after.
        return [] if checkpoint in (None, download.CHOICE) else folders.stamps(download.resolve(checkpoint))

    @classmethod
    def execute(cls, checkpoint, weight_dtype) -> io.NodeOutput:
        dtype = dtype_of(weight_dtype)
        source = open_source(download.resolve(checkpoint) or download.fetch())
        config = Config.read(source)
        return io.NodeOutput(
            load_model(source, config, dtype), load_vlm(source, config, dtype), load_vae(source, config)
        )


class _FileLoader(io.ComfyNode):
    """A loader of one part from a file in one of ComfyUI's own folders."""

    KIND: str  # of the folder
    COMPONENT: str

    @classmethod
    def inputs(cls, tooltip: str) -> list:
        return [io.Combo.Input("file", options=folders.model_files(cls.KIND), tooltip=tooltip), dtype_input()]

    @classmethod
    def validate_inputs(cls, file):
        try:
            if file is not None:  # a linked one, see InternVLULoader
                cls.open(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, weight_dtype):
        """A file replaced on disk is loaded anew."""
        return [] if file is None else folders.stamps(folders.model_file(cls.KIND, file))

    @classmethod
    def open(cls, file: str) -> File:
        """Raises ValueError for a file that is not listed, not whole, or holds other weights."""
        opened = File(folders.model_file(cls.KIND, file))
        opened.tensors(cls.COMPONENT)
        return opened


class InternVLUModelLoader(_FileLoader):
    KIND, COMPONENT = "diffusion_models", "generation_decoder"

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUModelLoader",
            display_name="InternVL-U Load Model",
            **aliases("loader", "load diffusion model", "unet loader"),
            category=CATEGORY,
            description="Loads the image generator from a file of its own.",
            inputs=cls.inputs(
                "In models/diffusion_models: from `python -m internvlu_core convert`, or from ModelSave."
            ),
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, file, weight_dtype) -> io.NodeOutput:
        dtype, source = dtype_of(weight_dtype), cls.open(file)
        return io.NodeOutput(load_model(source, Config.read(source), dtype))


class InternVLUVLMLoader(_FileLoader):
    KIND, COMPONENT = "text_encoders", "vlm"

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUVLMLoader",
            display_name="InternVL-U Load VLM",
            **aliases("loader", "load text encoder", "vision language model", "multimodal"),
            category=CATEGORY,
            description="Loads the vision-language model from a file of its own.",
            inputs=cls.inputs("In models/text_encoders: made by `python -m internvlu_core convert`."),
            outputs=[vlm_output()],
        )

    @classmethod
    def execute(cls, file, weight_dtype) -> io.NodeOutput:
        dtype, source = dtype_of(weight_dtype), cls.open(file)
        return io.NodeOutput(load_vlm(source, Config.read(source), dtype))
