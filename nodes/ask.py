"""InternVL-U Ask: answers questions, about pictures if any are connected."""

from comfy_api.latest import io

from .clip import as_vlm, vlm_input
from .images import image_inputs
from .schema import CATEGORY, aliases
from .text import decoding_inputs, prompt_input, settings, split, system_input
from .vlm import TextStream


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
