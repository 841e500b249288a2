"""The shipped workflows through the queue of a real ComfyUI server, and the official pictures out of them."""

import json

import pytest
import torch
from graphs import (
    WORKFLOWS,
    assert_close_pictures,
    blueprint_to_api,
    picture_of,
    prompt_nodes,
    to_api,
    workflow,
)
from safetensors.torch import save_file

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
    prompt = workflow(name, prompt=case["prompt"], steps=case["steps"], seed=case["seed"])
    for node in prompt.values():
        if node["class_type"] == "InternVLUReason":
            node["inputs"] |= {"max_new_tokens": case["max_new_tokens"], "seed": 0}
        elif node["class_type"] == "LoadImage":
            node["inputs"]["image"] = case["images"][0]
    # The size is the recording's own, instead of the one that the workflow would choose for the picture.
    size = {"width": case["width"], "height": case["height"], "batch_size": 1}
    prompt["20"] = {"class_type": "InternVLUEmptyLatent", "inputs": size}
    prompt["4"]["inputs"]["latent_image"] = ["20", 0]
    prompt["6"]["inputs"]["images"] = ["5", 0]
    result = server.run(prompt)
    assert_close_pictures(picture_of(server, result, "6"), tensors["images"][0])
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
def test_runs_as_shipped(server, name, lora):
    """Only made smaller and shorter, for the tests' sake."""
    prompt = workflow(name)
    for node in prompt.values():
        small = {"width": 192, "height": 144, "steps": 2, "max_new_tokens": 8}
        node["inputs"] |= {key: value for key, value in small.items() if key in node["inputs"]}
    result = server.run(prompt)
    restored = "10" in prompt and prompt["10"]["class_type"] == "InternVLUEditRestore"
    enlarged = {"second_pass": 2, "toy_world": 6}.get(name, 1)
    size = (200, 150) if restored else (192 * enlarged, 144 * enlarged)
    # find_objects: the picture with boxes, and their mask.
    expected = [size] if "6" in prompt else [(200, 150)] * 2 if name == "find_objects" else []
    assert [p.size for p in server.images(result)] == expected
    texts = list(server.texts(result))
    kinds = {node["class_type"] for node in prompt.values()}
    assert bool(texts) == bool(kinds & {"InternVLUReason", "InternVLUAsk"})
    if name == "caption_batch":
        assert len(texts) == 2 and len(set(texts)) == 2


@pytest.fixture(scope="module")
def lora(server):
    """The adapter that the lora workflow names, of rank 1 on one projection of each network."""
    shapes = {
        "diffusion_model.transformer_blocks.0.attn.to_v": (64, 64),
        "text_encoders.language_model.model.layers.0.mlp.down_proj": (64, 128),
    }
    tensors = {}
    for name, (out, size) in shapes.items():
        tensors |= {f"{name}.lora_A.weight": torch.ones(1, size), f"{name}.lora_B.weight": torch.ones(out, 1)}
    folder = server.base_dir / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "internvl_u_lora.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_graph_and_api_format_agree(server, name):
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    assert to_api(graph, server.object_info()) == workflow(name)


@pytest.mark.parametrize(("name", "size"), [("InternVL-U Text to Image", (192, 144)), ("InternVL-U Edit", (200, 150))])
def test_blueprints_run(server, name, size):
    blueprint = json.loads((WORKFLOWS.parent / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    prompt, output = blueprint_to_api(blueprint, server.object_info(), {"image1": ["90", 0]})
    prompt["90"] = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    prompt["91"] = {"class_type": "SaveImage", "inputs": {"images": output, "filename_prefix": "blueprint"}}
    prompt["4"]["inputs"]["steps"] = 2
    if "width" in prompt["3"]["inputs"]:
        prompt["3"]["inputs"] |= {"width": 192, "height": 144}
    assert [picture.size for picture in server.images(server.run(prompt))] == [size]
    (node,) = blueprint["nodes"]
    inside = {(str(n["id"]), key) for n in prompt_nodes(blueprint) for key in prompt[str(n["id"])]["inputs"]}
    assert {tuple(widget) for widget in node["properties"]["proxyWidgets"]} <= inside
    served = server.http.get(f"{server.url}/global_subgraphs", timeout=60).json().values()
    assert name in {entry["name"] for entry in served}


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
