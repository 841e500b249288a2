"""InternVL-U Reason: the model reasons in words about the picture to draw."""

from comfy_api.latest import io

from ..internvlu_core.errors import InputError
from ..internvlu_core.requests import TextRequest
from .comfy import metadata
from .comfy.clip import as_vlm
from .comfy.stream import TextStream
from .comfy.thought import Thought
from .schema import (
    CATEGORY,
    Reasoning,
    aliases,
    decoding_inputs,
    image_inputs,
    prompt_input,
    split,
    system_input,
    vlm_input,
)

EMPTY_PIN = '"my own words" is on, but the text is empty; write one, or switch it off'


class InternVLUReason(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUReason",
            display_name="InternVL-U Reason",
            **aliases("think", "thinking", "chain of thought", "cot", "reasoning", "multimodal"),
            category=CATEGORY,
            description="The model reasons in words about the picture to draw. Connect the result to Encode.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                vlm_input(),
                prompt_input("prompt", "What to draw, or to change. Encode uses it too if its own prompt is empty."),
                *decoding_inputs(max_new_tokens=200),
                *image_inputs("A picture to edit. Encode uses it too if none is connected there."),
                system_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The reasoning. If you edit it, the picture is drawn from your own words.",
                ),
                io.Boolean.Input(
                    "pinned",
                    display_name="my own words",
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
    def execute(cls, vlm, prompt, text="", pinned=False, **inputs) -> io.NodeOutput:
        vlm = as_vlm(vlm)
        if pinned and not text.strip():
            raise InputError(EMPTY_PIN)
        pictures, settings = split(inputs)
        if pinned:
            result = vlm.as_generated(text)
            ui = {"text": [text], "tokens": [len(result.token_ids) - 1]}
        else:
            request = TextRequest(prompt, pictures, **settings)
            full = vlm.conditioner.prompts.full(prompt, len(pictures), request.system_prompt)
            stream = TextStream(cls.hidden.unique_id)
            result = vlm.write(full, vlm.see(pictures), request.settings, stream, keep=True)
            ui = stream.ui(result.text)
        metadata.add(cls.hidden.prompt, cls.hidden.extra_pnginfo, cls.hidden.unique_id, result.text)
        return io.NodeOutput(Thought(result, prompt, tuple(pictures)), result.text, ui=ui)
