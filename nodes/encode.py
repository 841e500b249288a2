"""InternVL-U Encode: a prompt, pictures and reasoning → the three conditionings."""

from comfy_api.latest import io

from ..internvlu_core import imaging
from ..internvlu_core.errors import InputError
from .comfy.clip import as_vlm
from .comfy.conditioning import conditioning
from .comfy.images import collect, from_pil
from .schema import CATEGORY, Reasoning, advanced, aliases, image_inputs, prompt_input, system_input, vlm_input


class InternVLUEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUEncode",
            display_name="InternVL-U Encode",
            **aliases("prompt", "text encode", "conditioning", "edit instruction", "image edit", "multimodal"),
            category=CATEGORY,
            description="Turns a prompt, with pictures to edit and reasoning if any, into the three conditionings "
            "that guide InternVL-U.",
            inputs=[
                vlm_input(),
                prompt_input(
                    "prompt",
                    "What to draw, or what to change. <image> marks where a picture belongs. Leave it empty to use the "
                    "prompt of the reasoning.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Needed with pictures: they are read as latents too."),
                *image_inputs("A picture to edit or to refer to. None connected: those of the reasoning."),
                Reasoning.Input("reasoning", optional=True, tooltip="From InternVL-U Reason."),
                io.String.Input(
                    "reasoning_text",
                    display_name="reasoning as text",
                    optional=True,
                    force_input=True,
                    tooltip="Reasoning as plain text, used whole; instead of the reasoning input.",
                ),
                advanced(
                    io.Boolean.Input(
                        "whole_reasoning",
                        display_name="whole reasoning",
                        default=False,
                        optional=True,
                        tooltip="Off: the reasoning's tokens are cut as the official pipeline cuts them. On: used "
                        "whole.",
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
                    tooltip="What the picture should not be. Empty: the blank prompt that the model was trained with.",
                ),
                advanced(
                    io.String.Input(
                        "partial_negative",
                        display_name="negative for images",
                        multiline=True,
                        dynamic_prompts=True,
                        default="",
                        optional=True,
                        tooltip="Experimental: the same for the branch that sees the pictures. Without pictures no "
                        "effect.",
                    )
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
        if reasoning is not None:
            prompt, pictures = reasoning.complete(prompt, pictures)
            reasoning = reasoning.result
        if pictures and vae is None:
            raise InputError("pictures are connected but no VAE; connect the loader's VAE")
        references = [from_pil(imaging.resize_reference(p, vlm.config.processor)) for p in pictures]
        latents = [vae.encode(reference) for reference in references]

        vlm.load(tokens=1024)
        features = vlm.conditioner.image_features(vlm.see(pictures), vlm.load_device, vlm.dtype)
        context = vlm.conditioner.context(
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
