"""InternVL-U CLIP: the VLM as a CLIP, for stock text nodes and LoRA loaders."""

from comfy_api.latest import io

from .comfy.clip import InternVLUCLIP
from .schema import CATEGORY, Vlm, aliases


class InternVLUCLIPNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUCLIP",
            display_name="InternVL-U CLIP",
            **aliases("text encoder", "lora", "clip"),
            category=CATEGORY,
            description="The VLM as a CLIP, for stock text nodes (CLIP Text Encode, TextEncodeQwenImageEdit) and LoRA "
            "loaders. It shares the VLM's memory.",
            inputs=[Vlm.Input("vlm", tooltip="From InternVL-U Load.")],
            outputs=[io.Clip.Output(tooltip="For stock text nodes, LoRA loaders, and every vlm input.")],
        )

    @classmethod
    def execute(cls, vlm) -> io.NodeOutput:
        return io.NodeOutput(InternVLUCLIP(vlm))
