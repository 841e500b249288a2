"""The boxes of an answer as data, as a mask and on the picture."""

import torch
from comfy_api.latest import io

from ..internvlu_core.errors import InputError
from ..internvlu_core.grounding import parse_boxes
from .comfy.images import from_pil, to_pil
from .plot import draw_boxes
from .schema import CATEGORY, aliases


class InternVLUBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUBoxes",
            display_name="InternVL-U Boxes",
            **aliases(
                "grounding", "detect", "bounding box", "bbox", "object detection", "segmentation", "locate", "mask"
            ),
            category=CATEGORY,
            description="Reads the boxes in an answer: as numbers, as a mask, and drawn on the picture.",
            inputs=[
                io.String.Input(
                    "answer",
                    multiline=True,
                    default="",
                    tooltip="From InternVL-U Ask. If it has no boxes, the mask is empty and the node says so.",
                ),
                io.Image.Input("image", tooltip="The picture that was asked about."),
            ],
            outputs=[
                io.BBOX.Output(
                    display_name="boxes", tooltip="A list of [x, y, width, height] in pixels, in the answer's order."
                ),
                io.Mask.Output(display_name="mask", tooltip="White inside the boxes."),
                io.Image.Output(display_name="image", tooltip="The picture with boxes and labels drawn on it."),
            ],
        )

    @classmethod
    def execute(cls, answer, image) -> io.NodeOutput:
        if len(image) != 1:
            raise InputError(f"{len(image)} pictures are connected to InternVL-U Boxes; it reads one at a time")
        height, width = image.shape[1:3]
        boxes = parse_boxes(answer)
        corners = [box.pixels(width, height) for box in boxes]
        mask = torch.zeros(1, height, width)
        for left, top, right, bottom in corners:
            mask[:, top:bottom, left:right] = 1
        sizes = [[left, top, right - left, bottom - top] for left, top, right, bottom in corners]
        picture = from_pil(draw_boxes(to_pil(image[0]), boxes))
        return io.NodeOutput(sizes, mask, picture, ui={"boxes": [len(boxes)]})
