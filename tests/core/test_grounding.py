"""Boxes in answers."""

import pytest

from internvlu_core.errors import InputError
from internvlu_core.grounding import MARKERS, Box, parse_boxes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("There is no cat. [1] and [2, 3] are footnotes.", []),
        ("<ref>a cat</ref><box>[[10, 20, 300, 400]]</box>", [Box("a cat", 10, 20, 300, 400)]),
        (
            "Two: <ref>猫</ref><box>[[0,0,10,10], [5.5,5,1000,1000]]</box> and <ref>dog</ref> <box>[[1,2,3,4]]</box>.",
            [Box("猫", 0, 0, 10, 10), Box("猫", 5.5, 5, 1000, 1000), Box("dog", 1, 2, 3, 4)],
        ),
        ("<box>[1, 2, 3, 4]</box>", [Box("", 1, 2, 3, 4)]),
        ("<ref>x</ref><box>[]</box>", []),
        # As plain decoding leaves it.
        (
            "the cat[[10, 20, 300, 400]]\ndog: [[1, 2, 3, 4]]",
            [Box("the cat", 10, 20, 300, 400), Box("dog", 1, 2, 3, 4)],
        ),
    ],
)
def test_boxes_of_an_answer(text, expected):
    assert parse_boxes(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<ref>a</ref><box>[[1, 2, 3]]</box>", "four numbers.*'\\[\\[1, 2, 3\\]\\]'"),
        ("<box>[[1, 2, 3, 4.]]</box>", "cannot be read"),
        ("<box>[[1, 2, 3, true]]</box>", "four numbers"),
        ("<box>7</box>", "four numbers"),
        ("<box>[[1, 2, 3, 1001]]</box>", "from 0 to 1000"),
        ("<box>[[1, 2, 3, NaN]]</box>", "from 0 to 1000"),
        ("<box>[[-1, 2, 3, 4]]</box>", "from 0 to 1000"),
        ("<box>[[30, 2, 3, 4]]</box>", "second corner lies before its first"),
        ("<ref>cut off</ref><box>[[30, 2,", "without its </box>"),
        ("left</box> over", "without its </box>"),
        ("label[[1, 2, 3]]", "four numbers"),
    ],
)
def test_what_cannot_be_read_is_quoted(text, message):
    with pytest.raises(InputError, match=message):
        parse_boxes(text)


def test_pixels_stay_in_the_picture():
    assert Box("", 0, 0, 1000, 1000).pixels(640, 480) == (0, 0, 640, 480)
    assert Box("", 500, 250, 750, 500).pixels(200, 100) == (100, 25, 150, 50)
    assert Box("", 1000, 1000, 1000, 1000).pixels(64, 48) == (63, 47, 64, 48)


def test_markers_survive_decoding(model):
    """They are special tokens, which plain decoding drops; the rest of the text is the same either way."""
    tokenizer = model.tokenizer
    start, end, box, box_end = (tokenizer.id(token) for token in MARKERS)
    ids = [
        start,
        *tokenizer.encode("猫 cat"),
        end,
        box,
        *tokenizer.encode("[[1, 2, 3, 4]]"),
        box_end,
        tokenizer.stop_ids[0],
    ]
    assert tokenizer.decode(ids, keep=MARKERS) == "<ref>猫 cat</ref><box>[[1, 2, 3, 4]]</box>"
    assert tokenizer.decode(ids) == "猫 cat[[1, 2, 3, 4]]"
