"""The list of nodes that ComfyUI asks for."""

from comfy_api.latest import ComfyExtension, io

from . import folders
from .latents import InternVLUEmptyLatent
from .loader import InternVLULoader
from .sampling import InternVLUSampler
from .text import InternVLUAsk, InternVLUEncode, InternVLUReason


class InternVLUExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()
        return [
            InternVLULoader,
            InternVLUEncode,
            InternVLUReason,
            InternVLUAsk,
            InternVLUSampler,
            InternVLUEmptyLatent,
        ]
