"""InternVL-U in plain PyTorch: understand, reason, draw, edit. Knows nothing of ComfyUI."""

from .conditioning import Branch, Context, TextResult
from .conversation import Turn
from .errors import CheckpointError, InputError
from .pipeline import GenerateResult, InternVLU

__all__ = ["Branch", "CheckpointError", "Context", "GenerateResult", "InputError", "InternVLU", "TextResult", "Turn"]
