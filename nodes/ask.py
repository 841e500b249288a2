"""InternVL-U Ask: answers questions, about pictures if any are connected."""

from comfy_api.latest import io

from ..internvlu_core.conversation import Turn, as_history, pictures_of, read_turns, write_turns
from ..internvlu_core.errors import InputError
from ..internvlu_core.requests import TextRequest
from .comfy.clip import as_vlm
from .comfy.stream import TextStream
from .schema import (
    CATEGORY,
    History,
    aliases,
    decoding_inputs,
    image_inputs,
    prompt_input,
    split,
    system_input,
    vlm_input,
)


class InternVLUAsk(io.ComfyNode):
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
                prompt_input("question", "A question or an order. <image> marks where a picture belongs."),
                *decoding_inputs(max_new_tokens=1024),
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
    def validate_inputs(cls, go_on=False, conversation=""):
        # What comes over a link is not there yet.
        try:
            read_turns(conversation if go_on is True else "")
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, vlm, question, max_tiles=1, history=None, go_on=False, conversation="", **inputs) -> io.NodeOutput:
        vlm = as_vlm(vlm)
        pictures, settings = split(inputs)
        here = read_turns(conversation, pictures) if go_on else ()
        pictures = [] if here else pictures
        history = as_history(history) + here
        request = TextRequest(question, pictures, max_tiles=max_tiles, history=history, **settings)
        tiles = vlm.see([*pictures_of(request.history), *request.images], request.max_tiles)
        chat = vlm.conditioner.prompts.chat(question, [len(t) for t in tiles], request.system_prompt, history)
        stream = TextStream(cls.hidden.unique_id, question=question)
        answer = vlm.decode(vlm.write(chat, tiles, request.settings, stream).token_ids)
        turn = Turn(question, answer, pictures)
        conversation = write_turns((*here, turn))
        return io.NodeOutput(answer, (*history, turn), ui=stream.ui(answer) | {"conversation": [conversation]})
