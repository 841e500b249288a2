"""InternVL-U Empty Latent."""

from comfy_api.latest import io

from ..internvlu_core.pipeline import MAX_SIDE
from ..internvlu_core.requests import MAX_IMAGES
from .comfy.latents import GRID, check_side, empty_latent
from .schema import CATEGORY, aliases


class InternVLUEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUEmptyLatent",
            display_name="InternVL-U Empty Latent",
            **aliases("size", "aspect ratio", "resolution", "latent image"),
            category=CATEGORY,
            description="An empty latent for a new picture.",
            inputs=[
                io.Int.Input("width", default=1024, min=GRID, max=MAX_SIDE, step=GRID, tooltip="In pixels."),
                io.Int.Input("height", default=1024, min=GRID, max=MAX_SIDE, step=GRID, tooltip="In pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=MAX_IMAGES, tooltip="The number of pictures."),
            ],
            outputs=[io.Latent.Output(tooltip="For InternVL-U Sample or a stock sampler.")],
        )

    @classmethod
    def execute(cls, width, height, batch_size) -> io.NodeOutput:
        check_side("width", width)
        check_side("height", height)
        return io.NodeOutput(empty_latent(width, height, batch_size))
