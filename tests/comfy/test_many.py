"""Ask and Reason on lists: one batched decode, with the results, the stream and the progress of each item."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from internvlu_core import InternVLU
from support.checkpoints import CHECKPOINT
from support.comfy_server import ComfyInterrupted
from support.inprocess import PACK, load_pack
from support.workflows import workflow

COUNT = 5


@pytest.fixture(scope="module")
def pictures():
    levels = np.random.default_rng(0).integers(0, 256, (COUNT, 40, 56, 3))
    return [Image.fromarray(one.astype(np.uint8)) for one in levels]


@pytest.fixture(scope="module")
def images(pictures):
    return [torch.from_numpy(np.array(picture))[None] / 255 for picture in pictures]


@pytest.fixture(scope="module")
def pack():
    """The nodes in this process, with the VLM of their loader."""
    load_pack()

    def module(name):
        return importlib.import_module(f"{PACK}.{name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module("nodes.comfy.folders"), "checkpoints", lambda: {"tiny": CHECKPOINT})
        _, vlm, _ = module("nodes.loader").InternVLULoader.execute("tiny", "fp32").result
    return SimpleNamespace(module=module, vlm=vlm)


@pytest.fixture
def run(pack, monkeypatch):
    """run(name of a node, lists) → its output, the events of its stream, and the rows of each step of decoding."""
    events, rows = [], []
    server = SimpleNamespace(client_id=None, send_sync=lambda kind, data, sid: events.append(data))
    monkeypatch.setattr(pack.module("nodes.comfy.stream"), "PromptServer", SimpleNamespace(instance=server))
    cache = pack.module("internvlu_core.models.language").RowCache
    begin, saved = cache.begin, []
    monkeypatch.setattr(pack.module("nodes.comfy.metadata"), "add", lambda *args: saved.append(args[-1]))
    monkeypatch.setattr(cache, "begin", lambda self, tokens: (rows.append(len(self.lengths)), begin(self, tokens))[-1])

    def execute(name, **lists):
        node = getattr(pack.module(f"nodes.{name.lower()}"), f"InternVLU{name}")
        hidden = SimpleNamespace(unique_id="8", prompt={}, extra_pnginfo={})
        monkeypatch.setattr(node, "hidden", hidden, raising=False)
        events.clear()
        rows.clear()
        output = node.execute(vlm=[pack.vlm], **lists)
        return SimpleNamespace(result=output.result, ui=output.ui, events=list(events), rows=list(rows), saved=saved)

    return execute


def shown(events: list[dict]) -> list[str]:
    """The texts that the page puts one under the other, as js/stream.js does: each begins with an empty one."""
    texts = []
    for event in events:
        if not event["tokens"] or not texts:
            texts.append(event["text"])
        texts[-1] = event["text"]
    return texts


def test_ask_answers_a_list_in_one_decode(run, model: InternVLU, images, pictures):
    questions = ["What is this?", "And this, in more words?"]  # the last one is repeated
    lengths = [6, 9, 3, 9]
    found = run("Ask", question=questions, image1=images, max_new_tokens=lengths, seed=[0])
    expected = [
        model.answer(questions[min(i, 1)], [pictures[i]], max_new_tokens=lengths[min(i, 3)]).text for i in range(COUNT)
    ]
    assert found.result[0] == found.ui["text"] == expected
    assert found.rows[0] == COUNT and len(found.rows) == 8  # steps: each row but the first token of the longest
    assert found.ui["tokens"] == [6, 9, 3, 9, 9] and len(found.ui["tokens_per_second"]) == COUNT
    said = [json.loads(conversation) for conversation in found.ui["conversation"]]
    assert [turn["answer"] for (turn,) in said] == expected
    assert [history[-1].answer for history in found.result[1]] == expected
    assert [list(history[-1].images) for history in found.result[1]] == [[picture] for picture in pictures]
    # One after the other, though they are written at the same time.
    assert shown(found.events) == expected
    assert [event["question"] for event in found.events if not event["tokens"]] == [questions[0]] + [questions[1]] * 4


def test_what_is_known_is_not_written_again(run, images):
    asked = {"question": ["What?"], "image1": images[:3], "max_new_tokens": [4], "seed": [0]}
    first = run("Ask", **asked)
    assert first.rows == [3] * 3
    again = run("Ask", **asked | {"image1": images[:4]})
    assert again.result[0][:3] == first.result[0] and again.rows == [1] * 3
    assert shown(again.events) == again.result[0]
    assert run("Ask", **asked | {"temperature": [1.0]}).rows == [3] * 3


def test_reason_writes_a_list_in_one_decode(run, model):
    """The user's own words among generated ones."""
    prompts, own = ["a cat", "a hat", "a dog"], ["", "my words", ""]
    found = run("Reason", prompt=prompts, text=own, pinned=[False, True, False], max_new_tokens=[5], seed=[0])
    expected = [model.reason(prompt, max_new_tokens=5).text for prompt in prompts]
    expected[1] = own[1]
    assert found.result[1] == found.ui["text"] == expected
    assert [thought.prompt for thought in found.result[0]] == prompts
    assert found.ui["tokens"][0] == 5 and found.ui["tokens_per_second"][1] == 0.0
    assert found.rows == [2] * 4
    assert shown(found.events) == [expected[0], expected[2]]
    assert found.saved == expected


@pytest.mark.parametrize(("name", "text"), [("Ask", "question"), ("Reason", "prompt")])
def test_an_error_of_one_item_is_the_nodes(run, name, text):
    with pytest.raises(ValueError, match="tokens long"):
        run(name, **{text: ["a", "b " * 9000, "c"]}, max_new_tokens=[3], seed=[0])


def test_memory_bounds_the_batch(run, pack, images, monkeypatch):
    management = importlib.import_module("comfy.model_management")
    language = pack.module("internvlu_core.models.language")
    per_token = language.cache_bytes(pack.vlm.config.language, torch.float32)
    monkeypatch.setattr(management, "get_total_memory", lambda *_: 4 * 2 * 512 * per_token)
    found = run("Ask", question=["Which?"], image1=images, max_new_tokens=[4], seed=[0])
    assert max(found.rows) <= 4 and len(found.result[0]) == COUNT


# Through the queue


@pytest.fixture(scope="module")
def captions(server, pictures):
    """caption_batch's prompt over a folder of several pictures."""
    folder = server.base_dir / "input" / "several"
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    prompt = workflow("caption_batch", max_new_tokens=12)
    prompt["7"]["inputs"]["folder"] = "several"
    prompt["1"]["inputs"]["weight_dtype"] = "fp32"
    return prompt


def test_captions_of_a_folder(server, model, captions, pictures):
    result = server.run(captions)
    question = captions["12"]["inputs"]["question"]
    expected = [model.answer(question, [picture], max_new_tokens=12).text for picture in pictures]
    texts = result.outputs["12"]["text"]
    assert sorted(texts) == sorted(expected)  # ComfyUI's node lists the folder in any order
    assert len(result.outputs["12"]["conversation"]) == COUNT
    progress = [(value, most) for node, value, most in result.progress if node == "12"]
    assert {most for _, most in progress} == {COUNT * 12}
    assert [value for value, _ in progress] == sorted(value for value, _ in progress)
    assert shown([data for kind, data in result.events if kind == "internvlu.text"]) == texts


def test_cancelling_captions(server, captions):
    prompt = json.loads(json.dumps(captions))
    prompt["12"]["inputs"] |= {"max_new_tokens": 3000, "question": "Cancelled?", "temperature": 2.0}

    def interrupt(kind, data):
        if kind == "internvlu.text" and data["tokens"] > 2:
            server.interrupt()

    with pytest.raises(ComfyInterrupted):
        server.run(prompt, on_event=interrupt)
    assert server.run(captions).outputs["12"]["text"]
