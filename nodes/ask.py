"""InternVL-U Ask: answers questions, about pictures if any are connected."""

from dataclasses import dataclass

from comfy_api.latest import io

from ..internvlu_core.conditioning import ToWrite
from ..internvlu_core.conversation import Turn, as_history, pictures_of, read_turns, write_turns
from ..internvlu_core.errors import InputError
from ..internvlu_core.requests import ANSWER_TOKENS, TextRequest
from .comfy.clip import as_vlm
from .comfy.stream import TextStream, TextStreams, ui_of
from .comfy.vlm import ComfyVLM, write_each
from .schema import (
    CATEGORY,
    History,
    ListNode,
    aliases,
    decoding_inputs,
    image_inputs,
    items_of,
    prompt_input,
    split,
    system_input,
    vlm_input,
)


class InternVLUAsk(ListNode, io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLUAsk",
            display_name="InternVL-U Ask",
            **aliases("caption", "describe", "question", "vqa", "ocr", "chat", "vision"),
            category=CATEGORY,
            description="Answers a question, about pictures if any are connected.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                vlm_input(),
                # As it is typed: a question may hold JSON or an address.
                prompt_input(
                    "question", "A question or an order. <image> marks where a picture belongs.", dynamic=False
                ),
                *decoding_inputs(max_new_tokens=ANSWER_TOKENS),
                io.Int.Input(
                    "max_tiles",
                    default=1,
                    min=1,
                    max=12,
                    optional=True,
                    tooltip="The most tiles that a picture is cut into. More make small print readable.",
                ),
                *image_inputs("A picture to ask about."),
                system_input(),
                History.Input(
                    "history",
                    optional=True,
                    tooltip="The conversation before this question, with its pictures, from another Ask.",
                ),
                io.Boolean.Input(
                    "go_on",
                    display_name="continue the conversation",
                    default=False,
                    optional=True,
                    tooltip="On: a new question continues the conversation in this node. The pictures belong to "
                    "its first question.",
                ),
                io.String.Input(
                    "conversation",
                    default="",
                    optional=True,
                    socketless=True,
                    tooltip="What was said in this node so far, as JSON. The node's panel fills it in and shows it.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="answer", tooltip="The answer."),
                History.Output(
                    display_name="history", tooltip="The conversation up to this answer, for another Ask to continue."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, go_on=(False,), conversation=("",)):
        # What comes over a link is not there yet.
        try:
            for item in items_of({"go_on": go_on, "conversation": conversation}):
                read_turns((item["conversation"] or "") if item["go_on"] is True else "")
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        questions = [_read(**item) for item in items_of(lists)]
        streams = [TextStream(cls.hidden.unique_id, question=q.request.prompt) for q in questions]
        jobs = [(q.vlm, q.to_write, q.request.max_new_tokens) for q in questions]
        results = write_each(jobs, TextStreams(streams))
        answers = [q.vlm.decode(result.token_ids) for q, result in zip(questions, results, strict=True)]
        turns = [q.turn(answer) for q, answer in zip(questions, answers, strict=True)]
        said = [write_turns((*q.here, turn)) for q, turn in zip(questions, turns, strict=True)]
        histories = [(*q.request.history, turn) for q, turn in zip(questions, turns, strict=True)]
        ui = ui_of(answers, [stream.counted for stream in streams])
        return io.NodeOutput(answers, histories, ui=ui | {"conversation": said})


@dataclass(frozen=True)
class _Question:
    """here: what was said in this node before."""

    vlm: ComfyVLM
    request: TextRequest
    here: tuple[Turn, ...]

    def to_write(self) -> ToWrite:
        request = self.request
        tiles = self.vlm.see([*pictures_of(request.history), *request.images], request.max_tiles)
        chat = self.vlm.conditioner.prompts.chat(
            request.prompt, [len(t) for t in tiles], request.system_prompt, request.history
        )
        return chat, tiles, request.settings

    def turn(self, answer: str) -> Turn:
        return Turn(self.request.prompt, answer, self.request.images)


def _read(vlm, question, max_tiles=1, history=None, go_on=False, conversation="", **inputs) -> _Question:
    pictures, settings = split(inputs)
    here = read_turns(conversation, pictures) if go_on else ()
    request = TextRequest(
        question, [] if here else pictures, max_tiles=max_tiles, history=as_history(history) + here, **settings
    )
    return _Question(as_vlm(vlm), request, here)
