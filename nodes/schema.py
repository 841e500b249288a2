"""What the schemas of several nodes share."""

from dataclasses import fields

from comfy_api.latest import io

from ..internvlu_core.decoding import MAX_SEED

__all__ = ["CATEGORY", "MAX_SEED", "aliases"]

CATEGORY = "InternVL-U"


def aliases(*names: str) -> dict:
    """Other words under which a node is found, as an argument of io.Schema, where this ComfyUI's has one."""
    known = "search_aliases" in {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(names)} if known else {}
