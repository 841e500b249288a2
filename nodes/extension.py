"""The list of nodes that ComfyUI asks for."""

from comfy_api.latest import ComfyExtension, io

from .ask import InternVLUAsk
from .boxes import InternVLUBoxes
from .clip import InternVLUCLIPNode
from .comfy import folders, lora, metadata, sample_pictures
from .edit import InternVLUEdit, InternVLUEditRestore
from .encode import InternVLUEncode
from .latents import InternVLUEmptyLatent
from .loader import InternVLULoader, InternVLUModelLoader, InternVLUVLMLoader
from .reason import InternVLUReason
from .sampling import (
    InternVLUGuidance,
    InternVLUGuidanceRange,
    InternVLUGuider,
    InternVLUSampler,
    InternVLUSamplerSelect,
    InternVLUScheduler,
)


class InternVLUExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()
        lora.install()
        metadata.install()
        sample_pictures.install()
        return [
            InternVLULoader,
            InternVLUModelLoader,
            InternVLUVLMLoader,
            InternVLUEncode,
            InternVLUReason,
            InternVLUAsk,
            InternVLUBoxes,
            InternVLUSampler,
            InternVLUGuider,
            InternVLUGuidance,
            InternVLUGuidanceRange,
            InternVLUScheduler,
            InternVLUSamplerSelect,
            InternVLUEmptyLatent,
            InternVLUEdit,
            InternVLUEditRestore,
            InternVLUCLIPNode,
        ]
