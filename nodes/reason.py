"""InternVL-U Reason: the model reasons in words about the picture to draw."""

from dataclasses import dataclass

from comfy_api.latest import io

from ..internvlu_core.conditioning import TextResult, ToWrite
from ..internvlu_core.errors import InputError
from ..internvlu_core.requests import REASON_TOKENS, TextRequest
from .comfy import metadata
from .comfy.clip import as_vlm
from .comfy.stream import TextStream, TextStreams, ui_of
from .comfy.thought import Thought
from .comfy.vlm import ComfyVLM, write_each
from .schema import (
    CATEGORY,
    ListNode,
    Reasoning,
    aliases,
    decoding_inputs,
    image_inputs,
    items_of,
    prompt_input,
    split,
    system_input,
    vlm_input,
)

EMPTY_PIN = '"my own words" is on, but the text is empty; write one, or switch it off'


class InternVLUReason(ListNode, io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUReason",
            display_name="InternVL-U Reason",
            **aliases("think", "thinking", "chain of thought", "cot", "reasoning", "multimodal"),
            category=CATEGORY,
            description="The model reasons in words about the picture to draw. Connect the result to Encode.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                vlm_input(),
                prompt_input("prompt", "What to draw, or to change. Encode uses it too if its own prompt is empty."),
                *decoding_inputs(max_new_tokens=REASON_TOKENS),
                *image_inputs("A picture to edit. Encode uses it too if none is connected there."),
                system_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The reasoning. If you edit it, the picture is drawn from your own words.",
                ),
                io.Boolean.Input(
                    "pinned",
                    display_name="my own words",
                    default=False,
                    optional=True,
                    tooltip="On: the text above is the reasoning, and nothing is generated.",
                ),
            ],
            outputs=[
                Reasoning.Output(display_name="reasoning", tooltip="Text and tokens, for Encode."),
                io.String.Output(display_name="text", tooltip="The text alone."),
            ],
        )

    @classmethod
    def validate_inputs(cls, text=(None,), pinned=(False,)):
        # A text that comes over a link is not there yet.
        items = items_of({"text": text, "pinned": pinned})
        return EMPTY_PIN if any(_is_empty(**item) for item in items) else True

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        items = [_read(**item) for item in items_of(lists)]
        written = [item for item in items if item.pinned is None]
        streams = [TextStream(cls.hidden.unique_id) for _ in written]
        jobs = [(item.vlm, item.to_write, item.request.max_new_tokens) for item in written]
        found = iter(write_each(jobs, TextStreams(streams), keep=len(items) == 1) if written else [])
        results = [next(found) if item.pinned is None else item.own() for item in items]
        texts = [result.text for result in results]
        for text in texts:
            metadata.add(cls.hidden.prompt, cls.hidden.extra_pnginfo, cls.hidden.unique_id, text)
        thoughts = [Thought(r, i.request.prompt, i.request.images) for r, i in zip(results, items, strict=True)]
        counted = iter(streams)
        counts = [
            next(counted).counted if item.pinned is None else item.counted(result)
            for item, result in zip(items, results, strict=True)
        ]
        return io.NodeOutput(thoughts, texts, ui=ui_of(texts, counts))


@dataclass(frozen=True)
class _Item:
    """pinned: the user's own words in place of generated ones, or None."""

    vlm: ComfyVLM
    request: TextRequest
    pinned: str | None

    def own(self) -> TextResult:
        return self.vlm.as_generated(self.pinned, self.request.max_new_tokens)

    def counted(self, own: TextResult) -> tuple[int, float]:
        """As TextStream.counted: the tokens, without the one that ends them, and no rate."""
        return sum(token not in self.vlm.tokenizer.stop_ids for token in own.token_ids), 0.0

    def to_write(self) -> ToWrite:
        request = self.request
        full = self.vlm.conditioner.prompts.full(request.prompt, len(request.images), request.system_prompt)
        return full, self.vlm.see(request.images), request.settings


def _is_empty(text, pinned) -> bool:
    return pinned is True and text is not None and not text.strip()


def _read(vlm, prompt, text="", pinned=False, **inputs) -> _Item:
    if pinned and not text.strip():
        raise InputError(EMPTY_PIN)
    pictures, settings = split(inputs)
    return _Item(as_vlm(vlm), TextRequest(prompt, pictures, **settings), text if pinned else None)
