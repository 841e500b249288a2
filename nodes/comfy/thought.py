"""What InternVL-U Reason gives to InternVL-U Encode: the reasoning, and the prompt and pictures that it is about."""

from dataclasses import dataclass

from PIL import Image

from ...internvlu_core.conditioning import TextResult
from .notice import notify


@dataclass(frozen=True)
class Thought:
    """The value of a REASONING socket."""

    result: TextResult
    prompt: str
    images: tuple[Image.Image, ...]

    def complete(self, prompt: str, images: list[Image.Image]) -> tuple[str, list[Image.Image]]:
        """The prompt and the pictures to encode: those given, or else these. Notifies the user if they differ."""
        if prompt.strip() and prompt.strip() != self.prompt.strip():
            notify(
                f"the reasoning was made for another prompt, {self.prompt!r}; leave Encode's empty to use that one",
                "other_prompt",
                prompt=self.prompt,
            )
        if images and images != list(self.images):
            notify(
                f"the reasoning was made for other pictures, {len(self.images)} of them; connect none to use those",
                "other_pictures",
                count=len(self.images),
            )
        return prompt if prompt.strip() else self.prompt, images or list(self.images)
