"""What the schemas of several nodes share."""

from dataclasses import fields

from comfy_api.latest import io

from ..internvlu_core.decoding import MAX_SEED

__all__ = ["CATEGORY", "MAX_SEED", "advanced", "aliases"]

CATEGORY = "InternVL-U"


def advanced(socket: io.Input) -> io.Input:
    """The input, marked as one that few people need: newer frontends fold these away, others show them as ever."""
    socket.extra_dict = {**socket.extra_dict, "advanced": True}  # not every ComfyUI's inputs have an argument for it
    return socket


def aliases(*names: str) -> dict:
    """Other words under which a node is found, as an argument of io.Schema, where this ComfyUI's has one."""
    known = "search_aliases" in {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(names)} if known else {}
