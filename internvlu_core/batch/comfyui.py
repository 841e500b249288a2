"""Rows through a workflow on ComfyUI servers, by the HTTP API that every ComfyUI has.

A column "TITLE.INPUT" of the requests sets that input of the node with that title. See docs/batch.md.
"""

import copy
import hashlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ..errors import InputError
from .engines import Lost
from .pictures import read_bytes
from .requests_file import Chunk, Row, integral
from .results import Result
from .worker import Work, describe, do_chunk

REQUEST_SECONDS = 60  # for one answer of a server, which may be busy
PICTURE_NODES = ("LoadImage", "LoadImageMask")
UPLOADS = "internvlu-batch"  # the folder in a server's input folder

Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Workflow:
    """A workflow in the API format. nodes: by id, as ComfyUI takes them. source: its file, for messages."""

    nodes: Prompt
    source: Path

    @classmethod
    def read(cls, path: Path) -> "Workflow":
        """Raises InputError if the file is no workflow in the API format."""
        try:
            nodes = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read the workflow {path}: {error}") from error
        good = isinstance(nodes, dict) and all(
            isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
            for node in nodes.values()
        )
        if not good or not nodes:
            raise InputError(f"{path} is no workflow in the API format: use Export (API) in ComfyUI's menu")
        return cls(nodes, path)

    def place(self, column: str) -> tuple[str, str]:
        """(node id, input) that a column "TITLE.INPUT" means: by title or, if no node has it, by class.

        Raises InputError if there is no such node or input, or more than one such node.
        """
        title, _, name = column.rpartition(".")
        named = [key for key, node in self.nodes.items() if node.get("_meta", {}).get("title") == title]
        named = named or [key for key, node in self.nodes.items() if node["class_type"] == title]
        if len(named) != 1:
            count = "no node is" if not named else f"{len(named)} nodes are"
            raise InputError(f"the column {column!r} sets an input of a node, but {count} called {title!r}")
        inputs = self.nodes[named[0]]["inputs"]
        if name not in inputs:
            raise InputError(f"the node {title!r} has no input {name!r}; it has {', '.join(inputs) or 'none'}")
        return named[0], name

    def places(self, columns: frozenset[str]) -> dict[str, tuple[str, str]]:
        """{column: its place} of the columns with a dot. Raises InputError as place does, and if there is none."""
        places = {column: self.place(column) for column in sorted(columns) if "." in column}
        if not places:
            raise InputError(
                f"no column of the requests is called TITLE.INPUT, so each row would run {self.source} alike"
            )
        return places


class ComfyWorker:
    """One server, as a worker of run_threads. places: see Workflow.places."""

    def __init__(self, work: Work, url: str, workflow: Workflow, places: dict[str, tuple[str, str]]):
        self.work, self.workflow, self.places = work, workflow, places
        self.server = Server(url)

    def __call__(self, chunk: Chunk) -> tuple[int, int]:
        return do_chunk(self.work, chunk, lambda rows: [self.result(row) for row in rows])

    def result(self, row: Row) -> Result:
        """What the workflow makes of a row. Raises Lost if the server is not there any more."""
        texts = {name: value for name in ("task", "prompt") if isinstance(value := row.values.get(name), str)}
        result = Result(row.index, row.id, **texts, values=row.values, error=row.error)
        began = time.perf_counter()
        if row.error is None:
            try:
                result.text, result.images = self.server.run(self._fill(row))
            except Lost:
                raise
            except Exception as error:  # of this row alone
                result.error = describe(error)
        result.seconds = time.perf_counter() - began
        return result

    def _fill(self, row: Row) -> Prompt:
        nodes = copy.deepcopy(self.workflow.nodes)
        for column, (key, name) in self.places.items():
            if column in row.values:
                node, value = nodes[key], row.values[column]
                picture = node["class_type"] in PICTURE_NODES and name == "image"
                # A whole number where the workflow has one, since pandas makes floats of integers.
                number = isinstance(node["inputs"][name], int)
                node["inputs"][name] = self._picture(value) if picture else integral(value) if number else value
        return nodes

    def _picture(self, value) -> str:
        """The name under which the server finds a picture, which is sent there if it is not one of its own."""
        folder = self.work.requests.parent
        if isinstance(value, str) and ":" not in value and not (folder / value).exists():
            return value
        content, _ = read_bytes(value, folder, self.work.allow_urls)
        return self.server.upload(content)


class Server:
    """ComfyUI at an address. Its methods raise Lost if it is gone, InputError for what it refuses."""

    def __init__(self, url: str):
        self.url, self.client = url.rstrip("/"), uuid.uuid4().hex
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # servers are near
        self.uploaded: set[str] = set()

    def check(self):
        """Raises InputError unless a ComfyUI answers."""
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"{self.url} is not the address of a ComfyUI: it must begin with http:// or https://")
        try:
            known = json.loads(self._send("/system_stats"))
        except (Lost, InputError, ValueError) as error:
            raise InputError(f"no ComfyUI answers at {self.url}: {error}") from error
        if "system" not in known:
            raise InputError(f"what answers at {self.url} is no ComfyUI")

    def run(self, nodes: Prompt) -> tuple[str | None, list[bytes]]:
        """(texts of the outputs, one after the other; their pictures) of a workflow."""
        answer = json.loads(self._send("/prompt", {"prompt": nodes, "client_id": self.client}))
        if answer.get("node_errors"):
            raise InputError(_refusal(answer))
        history = self._wait(answer["prompt_id"])
        texts, pictures, previews = [], [], []
        for _, output in sorted(history["outputs"].items(), key=lambda item: (len(item[0]), item[0])):
            found = output.get("text", ())
            texts += [found] if isinstance(found, str) else [text for text in found if isinstance(text, str)]
            for image in output.get("images", ()):
                (pictures if image.get("type") == "output" else previews).append(image)
        contents = [self._send("/view?" + urllib.parse.urlencode(image)) for image in pictures or previews]
        return "\n".join(texts) if texts else None, contents

    def upload(self, content: bytes) -> str:
        """Send a picture, once. Returns the name under which LoadImage finds it."""
        name = hashlib.sha256(content).hexdigest()[:32]
        if name not in self.uploaded:
            mark = uuid.uuid4().hex
            fields = (("subfolder", UPLOADS), ("overwrite", "true"))
            head = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields]
            head += [f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n']
            head += ["Content-Type: application/octet-stream\r\n\r\n"]
            body = "".join(head).encode() + content + f"\r\n--{mark}--\r\n".encode()
            self._send("/upload/image", body, f"multipart/form-data; boundary={mark}")
            self.uploaded.add(name)
        return f"{UPLOADS}/{name}"

    def _wait(self, prompt: str) -> dict[str, Any]:
        """The history of a prompt, once it has ended."""
        pause = 0.05
        while True:
            history = json.loads(self._send(f"/history/{prompt}")).get(prompt)
            if history:
                break
            queue = json.loads(self._send("/queue"))
            known = [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])]
            # Between the two questions it may have ended. A server that was started anew does not know it.
            if prompt not in known and prompt not in json.loads(self._send(f"/history/{prompt}")):
                raise Lost(f"{self.url} has lost its queue")
            time.sleep(pause)
            pause = min(1.0, pause * 1.3)
        status = history.get("status") or {}
        if status.get("status_str") == "error":
            raise InputError(_failure(status.get("messages", ())))
        return history

    def _send(self, path: str, body: dict | bytes | None = None, kind: str = "application/json") -> bytes:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind} if data else {})
        try:
            with self.opener.open(request, timeout=REQUEST_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            try:
                said = _refusal(json.loads(said))
            except (ValueError, TypeError, KeyError, AttributeError):
                said = f"HTTP {error.code} {said[:200]}"
            raise InputError(f"{self.url} refused: {said}") from error
        except (OSError, HTTPException) as error:
            raise Lost(f"{self.url}: {getattr(error, 'reason', None) or error}") from error


def _refusal(answer: dict[str, Any]) -> str:
    """What ComfyUI says about a prompt that it does not take."""
    lines = [answer["error"]["message"]] if isinstance(answer.get("error"), dict) else []
    for key, node in answer.get("node_errors", {}).items():
        said = (f"{error['message']} ({error['details']})" for error in node["errors"])
        lines += [f"node {key} ({node['class_type']}): {one}" for one in said]
    if not lines:
        raise KeyError("error")
    return "; ".join(lines)


def _failure(messages) -> str:
    """The error of a prompt that failed."""
    for kind, data in messages:
        if kind == "execution_error":
            return f"node {data['node_id']} ({data['node_type']}): {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"interrupted in node {data['node_id']} ({data['node_type']})"
    return "the workflow failed"
