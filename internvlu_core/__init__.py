"""InternVL-U in plain PyTorch: answer questions, reason, draw and edit pictures. It never imports ComfyUI."""

from .conditioning import Branch, Context
from .conversation import Turn
from .decoding import TextResult
from .errors import CheckpointError, InputError
from .many import Outcome
from .pipeline import GenerateResult, InternVLU
from .requests import DrawRequest, TextRequest

__all__ = [
    "Branch",
    "CheckpointError",
    "Context",
    "DrawRequest",
    "GenerateResult",
    "InputError",
    "InternVLU",
    "Outcome",
    "TextRequest",
    "TextResult",
    "Turn",
]
