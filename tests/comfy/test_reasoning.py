"""Reasoning on its way: it carries its prompt and pictures to Encode, and its words into what is saved."""

import importlib
import io
import json

import pytest
from PIL import Image

from support.comfy_server import ComfyError
from support.inprocess import load_pack
from support.saved_workflows import saved_prompt
from support.workflows import change

KEY = "internvlu_reasoning"


def edit(**inputs) -> dict:
    """Reason, then edit: 7 loads the picture, 8 reasons, 2 encodes, 6 saves."""
    prompt = saved_prompt("reason_then_edit")
    change(prompt, **{"steps": 1, "max_new_tokens": 12} | inputs)
    prompt["3"] = {"class_type": "InternVLUEmptyLatent", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    prompt["4"]["inputs"]["latent_image"] = ["3", 0]
    prompt["6"]["inputs"]["images"] = ["5", 0]
    del prompt["10"]
    return prompt


@pytest.fixture
def run(server):
    """run(prompt, workflow) → (the saved picture as PIL, its metadata decoded, the result)"""

    def run(prompt: dict, graph: dict | None = None):
        result = server.run(prompt, extra_data=graph and {"extra_pnginfo": {"workflow": graph}})
        content = [content for _, content in server.image_files(result)][-1]
        picture = Image.open(io.BytesIO(content))
        return picture, {key: json.loads(text) for key, text in picture.text.items()}, result

    return run


def notices(result) -> list[dict]:
    return [data for kind, data in result.events if kind == "internvlu.notice"]


def test_encode_takes_prompt_and_pictures_from_the_reasoning(run):
    drawn, _, _ = run(edit())
    short = edit()
    short["2"]["inputs"]["prompt"] = "  "
    del short["2"]["inputs"]["image1"]
    taken, _, result = run(short)
    assert taken.tobytes() == drawn.tobytes()
    assert notices(result) == []

    # Its own ones count where there are any; what differs is said.
    other = edit()
    other["2"]["inputs"]["prompt"] = "Something else"
    drawn_otherwise, _, result = run(other)
    assert drawn_otherwise.tobytes() != drawn.tobytes()
    assert notices(result) == [{"key": "other_prompt", "values": {"prompt": edit()["8"]["inputs"]["prompt"]}}]
    other = edit()
    other["9"] = {"class_type": "LoadImage", "inputs": {"image": "tall.png"}}
    other["2"]["inputs"]["image1"] = ["9", 0]
    _, _, result = run(other)
    assert notices(result) == [{"key": "other_pictures", "values": {"count": 1}}]


def test_a_prompt_that_is_nowhere_is_said(run):
    """As when Reason is bypassed, whose prompt an empty one takes."""
    bypassed = edit()
    bypassed["2"]["inputs"]["prompt"] = ""
    del bypassed["2"]["inputs"]["reasoning"]
    _, _, result = run(bypassed)
    assert notices(result) == [{"key": "no_prompt", "values": {}}]


def test_pictures_of_the_reasoning_need_a_vae_too(run):
    prompt = edit()
    del prompt["2"]["inputs"]["image1"], prompt["2"]["inputs"]["vae"]
    with pytest.raises(ComfyError, match="no VAE"):
        run(prompt)


def test_pinned_reasoning_carries_them_as_well(run):
    pinned = {"text": "A red sky.", "pinned": True}
    full, short = edit(), edit()
    for prompt in (full, short):
        prompt["8"]["inputs"] |= pinned
    short["2"]["inputs"]["prompt"] = ""
    del short["2"]["inputs"]["image1"]
    assert run(full)[0].tobytes() == run(short)[0].tobytes()


def test_saved_pictures_hold_the_reasoning(run):
    """Whether the node ran, was cached, or the picture was saved a second time only."""
    graph = {"nodes": [], "extra": {"ds": {}, KEY: {"8": "of an earlier run", "99": "of another node"}}}
    prompt = edit(prompt="Make the sky green")
    _, saved, result = run(prompt, graph)
    (text,) = result.outputs["8"]["text"]
    assert text and saved[KEY] == {"8": text}
    assert saved["workflow"]["extra"] == {"ds": {}, KEY: {"8": text}}

    prompt["4"]["inputs"]["seed"] = 5
    _, saved, result = run(prompt, graph)
    assert "8" in result.cached
    assert saved[KEY] == saved["workflow"]["extra"][KEY] == {"8": text}
    assert result.outputs["8"]["text"] == [text]

    prompt["6"]["inputs"]["filename_prefix"] = "saved again"
    _, saved, result = run(prompt, graph)
    assert {"8", "4"} <= set(result.cached)
    assert saved["workflow"]["extra"][KEY] == {"8": text}

    # Of other words it holds those, also while the earlier result is still known.
    prompt["8"]["inputs"] |= {"text": "My own words.", "pinned": True}
    _, saved, _ = run(prompt, graph)
    assert saved["workflow"]["extra"][KEY] == {"8": "My own words."}
    # Without a workflow, as programs post prompts.
    _, saved, _ = run(prompt | {"6": {**prompt["6"], "inputs": prompt["6"]["inputs"] | {"filename_prefix": "api"}}})
    assert saved[KEY] == {"8": "My own words."} and "workflow" not in saved


def test_several_reasonings_of_one_node(run):
    """One that ran for each picture of a list: a paragraph each, and no more of them after another run."""
    prompt = edit()
    prompt["9"] = {"class_type": "LoadImage", "inputs": {"image": "tall.png"}}
    prompt["11"] = {"class_type": "ImageBatch", "inputs": {"image1": ["7", 0], "image2": ["9", 0]}}
    prompt["12"] = {"class_type": "RebatchImages", "inputs": {"images": ["11", 0], "batch_size": 1}}
    prompt["8"]["inputs"]["image1"] = ["12", 0]
    for tokens in (11, 10):
        prompt["8"]["inputs"]["max_new_tokens"] = tokens
        _, saved, result = run(prompt)
        texts = result.outputs["8"]["text"]
        assert len(texts) == 2 and saved[KEY]["8"] == "\n\n".join(texts)


@pytest.mark.parametrize("extra_data", [None, {}, {"extra_pnginfo": None}, {"extra_pnginfo": {"workflow": "?"}}])
def test_strange_extra_data_is_no_obstacle(server, extra_data):
    prompt = edit(prompt=f"Make it {extra_data}")
    ((_, content),) = server.image_files(server.run(prompt, extra_data=extra_data))
    assert json.loads(Image.open(io.BytesIO(content)).text[KEY]).keys() == {"8"}


@pytest.mark.parametrize("info", ["?", [1], {"workflow": {"extra": [1]}}], ids=str)
def test_reasoning_ends_well_whatever_stands_beside_the_prompt(server, info):
    prompt = edit(prompt=f"Make it {info}")
    result = server.run({key: prompt[key] for key in ("1", "7", "8")}, extra_data={"extra_pnginfo": info})
    assert result.outputs["8"]["text"]


def test_the_history_holds_the_reasoning(server):
    """The workflow of a run that is opened from the queue."""
    prompt = edit(prompt="Make the history green")
    result = server.run(prompt, extra_data={"extra_pnginfo": {"workflow": {"extra": {}}}})
    entry = server.http.get(f"{server.url}/history/{result.prompt_id}", timeout=60).json()[result.prompt_id]
    saved = entry["prompt"][3]["extra_pnginfo"]["workflow"]["extra"]
    assert saved == {KEY: {"8": result.outputs["8"]["text"][0]}}


def test_a_fingerprint_follows_what_a_node_computes():
    pack = load_pack()
    fingerprint = importlib.import_module(f"{pack.__name__}.nodes.comfy.metadata").fingerprint
    long = {str(i): {"class_type": "A", "inputs": {"x": [str(i + 1), 0]}} for i in range(5000)}
    long["5000"] = {"class_type": "B", "inputs": {"y": 1}}
    renamed = {f"n{key}": {**node, "inputs": {k: [f"n{v[0]}", 0] if isinstance(v, list) else v
               for k, v in node["inputs"].items()}} for key, node in long.items()}  # fmt: skip
    assert fingerprint(long, "0") == fingerprint(renamed, "n0") != fingerprint(long, "1")
    changed = {**long, "5000": {"class_type": "B", "inputs": {"y": 2}}}
    assert fingerprint(changed, "0") != fingerprint(long, "0")
    assert fingerprint({**long, "5000": {"class_type": "B", "inputs": {"y": 1.0}}}, "0") == fingerprint(long, "0")
    assert fingerprint({"1": {"class_type": "A", "inputs": {"x": ["1", 0], "y": ["2", 0]}}}, "1")


def test_a_batch_of_prompts(server):
    """All are queued before the first has reasoned; the others find its result cached."""
    prompts = [edit(prompt="Make the sky violet", max_new_tokens=200) for _ in range(3)]
    for seed, prompt in enumerate(prompts):
        prompt["4"]["inputs"]["seed"] = seed
    *ahead, last = prompts
    ids = [server.queue(prompt) for prompt in ahead]
    result = server.run(last)
    assert "8" in result.cached
    ((_, content),) = server.image_files(result)
    pictures = [content]
    for id in ids:
        result.outputs = server.outputs(id)
        pictures += [content for _, content in server.image_files(result)]
    texts = {json.loads(Image.open(io.BytesIO(content)).text[KEY])["8"] for content in pictures}
    assert len(pictures) == 3 and len(texts) == 1 and "" not in texts
