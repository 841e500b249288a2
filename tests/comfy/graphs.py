"""The shipped workflows as the tests use them, and a second reading of the graph format."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"

VIRTUAL = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def workflow(name: str, **inputs) -> dict:
    """A shipped workflow in API format. inputs: {name: value} set on every node that has an input of that name."""
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    known = set()
    for node in prompt.values():
        for key in inputs.keys() & node["inputs"].keys():
            node["inputs"][key] = inputs[key]
            known.add(key)
    assert known == set(inputs), f"{name} has no input called {set(inputs) - known}"
    return prompt


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
    """API format of a graph, as the frontend would post it.

    object_info: the server's /object_info, which says what each widget value belongs to.
    """
    links = {link[0]: link for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in VIRTUAL:
            continue
        inputs = dict(zip(*widget_values(node, object_info[node["type"]]), strict=True))
        for socket in node["inputs"]:
            if socket.get("link") is not None:
                _, origin, slot, *_ = links[socket["link"]]
                inputs[socket["name"]] = [str(origin), slot]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"]}
    return prompt


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
            if options.get("control_after_generate"):
                values.pop(0)
            if options.get("image_upload"):
                values.pop()  # the upload button comes last
    assert not values, f"{node['type']} has widget values that its inputs do not explain: {values}"
    return names, kept
