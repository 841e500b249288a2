"""What the schemas of several nodes share: types of sockets, inputs, and how the values of inputs are read."""

from dataclasses import fields

from comfy_api.latest import io
from PIL import Image

from ..internvlu_core.errors import MAX_SEED
from .comfy.images import SOCKETS, collect

CATEGORY = "InternVL-U"

Vlm = io.Custom("INTERNVLU_VLM")
History = io.Custom("INTERNVLU_HISTORY")
Reasoning = io.Custom("INTERNVLU_REASONING")
EditType = io.Custom("INTERNVLU_EDIT")


def advanced(socket: io.Input) -> io.Input:
    """The input, marked as advanced: newer frontends hide such inputs at first, others show them like the rest."""
    socket.extra_dict = {**socket.extra_dict, "advanced": True}  # older versions of ComfyUI have no argument for it
    return socket


def aliases(*names: str) -> dict:
    """Other words that find a node in the search, as an argument of io.Schema; {} where it has none."""
    known = "search_aliases" in {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(names)} if known else {}


def vlm_input() -> io.MultiType.Input:
    return io.MultiType.Input(
        "vlm", types=[Vlm, io.Clip], tooltip="From InternVL-U Load, or from InternVL-U CLIP with LoRAs."
    )


def image_inputs(tooltip: str) -> list[io.Image.Input]:
    """Optional sockets image1 … image8. Plain sockets, so that saved workflows mean the same in every ComfyUI."""
    return [
        io.Image.Input(f"image{i}", optional=True, tooltip=f"{tooltip} A batch counts as several pictures.")
        for i in range(1, SOCKETS + 1)
    ]


def prompt_input(name: str, tooltip: str, dynamic: bool = True) -> io.String.Input:
    """dynamic: let the page replace {a|b} by one of the two, and remove // and what follows it, as in stock nodes."""
    return io.String.Input(name, multiline=True, dynamic_prompts=dynamic, default="", tooltip=tooltip)


def system_input() -> io.String.Input:
    return advanced(
        io.String.Input(
            "system_prompt",
            display_name="system prompt",
            multiline=True,
            default="",
            optional=True,
            tooltip="Replaces the system prompt that the model was trained with. Leave it empty to keep that one.",
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
            tooltip="The text ends after this many tokens at the latest.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="The seed of random sampling. No effect at temperature 0.",
        ),
        io.Float.Input(
            "temperature",
            default=0.0,
            min=0.0,
            max=5.0,
            step=0.05,
            optional=True,
            tooltip="0 always takes the most likely token. Higher values give more varied text.",
        ),
        advanced(
            io.Float.Input(
                "top_p",
                default=1.0,
                min=0.01,
                max=1.0,
                step=0.01,
                optional=True,
                tooltip="Sample only from the most likely tokens whose probabilities add up to this. 1: from all.",
            )
        ),
        advanced(
            io.Int.Input(
                "top_k",
                default=0,
                min=0,
                max=1000,
                optional=True,
                tooltip="Sample only from this many of the most likely tokens. 0: from all.",
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
                tooltip="The number of beams of a beam search, which needs temperature 0. 1: no beam search.",
            )
        ),
    ]


class ListNode:
    """A node with two outputs that gets whole lists and works on their items together.

    It gives a list for each output, as if ComfyUI had run it for each item. The flags are those of ComfyUI's classes
    and not of the schema, because the page shows sockets of lists in another way, and nothing changes for the page.
    """

    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = [True, True]  # noqa: RUF012 - ComfyUI reads it


def items_of(inputs: dict[str, list]) -> list[dict]:
    """The inputs of each item, as ComfyUI pairs lists: the last item of a shorter list is repeated."""
    count = max(map(len, inputs.values()))
    return [{name: values[min(index, len(values) - 1)] for name, values in inputs.items()} for index in range(count)]


def split(inputs: dict) -> tuple[list[Image.Image], dict]:
    """The pictures of the image sockets, and the other inputs as settings. An empty system prompt becomes None."""
    settings = {name: value for name, value in inputs.items() if not name.startswith("image")}
    if "system_prompt" in settings:
        settings["system_prompt"] = settings["system_prompt"] or None
    return collect(inputs), settings
