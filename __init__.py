"""ComfyUI loads this file; importing it does nothing else."""

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    from .nodes.extension import InternVLUExtension

    return InternVLUExtension()
