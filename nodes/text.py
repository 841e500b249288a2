"""What the nodes around the vision-language model share: inputs for prompts, for decoding, and their settings."""

from comfy_api.latest import io

from ..internvlu_core.decoding import TextSettings
from .images import collect
from .schema import MAX_SEED, advanced


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
