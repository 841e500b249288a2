"""What InternVL-U Reason gives to InternVL-U Encode: the reasoning, and the prompt and pictures that it is about."""

from dataclasses import dataclass

from comfy_api.latest import io
from PIL import Image

from ..internvlu_core.context import TextResult

Reasoning = io.Custom("INTERNVLU_REASONING")


@dataclass(frozen=True)
class Thought:
    """The value of a REASONING socket."""

    result: TextResult
    prompt: str
    images: tuple[Image.Image, ...]

    def complete(self, prompt: str, images: list[Image.Image]) -> tuple[str, list[Image.Image], list[str]]:
        """A prompt and pictures, each taken from here if it is empty; and what differs from here, as sentences."""
        differences = []
        made_for = "the reasoning was made for"
        if prompt.strip() and prompt.strip() != self.prompt.strip():
            differences.append(f"{made_for} another prompt, {self.prompt!r}; leave the prompt empty to use that one")
        if images and images != list(self.images):
            differences.append(f"{made_for} other pictures, {len(self.images)} of them; connect none to use those")
        return prompt if prompt.strip() else self.prompt, images or list(self.images), differences
