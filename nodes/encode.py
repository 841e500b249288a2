"""InternVL-U Encode: a prompt, pictures and reasoning → the three conditionings."""

from comfy_api.latest import io

from ..internvlu_core.errors import InputError
from .comfy.clip import as_vlm
from .comfy.conditioning import conditionings
from .comfy.notice import notify
from .comfy.vae import encode_reference
from .schema import CATEGORY, Reasoning, advanced, aliases, image_inputs, prompt_input, split, system_input, vlm_input


class InternVLUEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUEncode",
            display_name="InternVL-U Encode",
            **aliases("prompt", "text encode", "conditioning", "edit instruction", "image edit", "multimodal"),
            category=CATEGORY,
            description="Encodes a prompt, pictures to edit and reasoning as the three conditionings of "
            "InternVL-U. Pictures and reasoning are optional.",
            inputs=[
                vlm_input(),
                prompt_input(
                    "prompt",
                    "What to draw, or what to change. <image> marks where a picture belongs. Leave it empty to use the "
                    "prompt of the reasoning.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Needed if pictures are connected: they are also encoded as latents."
                ),
                *image_inputs(
                    "A picture to edit or to refer to. If none is connected, those of the reasoning are used."
                ),
                Reasoning.Input("reasoning", optional=True, tooltip="From InternVL-U Reason."),
                io.String.Input(
                    "reasoning_text",
                    display_name="reasoning as text",
                    optional=True,
                    force_input=True,
                    tooltip="Reasoning as plain text, used whole. Connect this or the reasoning, not both.",
                ),
                advanced(
                    io.Boolean.Input(
                        "whole_reasoning",
                        display_name="whole reasoning",
                        default=False,
                        optional=True,
                        tooltip="Off: the last tokens of the reasoning are dropped, as in the official pipeline. "
                        "On: all of it is used.",
                    )
                ),
                system_input(),
                io.String.Input(
                    "negative",
                    display_name="negative prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="What the picture should not show. Empty: the blank prompt of the model's training.",
                ),
                advanced(
                    io.String.Input(
                        "partial_negative",
                        display_name="negative for images",
                        multiline=True,
                        dynamic_prompts=True,
                        default="",
                        optional=True,
                        tooltip="Experimental: a negative prompt for the branch that sees the pictures. It has no "
                        "effect without pictures.",
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="full", tooltip="The prompt and the pictures: the positive conditioning."
                ),
                io.Conditioning.Output(display_name="partial", tooltip="The pictures without the prompt."),
                io.Conditioning.Output(
                    display_name="unconditional", tooltip="Neither of them: the negative conditioning of a KSampler."
                ),
            ],
        )

    @classmethod
    def execute(cls, vlm, prompt, vae=None, reasoning=None, reasoning_text=None, **inputs) -> io.NodeOutput:
        vlm = as_vlm(vlm)
        pictures, settings = split(inputs)
        if reasoning is not None and reasoning_text is not None:
            raise InputError("reasoning and reasoning_text are both connected; use one of them")
        if reasoning is not None:
            prompt, pictures = reasoning.complete(prompt, pictures)
            settings["reasoning"] = reasoning.result
        elif reasoning_text:  # an empty one is none, so that the scales are not those for reasoning
            settings["reasoning"] = reasoning_text
        if not prompt.strip() and "reasoning" not in settings:
            notify("the prompt is empty, and there is no reasoning that has one (is Reason bypassed?)", "no_prompt")
        if pictures and vae is None:
            raise InputError(
                "there are pictures, connected or from the reasoning, but no VAE; connect the VAE of InternVL-U Load"
            )
        references = [encode_reference(vae, picture, vlm.config.processor) for picture in pictures]
        return io.NodeOutput(*conditionings(vlm.context(prompt, pictures, references, **settings)))
