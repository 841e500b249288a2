"""The shipped workflows through the queue of a real ComfyUI server, and the official pictures out of them."""

import importlib
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from support.comfy_server import ComfyError
from support.described_workflows import SHOWN_ONLY, SUBGRAPHS
from support.described_workflows import WORKFLOWS as DESCRIBED
from support.inprocess import PACK, load_pack
from support.workflows import (
    WORKFLOWS,
    assert_close_pictures,
    blueprint_to_api,
    is_for_this,
    picture_of,
    prompt_nodes,
    shipped,
    to_api,
    workflow,
)

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


@pytest.mark.parametrize("name", [name for name in NAMES if "versions" not in DESCRIBED[name]])
def test_runs_as_shipped(server, name, lora):
    """Only made smaller and shorter, for the tests' sake. The templates of training are run in test_training.py."""
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


def graph_of(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{DESCRIBED[name]['title']}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_graph_and_api_format_agree(server, name):
    if not is_for_this(name, server.object_info()):
        return  # its other version is, and is compared
    expected = shipped(name)
    for node_id, values in DESCRIBED[name].get("bypassed", {}).items():
        expected[node_id]["inputs"] |= values
    made = to_api(graph_of(name), server.object_info())
    assert {key: node for key, node in made.items() if node["class_type"] not in SHOWN_ONLY} == expected


def test_each_workflow_has_its_files():
    titles = {spec["title"] for spec in DESCRIBED.values()}
    assert set(NAMES) == set(DESCRIBED)
    for ending in ("json", "jpg"):
        assert {path.stem for path in WORKFLOWS.glob(f"*.{ending}")} == titles
    for title in titles:
        with Image.open(WORKFLOWS / f"{title}.jpg") as card:
            assert card.size == (400, 400)
    assert {path.stem for path in (WORKFLOWS.parent / "subgraphs").glob("*.json")} == set(SUBGRAPHS)
    assert all("InternVL-U" in title for title in titles)


@pytest.mark.parametrize("title", SUBGRAPHS)
def test_blueprints_run(server, title):
    blueprint = json.loads((WORKFLOWS.parent / "subgraphs" / f"{title}.json").read_text(encoding="utf-8"))
    prompt, output = blueprint_to_api(blueprint, server.object_info(), {"image": ["90", 0]})
    prompt["90"] = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    (node,) = blueprint["nodes"]
    if node["outputs"][0]["type"] == "STRING":
        prompt["91"] = {"class_type": "PreviewAny", "inputs": {"source": output}}
    elif node["outputs"][0]["type"] == "MASK":
        prompt["91"] = {"class_type": "MaskPreview", "inputs": {"mask": output}}
    else:
        prompt["91"] = {"class_type": "SaveImage", "inputs": {"images": output, "filename_prefix": "blueprint"}}
    for inner in prompt.values():
        small = {"width": 192, "height": 144, "steps": 2, "max_new_tokens": 8}
        inner["inputs"] |= {key: value for key, value in small.items() if key in inner["inputs"]}
    result = server.run(prompt)
    size = (192, 144) if "width" in {socket["name"] for socket in node["inputs"]} else (200, 150)
    if node["outputs"][0]["type"] != "STRING":
        assert picture_of(server, result, "91").size == size
    # What is shown outside is there inside; and a value is said once, inside.
    inside = {(str(n["id"]), key) for n in prompt_nodes(blueprint) for key in prompt[str(n["id"])]["inputs"]}
    own = {tuple(widget) for widget in node["properties"]["proxyWidgets"]}
    assert {widget for widget in own if widget[1] != "control_after_generate"} <= inside
    assert node["widgets_values"] == []
    served = server.http.get(f"{server.url}/global_subgraphs", timeout=60).json().values()
    assert title in {entry["name"] for entry in served}


def test_no_shipped_node_is_deprecated(server):
    nodes = server.object_info()
    used = {node["class_type"] for name in NAMES for node in shipped(name).values()}
    assert not [kind for kind in used if nodes[kind].get("deprecated")]
    # Deprecated since ComfyUI 0.3.75.
    assert not used & {"ImageBatch", "MergeImageLists"}


def test_graphs_have_their_notes():
    for name in NAMES:
        graph = graph_of(name)
        (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
        if graph.get("definitions"):
            needed = [] if name == "toy_world" else ["huggingface.co/InternVL-U/InternVL-U", "internvl_u/", "GB"]
            assert all(word in note for word in needed)
        else:
            assert graph["groups"]
        boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
        for i, (x, y, w, h) in enumerate(boxes):
            for other_x, other_y, other_w, other_h in boxes[:i]:
                apart = x >= other_x + other_w or other_x >= x + w or y >= other_y + other_h or other_y >= y + h
                assert apart, f"{name}: nodes overlap"


def test_samples_are_put_into_the_input_folder(server, monkeypatch, tmp_path, caplog):
    """Those that are not there; a picture of the user's is left alone, and a folder that takes none is no error."""
    load_pack()
    samples = importlib.import_module(f"{PACK}.nodes.comfy.sample_pictures")
    loads = [n for name in NAMES for n in shipped(name).values() if n["class_type"] in ("LoadImage", "LoadImageMask")]
    named = {node["inputs"]["image"] for node in loads}
    target = tmp_path / "input"
    target.mkdir()
    (target / "internvlu_poster.png").write_bytes(b"mine")
    monkeypatch.setattr(samples.folder_paths, "get_input_directory", lambda: str(target))
    samples.install()
    assert named <= {path.name for path in target.iterdir()}
    assert (target / "internvlu_poster.png").read_bytes() == b"mine"
    assert {path.name for path in (target / samples.CAPTION).iterdir()} == {"landscape.png", "poster.png"}
    moons = {f"{number:02}.{ending}" for number in range(1, 11) for ending in ("png", "txt")}
    assert {path.name for path in (target / samples.MOONS).iterdir()} == moons
    (server.base_dir / "input" / "internvlu_landscape.png").stat()  # the server's pack did so when it was loaded
    samples.install()
    (tmp_path / "file").touch()
    monkeypatch.setattr(samples.folder_paths, "get_input_directory", lambda: str(tmp_path / "file"))
    with caplog.at_level("WARNING"):
        samples.install()
    assert "could not be copied" in caplog.text


def test_only_the_checkpoint_is_accused(server):
    """Of a loader whose checkpoint is not there."""
    prompt = workflow("text_to_image", checkpoint="elsewhere")
    answer = server.http.post(f"{server.url}/prompt", json={"prompt": prompt}, timeout=60).json()
    (error,) = answer["node_errors"]["1"]["errors"]
    assert error["extra_info"]["input_name"] == "checkpoint" and "'elsewhere' is not in" in error["details"]
    with pytest.raises(ComfyError, match=r"weight_dtype.*int3"):
        server.run(workflow("text_to_image", weight_dtype="int3"))
