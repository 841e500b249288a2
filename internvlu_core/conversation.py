"""Turns of a conversation: what was asked, with which pictures, and what was answered."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from .errors import InputError, check_text


@dataclass(frozen=True)
class Turn:
    """One question and its answer. images: the pictures that came with the question, in order."""

    question: str
    answer: str
    images: tuple[Image.Image, ...] = ()

    def __post_init__(self):
        check_text("a turn's question", self.question)
        check_text("a turn's answer", self.answer)
        object.__setattr__(self, "images", tuple(as_images(self.images)))


History = tuple[Turn, ...]


def as_images(images) -> list[Image.Image]:
    """An `images` argument as a list: of None, one picture or several. Raises InputError for anything else."""
    if images is None:
        return []
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise InputError(f"images must be a list of PIL pictures, not {type(images).__name__}")
    return list(images)


def as_history(history) -> History:
    """A `history` argument as a tuple: of None or several turns. Raises InputError for anything else."""
    if history is None:
        return ()
    if isinstance(history, str | Turn) or not isinstance(history, Iterable):
        raise InputError(f"history must be a tuple of Turns, not {type(history).__name__}")
    history = tuple(history)
    for number, turn in enumerate(history):
        if not isinstance(turn, Turn):
            raise InputError(f"history[{number}] must be a Turn, not {type(turn).__name__}")
    return history


def pictures_of(history: History) -> list[Image.Image]:
    """All pictures of the turns, in order."""
    return [image for turn in history for image in turn.images]


def read_turns(text: str, images=()) -> History:
    """The turns in a text as write_turns makes it; an empty text has none. images: of the first turn.

    Raises InputError saying what is wrong with the text.
    """
    if not text.strip():
        return ()
    try:
        turns = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"the conversation is no JSON ({error}); empty it to begin a new one") from error
    if not isinstance(turns, list):
        raise InputError(f"the conversation is {_show(turns)}; it must be a list of turns; empty it to begin a new one")
    wanted = '{"question": "…", "answer": "…"}'
    for number, turn in enumerate(turns, 1):
        texts = turn.values() if isinstance(turn, dict) and turn.keys() == {"question", "answer"} else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"turn {number} of the conversation is {_show(turn)}; it must be {wanted}")
    return tuple(Turn(**turn, images=() if number else images) for number, turn in enumerate(turns))


def write_turns(history: History) -> str:
    """The questions and answers of a conversation as JSON, without its pictures."""
    return json.dumps([{"question": turn.question, "answer": turn.answer} for turn in history], ensure_ascii=False)


def _show(value) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
