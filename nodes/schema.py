"""What the schemas of several nodes share: types of sockets, inputs, and how the values of inputs are read."""

from dataclasses import fields

from comfy_api.latest import io

from ..internvlu_core.decoding import MAX_SEED, TextSettings
from .comfy.images import MAX_IMAGES, collect

CATEGORY = "InternVL-U"

Vlm = io.Custom("INTERNVLU_VLM")
History = io.Custom("INTERNVLU_HISTORY")
Reasoning = io.Custom("INTERNVLU_REASONING")
EditType = io.Custom("INTERNVLU_EDIT")


def advanced(socket: io.Input) -> io.Input:
    """The input, marked as one that few people need: newer frontends fold these away, others show them as ever."""
    socket.extra_dict = {**socket.extra_dict, "advanced": True}  # not every ComfyUI's inputs have an argument for it
    return socket


def aliases(*names: str) -> dict:
    """Other words under which a node is found, as an argument of io.Schema, where this ComfyUI's has one."""
    known = "search_aliases" in {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(names)} if known else {}


def vlm_input() -> io.MultiType.Input:
    return io.MultiType.Input(
        "vlm", types=[Vlm, io.Clip], tooltip="From InternVL-U Load; or its CLIP, with LoRAs applied."
    )


def image_inputs(tooltip: str) -> list[io.Image.Input]:
    """Optional sockets image1 … image8. Plain sockets, so that saved workflows mean the same in every ComfyUI."""
    return [
        io.Image.Input(f"image{i}", optional=True, tooltip=f"{tooltip} A batch counts as several pictures.")
        for i in range(1, MAX_IMAGES + 1)
    ]


def prompt_input(name: str, tooltip: str) -> io.String.Input:
    return io.String.Input(name, multiline=True, dynamic_prompts=True, default="", tooltip=tooltip)


def system_input() -> io.String.Input:
    return advanced(
        io.String.Input(
            "system_prompt",
            display_name="system prompt",
            multiline=True,
            default="",
            optional=True,
            tooltip="Replaces the system text that the model was trained with. Leave empty to keep that.",
        )
    )


def decoding_inputs(max_new_tokens: int) -> list:
    return [
        io.Int.Input(
            "max_new_tokens",
            display_name="max tokens",
            default=max_new_tokens,
            min=1,
            max=8192,
            tooltip="The text is cut after so many tokens.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="Of the sampling; without effect at temperature 0.",
        ),
        io.Float.Input(
            "temperature",
            default=0.0,
            min=0.0,
            max=5.0,
            step=0.05,
            optional=True,
            tooltip="0 always takes the likeliest token; higher is more varied.",
        ),
        advanced(
            io.Float.Input(
                "top_p",
                default=1.0,
                min=0.01,
                max=1.0,
                step=0.01,
                optional=True,
                tooltip="Sample among the likeliest tokens that make up this share. 1: all.",
            )
        ),
        advanced(
            io.Int.Input(
                "top_k",
                default=0,
                min=0,
                max=1000,
                optional=True,
                tooltip="Sample among so many likeliest tokens. 0: all.",
            )
        ),
        advanced(
            io.Int.Input(
                "num_beams",
                display_name="beams",
                default=1,
                min=1,
                max=16,
                optional=True,
                tooltip="Beam search over so many candidates; needs temperature 0.",
            )
        ),
    ]


def settings(max_new_tokens, seed, temperature=0.0, top_p=1.0, top_k=0, num_beams=1) -> TextSettings:
    return TextSettings(max_new_tokens, num_beams, temperature, top_p, top_k, seed)


def split(inputs: dict) -> tuple[list, dict]:
    """Connected pictures, and the decoding settings."""
    return collect(inputs), {name: value for name, value in inputs.items() if not name.startswith("image")}
