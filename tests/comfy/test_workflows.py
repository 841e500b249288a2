"""The shipped workflows through the queue of a real ComfyUI server, and the official pictures out of them."""

import json

import pytest
from graphs import WORKFLOWS, assert_close_pictures, to_api, workflow

NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("text_to_image", "t2i"),
        ("edit", "edit"),
        ("edit", "edit_other_size"),
        ("edit", "edit_small"),
        ("reason_then_draw", "cot_t2i"),
        ("reason_then_draw", "cot_t2i_short"),
        ("reason_then_edit", "cot_edit"),
    ],
)
def test_official_pictures(server, recorded, name, case):
    case, tensors = recorded(case)
    inputs = {key: case[key] for key in ("prompt", "width", "height", "steps")}
    prompt = workflow(name, **inputs)
    for node in prompt.values():
        if node["class_type"] == "InternVLUSampler":
            node["inputs"]["seed"] = case["seed"]
        elif node["class_type"] == "InternVLUReason":
            node["inputs"]["max_new_tokens"] = case["max_new_tokens"]
        elif node["class_type"] == "LoadImage":
            node["inputs"]["image"] = case["images"][0]
    result = server.run(prompt)
    (picture,) = server.images(result)
    assert_close_pictures(picture, tensors["images"][0])
    if "output_text" in case:
        assert case["output_text"][0] in list(server.texts(result))


@pytest.mark.parametrize("case", ["understand", "text_only", "text_system", "understand_beam"])
def test_official_answers(server, recorded, case):
    case, _ = recorded(case)
    prompt = workflow("ask", question=case["prompt"], max_new_tokens=case["max_new_tokens"])
    ask = prompt["8"]["inputs"]
    ask["num_beams"] = case.get("num_beams", 1)
    ask["system_prompt"] = case.get("system_prompt", "")
    if "images" not in case:
        del ask["image1"]
    assert case["output_text"][0] in list(server.texts(server.run(prompt)))


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_shipped(server, name):
    """Only made smaller and shorter, for the tests' sake."""
    prompt = workflow(name)
    for node in prompt.values():
        small = {"width": 192, "height": 144, "steps": 2, "max_new_tokens": 8}
        node["inputs"] |= {key: value for key, value in small.items() if key in node["inputs"]}
    result = server.run(prompt)
    assert [p.size for p in server.images(result)] == [] if name == "ask" else [(192, 144)]
    assert bool(list(server.texts(result))) == (name not in ("text_to_image", "edit"))


@pytest.mark.parametrize("name", NAMES)
def test_graph_and_api_format_agree(server, name):
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    assert to_api(graph, server.object_info()) == workflow(name)


def test_graphs_have_their_notes_and_groups():
    for name in NAMES:
        graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        assert any(node["type"] == "MarkdownNote" for node in graph["nodes"])
        assert graph["groups"]
        boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
        for i, (x, y, w, h) in enumerate(boxes):
            for other_x, other_y, other_w, other_h in boxes[:i]:
                apart = x >= other_x + other_w or other_x >= x + w or y >= other_y + other_h or other_y >= y + h
                assert apart, f"{name}: nodes overlap"
