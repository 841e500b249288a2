"""InternVL-U Boxes, and that Ask's answers reach it with their marks."""

import importlib

import numpy as np
import pytest
import torch
from graphs import workflow
from inprocess import PACK, load_pack

from internvlu_core.errors import InputError

ANSWER = (
    "<ref>cat</ref><box>[[100, 200, 500, 600], [0, 0, 50, 100]]</box>, <ref>狗</ref><box>[[700, 500, 1000, 1000]]</box>"
)


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
    with pytest.raises(InputError, match="four numbers"):
        boxes_node.execute("<box>[[1, 2]]</box>", torch.zeros(1, 8, 8, 3))
    with pytest.raises(InputError, match="2 pictures"):
        boxes_node.execute("", torch.zeros(2, 8, 8, 3))


def test_answers_keep_their_marks(server):
    """Ask's text goes into Boxes as the model wrote it: sampled at random, the tiny checkpoint writes marks too."""
    prompt = workflow("ask", question="Where?", max_new_tokens=400)
    prompt["8"]["inputs"] |= {"temperature": 5.0, "seed": 1}
    (answer,) = server.run(prompt).outputs["8"]["text"]
    assert "<box>" in answer or "<ref>" in answer or "</box>" in answer or "</ref>" in answer
    assert "<|im_" not in answer and "<img" not in answer
