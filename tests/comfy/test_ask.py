"""Conversations through the queue, equal to the core's; and seeds that change nothing."""

import json

import pytest

from internvlu_core import Turn
from internvlu_core.conversation import write_turns
from support.comfy_server import ComfyError
from support.workflows import workflow

SHORT = 6  # tokens of an answer


def ask(**inputs) -> dict:
    """One question about the photo, as node 8."""
    return workflow("ask", max_new_tokens=SHORT, **inputs)


def chain(*questions: str, second_picture: str | None = None) -> dict:
    """Ask → Ask → …: nodes 8, 9, …; the first with the photo."""
    prompt = ask(question=questions[0])
    for number, question in enumerate(questions[1:], 9):
        inputs = dict(prompt["8"]["inputs"], question=question, history=[str(number - 1), 1])
        del inputs["image1"]
        prompt[str(number)] = {"class_type": "InternVLUAsk", "inputs": inputs}
    if second_picture:
        prompt["20"] = {"class_type": "LoadImage", "inputs": {"image": second_picture}}
        prompt["9"]["inputs"]["image1"] = ["20", 0]
    return prompt


def said(model, *questions: str, pictures) -> tuple[Turn, ...]:
    """The same conversation by the core. pictures: of each question."""
    history = ()
    for question, images in zip(questions, pictures, strict=True):
        answer = model.answer(question, images, max_new_tokens=SHORT, history=history)
        history += (Turn(question, answer.text, images),)
    return history


def test_asks_in_a_row_equal_the_core(server, model, photo, tall):
    questions = "What is this?", "And this?", "Which is taller?"
    result = server.run(chain(*questions, second_picture="tall.png"))
    expected = said(model, *questions, pictures=([photo], [tall], []))
    assert [result.outputs[node]["text"] for node in ["8", "9", "10"]] == [[turn.answer] for turn in expected]
    for node, turn in zip(["8", "9", "10"], expected, strict=True):  # of the node, without what came over its socket
        assert result.outputs[node]["conversation"] == [write_turns((turn,))]
    # What was said before matters.
    alone = model.answer("Which is taller?", max_new_tokens=SHORT).text
    assert alone != expected[-1].answer


def test_one_ask_goes_on(server, model, photo):
    questions = "What is this?", "Why?", "Really?"
    expected = said(model, *questions, pictures=([photo], [], []))
    conversation = ""
    for number, question in enumerate(questions, 1):
        prompt = ask(question=question, go_on=True, conversation=conversation)
        result = server.run(prompt)
        (conversation,) = result.outputs["8"]["conversation"]
        assert conversation == write_turns(expected[:number])
        assert result.outputs["8"]["text"] == [expected[number - 1].answer]
        assert server.run(prompt).executed == []
    # Off, what is there is not used.
    result = server.run(ask(question="What is this?", go_on=False, conversation="not even JSON"))
    assert result.outputs["8"]["conversation"] == [write_turns(expected[:1])]


def test_both_at_once(server, model, photo):
    """What comes over the socket is before what was said in the node, whose pictures are its first question's."""
    prompt = chain("What is this?", "And this?", second_picture="tall.png")
    first = server.run(prompt).outputs
    words = [{"question": "And this?", "answer": first["9"]["text"][0]}]
    prompt["9"]["inputs"] |= {"question": "Sure?", "go_on": True, "conversation": json.dumps(words)}
    result = server.run(prompt).outputs["9"]
    in_a_row = server.run(chain("What is this?", "And this?", "Sure?", second_picture="tall.png")).outputs
    assert result["text"] == in_a_row["10"]["text"]
    (conversation,) = result["conversation"]
    assert [turn["question"] for turn in json.loads(conversation)] == ["And this?", "Sure?"]


def test_too_long(server):
    words = json.dumps([{"question": "word " * 3000, "answer": "yes " * 3000}])
    with pytest.raises(ComfyError, match=r"the conversation, .* tokens long; this checkpoint reads at most 4096"):
        server.run(ask(go_on=True, conversation=words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ('[{"question": "a"', "the conversation is no JSON"),
        ("{}", r"the conversation is \{\}; it must be a list of turns"),
        ('[{"question": "a", "answer": 1}]', "turn 1 of the conversation is"),
    ],
)
def test_a_broken_conversation(server, words, message):
    """Is refused before anything runs."""
    with pytest.raises(ComfyError, match=message) as error:
        server.queue(ask(go_on=True, conversation=words))
    assert error.value.node_id == "8"


@pytest.fixture
def tokens(server):
    """tokens(prompt) → events of the progress bar and of the stream, and the texts."""

    def run(prompt):
        result = server.run(prompt)
        return sum(node in ("8",) for node, *_ in result.progress), result

    return run


@pytest.mark.parametrize("name", ["ask", "reason_then_draw"])
def test_at_temperature_0_another_seed_writes_nothing_anew(tokens, name):
    inputs = {"max_new_tokens": 8} | ({} if name == "ask" else {"width": 64, "height": 64, "steps": 2})
    prompt = workflow(name, **inputs)
    prompt["8"]["inputs"]["question" if name == "ask" else "prompt"] = f"Of a seed, {name}?"
    written, first = tokens(prompt)
    assert written and first.outputs["8"]["tokens"] == [8]  # newer progress bars are sent only now and then
    prompt["8"]["inputs"]["seed"] = 7
    written, again = tokens(prompt)
    assert written == 0 and "8" in again.executed
    assert again.outputs["8"]["tokens_per_second"] == [0.0]  # nobody has measured one
    kept = ("text", "tokens")
    assert [again.outputs["8"][key] for key in kept] == [first.outputs["8"][key] for key in kept]
    streamed = [data["text"] for kind, data in again.events if kind == "internvlu.text"]
    assert streamed == ["", *first.outputs["8"]["text"]]
    # Whatever else changes does.
    for key, value in [("max_new_tokens", 7), ("num_beams", 2), ("temperature", 1.0), ("system_prompt", "Be brief.")]:
        changed = json.loads(json.dumps(prompt))
        changed["8"]["inputs"][key] = value
        assert tokens(changed)[0] > 0, key
    # With a temperature, the seed does.
    prompt["8"]["inputs"]["temperature"] = 1.0
    prompt["8"]["inputs"]["seed"] = 8
    assert tokens(prompt)[0] > 0


def test_other_pictures_and_other_weights_are_answered_anew(tokens):
    prompt = ask(question="Of what?")
    assert tokens(prompt)[0]
    prompt["7"]["inputs"]["image"] = "tall.png"
    assert tokens(prompt)[0]
    prompt["1"]["inputs"]["weight_dtype"] = "bf16"
    assert tokens(prompt)[0]
