"""The shipped workflows as the tests use them, and a second reading of the graph format."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from .described_workflows import WORKFLOWS as DESCRIBED

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"

VIRTUAL = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


# Small pictures for the tests' sake, of tests/pictures/, for the samples that the workflows name.
PICTURES = {
    "internvlu_landscape.png": "photo.png",
    "internvlu_poster.png": "tall.png",
    "internvlu_house_mask.png": "mask.png",
}


def shipped(name: str) -> dict:
    """A shipped workflow in API format, as it is."""
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def fits(prompt: dict, object_info: dict) -> bool:
    """Whether each of ComfyUI's own nodes has all inputs that this ComfyUI requires of it, and no other ones.

    object_info: the server's /object_info.
    """
    for node in prompt.values():
        known = object_info[node["class_type"]]["input"]
        required, given = set(known.get("required", ())), set(node["inputs"])
        ours = node["class_type"].startswith("InternVLU")  # whose inputs a description may leave at their defaults
        if not (ours or required <= given <= required | set(known.get("optional", ()))):
            return False
    return True


def is_for_this(name: str, object_info: dict) -> bool:
    """Whether a shipped workflow is for this ComfyUI. If it is not, another version of it must be."""
    versions = DESCRIBED[name].get("versions")
    same = [other for other, spec in DESCRIBED.items() if versions and spec.get("versions") == versions] or [name]
    fitting = [other for other in same if fits(DESCRIBED[other]["prompt"], object_info)]
    assert len(fitting) == 1, f"of {same}, {fitting} fit this ComfyUI"
    return fitting == [name]


def workflow(name: str, /, **inputs) -> dict:
    """A shipped workflow in API format, with small pictures, and with these inputs, see change."""
    prompt = shipped(name)
    for node in prompt.values():
        if node["class_type"] in ("LoadImage", "LoadImageMask"):
            node["inputs"]["image"] = PICTURES.get(node["inputs"]["image"], node["inputs"]["image"])
    change(prompt, **inputs)
    return prompt


def change(prompt: dict, /, **inputs):
    """inputs: {name: value} set on every node that has a widget of that name; links stay."""
    known = set()
    for node in prompt.values():
        for key in inputs.keys() & node["inputs"].keys():
            if not isinstance(node["inputs"][key], list):
                node["inputs"][key] = inputs[key]
                known.add(key)
    assert known == set(inputs), f"the workflow has no input called {set(inputs) - known}"


def assert_close_pictures(picture, expected):
    """Within 2 of 256 levels for 99.9% of the values. expected: uint8 [H, W, 3]."""
    actual = np.asarray(picture.convert("RGB")).astype(int)
    assert actual.shape == tuple(expected.shape)
    difference = np.abs(actual - np.asarray(expected).astype(int))
    assert (difference <= 2).mean() >= 0.999, f"largest difference {difference.max()} levels"


def picture_of(server, result, node: str) -> Image.Image:
    """What the SaveImage or PreviewImage node wrote, RGB."""
    image = result.outputs[node]["images"][0]
    return Image.open(io.BytesIO(server.view(image["filename"], image["subfolder"], image["type"]))).convert("RGB")


def to_api(graph: dict, object_info: dict) -> dict:
    """API format of a graph, as the frontend would post it; nodes in subgraphs keep the ids that they have there.

    object_info: the server's /object_info, which says what each widget value belongs to.
    """
    origins = {link: [str(origin), slot] for link, origin, slot, *_ in graph["links"]}
    subgraphs = {subgraph["id"]: subgraph for subgraph in graph.get("definitions", {}).get("subgraphs", ())}
    prompt, outputs = {}, {}
    for node in filter(drawn, graph["nodes"]):
        if node["type"] not in subgraphs:
            prompt[str(node["id"])] = node_to_api(node, origins, object_info)
            continue
        outer = {socket["name"]: origins.get(socket["link"]) for socket in node["inputs"]}
        inner, inner_origins = inside_to_api(subgraphs[node["type"]], object_info, outer)
        prompt |= inner
        for slot, socket in enumerate(subgraphs[node["type"]]["outputs"]):
            outputs[str(node["id"]), slot] = inner_origins[socket["linkIds"][0]]
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = outputs.get(tuple(value), value)
    return prompt


def inside_to_api(subgraph: dict, object_info: dict, outer: dict) -> tuple[dict, dict]:
    """API format of the nodes in a subgraph, and {link in it: [node id, slot] that it comes from}.

    outer: {name of a subgraph input: [node id, slot] connected there, or None}.
    """
    origins = {link["id"]: [str(link["origin_id"]), link["origin_slot"]] for link in subgraph["links"]}
    for socket in subgraph["inputs"]:
        origins |= dict.fromkeys(socket["linkIds"], outer.get(socket["name"]))
    nodes = filter(drawn, subgraph["nodes"])
    return {str(node["id"]): node_to_api(node, origins, object_info) for node in nodes}, origins


def blueprint_to_api(blueprint: dict, object_info: dict, inputs: dict) -> tuple[dict, list]:
    """The inside of a subgraph blueprint in API format, and where its first output comes from.

    inputs: {name of a subgraph input: [node id, slot] to connect there}.
    """
    subgraph = blueprint["definitions"]["subgraphs"][0]
    prompt, origins = inside_to_api(subgraph, object_info, inputs)
    return prompt, origins[subgraph["outputs"][0]["linkIds"][0]]


def prompt_nodes(blueprint: dict) -> list[dict]:
    """The nodes inside."""
    return [node for node in blueprint["definitions"]["subgraphs"][0]["nodes"] if drawn(node)]


def drawn(node: dict) -> bool:
    """Whether a node is part of the prompt, not only of the picture."""
    return node["type"] not in VIRTUAL


def node_to_api(node: dict, origins: dict, object_info: dict) -> dict:
    """origins: {link: [node id, slot] that it comes from}."""
    inputs = dict(zip(*widget_values(node, object_info[node["type"]]), strict=True))
    connected = (socket for socket in node["inputs"] if socket.get("link") is not None)
    # Not connected outside, a widget that a subgraph shows keeps its value.
    inputs |= {socket["name"]: origins[socket["link"]] for socket in connected if origins[socket["link"]]}
    return {"inputs": inputs, "class_type": node["type"]}


def widget_values(node: dict, info: dict) -> tuple[list[str], list]:
    """Names and values of a node's widgets; the values that only the browser uses are left out."""
    names, values = [], list(node.get("widgets_values") or [])
    kept = []
    for section in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(section, {}).items():
            options = options[0] if options else {}
            if not (isinstance(kind, list) or kind in WIDGETS) or options.get("forceInput"):
                continue
            names.append(name)
            kept.append(values.pop(0))
            if options.get("control_after_generate") or name in ("seed", "noise_seed"):  # as the frontend does
                values.pop(0)
            if options.get("image_upload"):
                values.pop()  # the upload button comes last
    assert not values, f"{node['type']} has widget values that its inputs do not explain: {values}"
    return names, kept
