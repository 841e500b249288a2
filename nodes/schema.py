"""What the schemas of several nodes share."""

from ..internvlu_core.decoding import MAX_SEED

__all__ = ["CATEGORY", "MAX_SEED"]

CATEGORY = "InternVL-U"
