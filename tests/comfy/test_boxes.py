"""InternVL-U Boxes, and that Ask's answers reach it with their marks."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from internvlu_core.conditioning import TextResult
from internvlu_core.grounding import MARKERS
from support.inprocess import PACK, load_pack

ANSWER = (
    "<ref>cat</ref><box>[[100, 200, 500, 600], [0, 0, 50, 100]]</box>, <ref>狗</ref><box>[[700, 500, 1000, 1000]]</box>"
)

PIECES = ("<ref>", "the cat 猫", "</ref>", "<box>", "[[100, 200, 500, 600]]", "</box>")


@pytest.fixture(scope="module")
def boxes_node():
    load_pack()
    return importlib.import_module(f"{PACK}.nodes.boxes").InternVLUBoxes


def test_boxes_mask_and_picture(boxes_node):
    image = torch.full((1, 100, 200, 3), 0.5)
    boxes, mask, picture = boxes_node.execute(ANSWER, image).result
    assert boxes == [[20, 20, 80, 40], [0, 0, 10, 10], [140, 50, 60, 50]]
    expected = torch.zeros(1, 100, 200)
    expected[:, 20:60, 20:100] = expected[:, 0:10, 0:10] = expected[:, 50:, 140:] = 1
    assert torch.equal(mask, expected)
    levels = (picture[0] * 255).round().numpy().astype(int)
    assert picture.shape == image.shape and torch.equal(image, torch.full_like(image, 0.5))
    cat, dog = levels[40, 20], levels[99, 170]  # outlines: the left one of the first box, the lower one of the third
    assert cat.tolist() == [0xE4, 0x57, 0x2E] and dog.tolist() == [0x2E, 0x86, 0xAB]
    assert np.array_equal(levels[40, 60], [128, 128, 128])  # the inside of a box is the picture


def test_no_boxes_give_an_empty_mask(boxes_node):
    image = torch.rand(1, 32, 48, 3)
    boxes, mask, picture = boxes_node.execute("I see nothing.", image).result
    assert boxes == [] and mask.shape == (1, 32, 48) and not mask.any()
    assert torch.allclose(picture, image, atol=1 / 255)


def test_unreadable_boxes_and_batches_are_errors(boxes_node):
    with pytest.raises(ValueError, match="four numbers"):
        boxes_node.execute("<box>[[1, 2]]</box>", torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="2 pictures"):
        boxes_node.execute("", torch.zeros(2, 8, 8, 3))


def test_answers_keep_their_marks(boxes_node, model, monkeypatch):
    """What Ask gives is what Boxes reads; the core's text, as the official one, has no special tokens."""
    ask = importlib.import_module(f"{PACK}.nodes.ask")
    vlm = object.__new__(ask.as_vlm.__globals__["ComfyVLM"])
    vlm.config, vlm.tokenizer, vlm.conditioner, vlm.written = model.config, model.tokenizer, model.conditioner, {}
    tokenizer = model.tokenizer
    pieces = [tokenizer.id(piece) if piece in MARKERS else tokenizer.encode(piece) for piece in PIECES]
    ids = [token for piece in pieces for token in (piece if isinstance(piece, list) else [piece])]
    result = TextResult(tokenizer.decode(ids), (*ids, tokenizer.stop_ids[0]))
    monkeypatch.setattr(vlm, "generate", lambda *args: result, raising=False)
    monkeypatch.setattr(ask.InternVLUAsk, "hidden", SimpleNamespace(unique_id=None), raising=False)
    output = ask.InternVLUAsk.execute(vlm=[vlm], question=["Where?"], max_new_tokens=[8], seed=[0])
    assert output.result[0] == ["".join(PIECES)] and output.ui["text"] == ["".join(PIECES)]
    # Without a box it is the official text: a mark alone may stand in the middle of a character.
    assert vlm.decode(ids[:3]) == tokenizer.decode(ids[:3])
    boxes, _, _ = boxes_node.execute(output.result[0][0], torch.zeros(1, 100, 200, 3)).result
    assert boxes == [[20, 20, 80, 40]]
