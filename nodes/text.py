"""Nodes around the vision-language model: encode, reason, ask."""

from comfy_api.latest import io

from ..internvlu_core import imaging
from ..internvlu_core.decoding import TextSettings
from ..internvlu_core.errors import InputError
from .clip import as_vlm, vlm_input
from .conditioning import conditioning
from .images import collect, from_pil, image_inputs
from .schema import CATEGORY, MAX_SEED, aliases
from .vlm import Reasoning, TextStream

EMPTY_PIN = "the reasoning is pinned, but its text is empty; write one, or unpin it"


def prompt_input(name: str, tooltip: str) -> io.String.Input:
    return io.String.Input(name, multiline=True, dynamic_prompts=True, default="", tooltip=tooltip)


def system_input() -> io.String.Input:
    return io.String.Input(
        "system_prompt",
        multiline=True,
        default="",
        optional=True,
        tooltip="Replaces the system text that the model was trained with. Leave empty to keep that.",
    )


def decoding_inputs(max_new_tokens: int) -> list:
    return [
        io.Int.Input(
            "max_new_tokens", default=max_new_tokens, min=1, max=8192, tooltip="The text is cut after so many tokens."
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
        io.Float.Input(
            "top_p",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Sample among the likeliest tokens that make up this share. 1: all.",
        ),
        io.Int.Input(
            "top_k", default=0, min=0, max=1000, optional=True, tooltip="Sample among so many likeliest tokens. 0: all."
        ),
        io.Int.Input(
            "num_beams",
            default=1,
            min=1,
            max=16,
            optional=True,
            tooltip="Beam search over so many candidates; needs temperature 0.",
        ),
    ]


def settings(max_new_tokens, seed, temperature=0.0, top_p=1.0, top_k=0, num_beams=1) -> TextSettings:
    return TextSettings(max_new_tokens, num_beams, temperature, top_p, top_k, seed)


class InternVLUEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUEncode",
            display_name="InternVL-U Encode",
            **aliases("prompt", "text encode", "conditioning", "edit instruction"),
            category=CATEGORY,
            description="Turns a prompt, with pictures to edit and reasoning if any, into the three conditionings "
            "that guide InternVL-U.",
            inputs=[
                vlm_input(),
                prompt_input("prompt", "What to draw, or what to change. <image> marks where a picture belongs."),
                io.Vae.Input("vae", optional=True, tooltip="Needed with pictures: they are read as latents too."),
                *image_inputs("A picture to edit or to refer to."),
                Reasoning.Input("reasoning", optional=True, tooltip="From InternVL-U Reason."),
                io.String.Input(
                    "reasoning_text",
                    optional=True,
                    force_input=True,
                    tooltip="Reasoning as plain text, used whole; instead of the reasoning input.",
                ),
                io.Boolean.Input(
                    "whole_reasoning",
                    default=False,
                    optional=True,
                    tooltip="Off: the reasoning's tokens are cut as the official pipeline cuts them. On: used whole.",
                ),
                system_input(),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="What the picture should not be. Empty: the blank prompt that the model was trained with.",
                ),
                io.String.Input(
                    "partial_negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="Experimental: the same for the branch that sees the pictures. Without pictures no effect.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="full", tooltip="Prompt and pictures: the positive conditioning."),
                io.Conditioning.Output(display_name="partial", tooltip="The pictures without the prompt."),
                io.Conditioning.Output(
                    display_name="unconditional", tooltip="Neither: the negative conditioning of a KSampler."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        vlm,
        prompt,
        vae=None,
        reasoning=None,
        reasoning_text=None,
        whole_reasoning=False,
        system_prompt="",
        negative="",
        partial_negative="",
        **images,
    ) -> io.NodeOutput:
        vlm = as_vlm(vlm)
        if reasoning is not None and reasoning_text is not None:
            raise InputError("reasoning and reasoning_text are both connected; use one of them")
        pictures = collect(images)
        if pictures and vae is None:
            raise InputError("pictures are connected but no VAE; connect the loader's VAE")
        references = [from_pil(imaging.resize_reference(p, vlm.config.processor)) for p in pictures]
        latents = [vae.encode(reference) for reference in references]

        vlm.load(tokens=1024)
        features = vlm.reader.see(vlm.see(pictures), vlm.load_device, vlm.dtype)
        context = vlm.reader.context(
            prompt,
            features,
            latents,
            device=vlm.load_device,
            system_prompt=system_prompt or None,
            reasoning=reasoning if reasoning_text is None else reasoning_text,
            whole_reasoning=whole_reasoning,
            negative=negative,
            partial_negative=partial_negative,
        )
        full, unconditional = conditioning(context.full), conditioning(context.unconditional)
        # The very same object where there is nothing to tell them apart, so that samplers can evaluate it once.
        partial = unconditional if context.partial is context.unconditional else conditioning(context.partial)
        return io.NodeOutput(full, partial, unconditional)


class InternVLUReason(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUReason",
            display_name="InternVL-U Reason",
            **aliases("think", "thinking", "chain of thought", "cot", "reasoning"),
            category=CATEGORY,
            description="Lets the model think in words about the picture to draw. Connect the result to Encode.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                vlm_input(),
                prompt_input("prompt", "What to draw, or what to change: the same text as in Encode."),
                *decoding_inputs(max_new_tokens=200),
                *image_inputs("The picture to edit: the same as in Encode."),
                system_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The reasoning. Edit it and pin it to draw from your own words.",
                ),
                io.Boolean.Input(
                    "pinned",
                    default=False,
                    optional=True,
                    tooltip="On: the text above is the reasoning, and nothing is generated.",
                ),
            ],
            outputs=[
                Reasoning.Output(display_name="reasoning", tooltip="Text and tokens, for Encode."),
                io.String.Output(display_name="text", tooltip="The text alone."),
            ],
        )

    @classmethod
    def validate_inputs(cls, text=None, pinned=False):
        # A text that comes over a link is not there yet.
        return EMPTY_PIN if pinned is True and text is not None and not text.strip() else True

    @classmethod
    def execute(cls, vlm, prompt, system_prompt="", text="", pinned=False, **inputs) -> io.NodeOutput:
        vlm = as_vlm(vlm)
        if pinned:
            if not text.strip():
                raise InputError(EMPTY_PIN)
            result = vlm.as_generated(text)
            return io.NodeOutput(result, text, ui={"text": [text], "tokens": [len(result.token_ids) - 1]})
        pictures, options = split(inputs)
        full = vlm.reader.prompts.full(prompt, len(pictures), system_prompt or None)
        stream = TextStream(cls.hidden.unique_id)
        result = vlm.generate(full, vlm.see(pictures), settings(**options), stream, keep=True)
        return io.NodeOutput(result, result.text, ui=stream.ui(result.text))


class InternVLUAsk(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUAsk",
            display_name="InternVL-U Ask",
            **aliases("caption", "describe", "question", "vqa", "ocr", "chat", "vision"),
            category=CATEGORY,
            description="Answers a question, about pictures if any are connected.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                vlm_input(),
                prompt_input("question", "A question or an order. <image> marks where a picture belongs."),
                *decoding_inputs(max_new_tokens=1024),
                io.Int.Input(
                    "max_tiles",
                    default=1,
                    min=1,
                    max=12,
                    optional=True,
                    tooltip="Into how many tiles a picture may be cut, so that small print can be read.",
                ),
                *image_inputs("A picture to ask about."),
                system_input(),
            ],
            outputs=[io.String.Output(display_name="answer", tooltip="The answer.")],
        )

    @classmethod
    def execute(cls, vlm, question, max_tiles=1, system_prompt="", **inputs) -> io.NodeOutput:
        vlm = as_vlm(vlm)
        pictures, options = split(inputs)
        tiles = vlm.see(pictures, min(max_tiles, vlm.config.processor.max_tiles))
        chat = vlm.reader.prompts.chat(question, [len(t) for t in tiles], system_prompt or None)
        stream = TextStream(cls.hidden.unique_id)
        answer = vlm.decode(vlm.generate(chat, tiles, settings(**options), stream).token_ids)
        return io.NodeOutput(answer, ui=stream.ui(answer))


def split(inputs: dict) -> tuple[list, dict]:
    """Connected pictures, and the decoding settings."""
    return collect(inputs), {name: value for name, value in inputs.items() if not name.startswith("image")}
