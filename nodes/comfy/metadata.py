"""The reasoning that a picture was drawn with, in what ComfyUI saves with the picture.

ComfyUI writes a prompt's `extra_pnginfo`, which came with it from the browser, into the pictures that the prompt saves.
When it was posted there was no reasoning yet, so it is added here: under KEY, and in the workflow's `extra`, where our
script finds it when the picture is opened.
"""

import hashlib
import json
from collections import OrderedDict

from server import PromptServer

KEY = "internvlu_reasoning"  # → {id of the node as in the prompt: text}
REMEMBERED = 256  # texts of earlier runs

NODE = "InternVLUReason"
_texts: OrderedDict[str, str] = OrderedDict()  # by what a node computes them from
_newest: tuple | None = None  # the prompt's extra_pnginfo and the node that wrote last


def install():
    """A node whose result is cached does not run: its text is added when a prompt arrives."""
    PromptServer.instance.add_on_prompt_handler(add_known)


def add_known(data: dict) -> dict:
    """Add what is known of a posted prompt, in place. A node that runs later puts what it has written instead."""
    prompt = data.get("prompt")
    if not isinstance(prompt, dict):
        return data
    nodes = [id for id, node in prompt.items() if isinstance(node, dict) and node.get("class_type") == NODE]
    if nodes:
        extra = data["extra_data"] = data.get("extra_data") or {}
        info = extra["extra_pnginfo"] = extra.get("extra_pnginfo") or {}
        if not isinstance(info, dict):
            return data
        texts = {id: _texts[key] for id in nodes if (key := fingerprint(prompt, id)) in _texts}
        _write(info, texts)
    return data


def add(prompt: dict, info: dict | None, node_id: str, text: str):
    """Add what a node has written. One that runs for each item of a list adds a paragraph each time."""
    global _newest
    if not isinstance(info, dict):
        return
    known = info.get(KEY) or {}
    again = _newest is not None and _newest[0] is info and _newest[1] == node_id
    _newest = info, node_id
    text = f"{known[node_id]}\n\n{text}" if again else text
    _write(info, {**known, node_id: text})
    _texts[fingerprint(prompt, node_id)] = text
    while len(_texts) > REMEMBERED:
        _texts.popitem(last=False)
    _tell_queue()


def _tell_queue():
    """A prompt that was queued before this text was there finds the node cached, as those of a batch do.

    The running one too: the queue has a copy of it, which goes into the history.
    """
    queue = PromptServer.instance.prompt_queue
    with queue.mutex:
        for _, _, prompt, extra_data, *_ in [*queue.queue, *queue.currently_running.values()]:
            add_known({"prompt": prompt, "extra_data": extra_data})


def _write(info: dict, texts: dict[str, str]):
    info[KEY] = texts
    if isinstance(workflow := info.get("workflow"), dict) and isinstance(extra := workflow.get("extra") or {}, dict):
        workflow["extra"] = {**extra, KEY: texts}


def fingerprint(prompt: dict, node_id: str) -> str:
    """Equal for nodes that compute the same, in any prompt and under any id."""
    known: dict[str, str] = {}  # "" while what the node depends on is looked at
    stack = [node_id]
    while stack:
        id = stack[-1]
        node = prompt.get(id) or {}
        inputs = node.get("inputs") or {}
        # Nodes of a loop, which ComfyUI refuses later, are known as "".
        unknown = [value[0] for value in inputs.values() if _is_link(value) and value[0] not in known]
        if unknown and not known.get(id):
            known.setdefault(id, "")
            stack += unknown
            continue
        stack.pop()
        if not known.get(id):
            values = {key: [known[v[0]], v[1]] if _is_link(v) else _plain(v) for key, v in inputs.items()}
            content = json.dumps([node.get("class_type"), values], sort_keys=True, default=str)
            known[id] = hashlib.sha256(content.encode()).hexdigest()
    return known[node_id]


def _plain(value):
    """A number as the browser posts it: ComfyUI makes 1 of a float input 1.0 before a node runs."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_link(value) -> bool:
    """As ComfyUI tells a link from a value."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
