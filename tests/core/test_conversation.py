"""Conversations: earlier turns in the prompt, as transformers lays them out, with their pictures and no injection."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers import AutoTokenizer

from internvlu_core import InputError, InternVLU, Turn
from internvlu_core.conversation import read_turns, write_turns
from internvlu_core.prompt import CHAT_SYSTEM
from support.checkpoints import CHECKPOINT

TILE = 64  # tokens of the recorded checkpoint

# The layout of InternVL's chat template, in the form of transformers' own (the recorded tokenizer has none): a picture
# is its context token and a line break, which the processor then makes as many tokens as the picture has.
TEMPLATE = (
    "{% macro say(role) %}{{ '<|im_start|>' + role + '\n' }}{% endmacro %}"
    "{% for message in messages %}{{ say(message.role) }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{{ '<IMG_CONTEXT>\n' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ say('assistant') }}{% endif %}"
)


def templated(turns: list[tuple[list[int], str, str | None]], system: str = CHAT_SYSTEM) -> tuple[int, ...]:
    """Ids by apply_chat_template. turns: (tiles of each picture, question, answer), the last without an answer."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT / "processor", local_files_only=True)
    messages = [{"role": "system", "content": system}]
    for pictures, question, answer in turns:
        parts = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)
    first, *rest = text.split("<IMG_CONTEXT>")
    counts = [count for pictures, _, _ in turns for count in pictures]
    for count, following in zip(counts, rest, strict=True):
        first += "<img>" + "<IMG_CONTEXT>" * (TILE * count) + "</img>" + following
    return tuple(tokenizer(first, add_special_tokens=False).input_ids)


def ids(model, prompt, tiles=(), history=(), system=None):
    return model.conditioner.prompts.chat(prompt, list(tiles), system, history).ids


@pytest.fixture
def fresh():
    """A model of the test's own."""
    return InternVLU.from_pretrained(CHECKPOINT, device="cpu", dtype=torch.float32)


def test_one_question_is_as_it_was(model):
    assert ids(model, "A cat?", [1, 2]) == templated([([1, 2], "A cat?", None)])
    assert ids(model, "A cat?", [1], ()) == ids(model, "A cat?", [1])


@pytest.mark.parametrize("system", [None, "Be brief.", ""])
def test_turns_are_as_in_transformers(model, photo, tall, system):
    """Pictures in the first turn, in a later one, in the newest; none in between."""
    history = (
        Turn("What is this?", "A cat，在墙上。\n\nIt sits.", [photo]),
        Turn("Is it?", " Yes \n"),
        Turn("And these?", "Two walls.", (tall, photo)),
        Turn("Why?", ""),
    )
    expected = [
        ([3], "What is this?", "A cat，在墙上。\n\nIt sits."),
        ([], "Is it?", " Yes \n"),
        ([1, 2], "And these?", "Two walls."),
        ([], "Why?", ""),
        ([1], "And this?", None),
    ]
    chat = model.conditioner.prompts.chat("And this?", [3, 1, 2, 1], system, history)
    assert chat.ids == templated(expected, CHAT_SYSTEM if system is None else system)
    context = model.tokenizer.id("<IMG_CONTEXT>")
    assert chat.image_mask == tuple(token == context for token in chat.ids) and sum(chat.image_mask) == 7 * TILE


def test_questions_are_tidied_as_when_they_were_asked(model, photo):
    """So an earlier prompt is a part of the next one."""
    first = ids(model, "what <image> is", [1])
    second = ids(model, "go on", [1], (Turn("what <image> is", "a cat", [photo]),))
    assert second[: len(first)] == first


def test_words_stay_words(model, photo):
    """Special tokens that a person or the model spells, and placeholders in an answer."""
    spelled = "a <|im_end|> <img></img> <IMG_CONTEXT> <box> b"
    history = (Turn(f"Q {spelled}?", f"{spelled} <image>", [photo]),)
    chat = ids(model, "Next?", [1], history)
    special = [token for token in chat if token in model.tokenizer.special_ids or token == model.tokenizer.stop_ids[0]]
    # Of the system text, the question, the answer and the next question; and one picture.
    assert special.count(model.tokenizer.stop_ids[0]) == 4
    assert special.count(model.tokenizer.id("<IMG_CONTEXT>")) == TILE
    assert special.count(model.tokenizer.id("<box>")) == 0
    text = model.tokenizer.tokenizer.decode(chat, skip_special_tokens=False)
    assert f"assistant\n{spelled} <image><|im_end|>" in text


def test_answers_take_history(model, read_ids, photo, tall):
    """The language model reads all turns, and the pictures in their order."""
    first = model.answer("What is this?", [photo], max_new_tokens=3)
    history = (Turn("What is this?", first.text, photo),)
    read_ids.clear()
    second = model.answer("And this?", tall, max_new_tokens=3, history=history)
    tiles = [1, 1]
    assert tuple(read_ids[0]) == ids(model, "And this?", tiles, history)
    # Other pictures, other words in an earlier turn: another reading, though the tokens may be the same.
    embedded = [
        model.conditioner.embed(
            model.conditioner.prompts.chat("And this?", tiles, None, history),
            model.conditioner.image_features(model._tiles(pictures), model.device, model.dtype),
            model.device,
        )
        for pictures in ([photo, tall], [tall, photo])
    ]
    assert not torch.equal(*embedded)
    assert second == model.answer("And this?", [tall], max_new_tokens=3, history=list(history))
    # What the caller holds has not changed.
    assert history == (Turn("What is this?", first.text, (photo,)),)


def test_pictures_of_earlier_turns_are_not_seen_again(fresh, photo, tall):
    seen = []
    fresh.vlm.vision_model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    fresh.answer("What?", [photo, tall], max_new_tokens=1)
    before = len(seen)
    assert before
    history = (Turn("What?", "A cat.", (photo, tall)),)
    fresh.answer("And?", max_new_tokens=1, history=history)
    assert len(seen) == before
    fresh.answer("And?", max_new_tokens=1, max_tiles=2, history=history)
    assert len(seen) > before


def test_too_long(model, photo):
    """Nothing is left out: the number is that of the whole."""
    words = "A word. " * 400
    history = (Turn(words, words, [photo]), Turn("Short?", words))
    # A question loses the white space around it, an answer does not.
    whole = templated([([1], words.strip(), words), ([], "Short?", words), ([], words.strip(), None)])
    wanted = f"conversation, .* is {len(whole)} tokens long; this checkpoint reads at most 4096"
    with pytest.raises(InputError, match=wanted):
        model.answer(words, history=history)


@pytest.mark.parametrize(
    "history, message",
    [
        ("What?", "history must be a tuple of Turns, not str"),
        (7, "history must be a tuple of Turns, not int"),
        (Turn("a", "b"), "history must be a tuple of Turns, not Turn"),
        ([("a", "b")], r"history\[0\] must be a Turn, not tuple"),
        ([Turn("a", "b"), None], r"history\[1\] must be a Turn, not NoneType"),
        ([Turn("a <image> <image>", "b")], "turn 1 of the history: the prompt has 2 <image> placeholders, but 0"),
        ([Turn("a", "b", ["cat.png"])], "an image must be a PIL picture, not str"),
    ],
)
def test_bad_history(model, history, message):
    with pytest.raises(InputError, match=message):
        model.answer("Next?", history=history, max_new_tokens=1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1, "b"), "a turn's question must be a string, not int"),
        (("a", None), "a turn's answer must be a string, not NoneType"),
        (("a", "\ud800"), "a turn's answer is not valid text"),
        (("a", "b", 3), "images must be a list of PIL pictures, not int"),
    ],
)
def test_bad_turns(arguments, message):
    with pytest.raises(InputError, match=message):
        Turn(*arguments)


def test_turns_do_not_change(photo):
    turn = Turn("a", "b", [photo])
    assert turn.images == (photo,)
    with pytest.raises(FrozenInstanceError):
        turn.answer = "c"


def test_as_text_and_back(photo):
    history = (Turn('What "is" {this}?', "猫\n<box>", (photo,)), Turn("", ""))
    text = write_turns(history)
    assert json.loads(text)[0] == {"question": 'What "is" {this}?', "answer": "猫\n<box>"} and "猫" in text
    assert read_turns(text, [photo]) == history
    assert read_turns(" \n") == read_turns("[]") == ()


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "no JSON .*line 1 column 2"),
        ("What?", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"question": "a"}', r'the conversation is \{"question": "a"\}; it must be a list of turns'),
        ("null", "the conversation is null"),
        ('[{"question": "a"}]', r'turn 1 of the conversation is \{"question": "a"\}; it must be'),
        ('[{"question": "a", "answer": "b"}, {"question": 1, "answer": "b"}]', "turn 2 of the conversation"),
        ('[{"question": "a", "answer": "b", "images": []}]', "turn 1 of the conversation"),
        ('["' + "x" * 500 + '"]', "turn 1 of the conversation is .{60,64}…; it must be"),
        ('[{"question": "a", "answer": "\\ud800"}]', "a turn's answer is not valid text"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(InputError, match=message):
        read_turns(text)
