"""Boxes in an answer: `<ref>a cat</ref><box>[[x1, y1, x2, y2], …]</box>`, in thousandths of the picture.

Source: docs/model.md, "Text generation"; InternVL's documentation of grounding.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputError
from .prompt import Tokenizer

BOX = "<box>"
MARKERS = ("<ref>", "</ref>", BOX, "</box>")  # special tokens, which Tokenizer.decode drops unless told otherwise
SCALE = 1000

_MARKED = re.compile(r"(?:<ref>(?P<label>.*?)</ref>\s*)?<box>(?P<boxes>.*?)</box>", re.DOTALL)
# A marked answer without its special tokens: the label on its line, then the brackets.
_BARE = re.compile(r"(?P<label>[^\n\[\]]*)(?P<boxes>\[\s*\[[\d\s.,\[\]-]*\]\s*\])")


@dataclass(frozen=True)
class Box:
    """One labelled box. The coordinates are thousandths of the picture's width and height, x1 ≤ x2 and y1 ≤ y2.

    label: what is in the box; may be empty.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in a picture of this size. right and bottom are exclusive; no box is empty."""
        left, top = min(round(self.x1 * width / SCALE), width - 1), min(round(self.y1 * height / SCALE), height - 1)
        right, bottom = round(self.x2 * width / SCALE), round(self.y2 * height / SCALE)
        return left, top, max(right, left + 1), max(bottom, top + 1)


def answer_text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of a generated answer: without special tokens, except that one with a box keeps the MARKERS.

    This is the one rule for answers of the Python API and of the Ask node; parse_boxes reads its result.
    """
    # Without a box the official text is kept: a marker alone may stand in the middle of a character.
    return tokenizer.decode(token_ids, keep=MARKERS if tokenizer.id(BOX) in token_ids else ())


def parse_boxes(text: str) -> list[Box]:
    """The boxes of an answer, in its order; an empty list if it has none.

    Reads text with the MARKERS and text that has lost them. Raises InputError quoting what cannot be read.
    """
    if "<box>" not in text and "</box>" not in text:
        return [box for match in _BARE.finditer(text) for box in _read(match)]
    rest = _MARKED.sub("", text)
    if "<box>" in rest or "</box>" in rest:
        raise InputError(f"the answer has a <box> without its </box>, or the reverse: {_quote(rest)}")
    return [box for match in _MARKED.finditer(text) for box in _read(match)]


def _read(match: re.Match) -> list[Box]:
    label, written = (match["label"] or "").strip(" \t\n:,.;-–—"), match["boxes"].strip()
    try:
        boxes = json.loads(written)
    except ValueError:
        raise InputError(f"box coordinates cannot be read: {_quote(written)}; expected [[x1, y1, x2, y2], …]") from None
    if isinstance(boxes, list) and len(boxes) == 4 and not any(isinstance(value, list) for value in boxes):
        boxes = [boxes]  # a single box, without the outer brackets
    return [_box(label, values, written) for values in boxes] if isinstance(boxes, list) else [_box(label, 0, written)]


def _box(label: str, values, written: str) -> Box:
    if not isinstance(values, list) or len(values) != 4 or not all(type(value) in (int, float) for value in values):
        raise InputError(f"a box needs four numbers, x1, y1, x2, y2: {_quote(written)}")
    x1, y1, x2, y2 = values
    if not all(0 <= value <= SCALE for value in values):
        raise InputError(f"box coordinates must be from 0 to {SCALE}: {_quote(written)}")
    if x1 > x2 or y1 > y2:
        raise InputError(f"a box's second corner lies before its first: {_quote(written)}")
    return Box(label, x1, y1, x2, y2)


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:79] + "…")
