"""A headless ComfyUI to talk to: started in a folder of its own, spoken to over its public HTTP and websocket API.

with ComfyServer(comfyui_dir, tmp_path, pack_dir) as server:
    result = server.run(prompt)             # prompt: API-format JSON as a dict
    pictures, texts = list(server.images(result)), list(server.texts(result))
"""

import asyncio
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import aiohttp
import psutil
import requests
from PIL import Image

from .environment import SHIM

PACK_NAME = "ComfyUI-InternVL-U"


class ComfyError(Exception):
    """ComfyUI refused a prompt or a node failed. Its cause (`__cause__`) shows the node's own traceback, if any."""

    def __init__(self, message, node_id=None, node_type=None, exception_message="", traceback=""):
        super().__init__(message)
        self.node_id = node_id
        self.node_type = node_type
        self.exception_message = exception_message
        self.traceback = traceback


class ComfyInterrupted(Exception):
    """The prompt was interrupted before its end."""


class ServerTraceback(Exception):
    """Carries a traceback of the server's process, so that a test report shows it."""


@dataclass
class Result:
    """What one prompt did: `outputs`, UI output by node id, and `events`, every websocket event as (type, data)."""

    prompt_id: str
    outputs: dict = field(default_factory=dict)
    events: list = field(default_factory=list)

    @property
    def progress(self):
        """(node id, value, max) of every progress report."""
        return [(data["node"], data["value"], data["max"]) for kind, data in self.events if kind == "progress"]

    @property
    def executed(self):
        """Ids of the nodes that ran, in order; a cached node did not."""
        return list(dict.fromkeys(data["node"] for kind, data in self.events if kind == "executing" and data["node"]))

    @property
    def cached(self):
        """Ids of the nodes whose results were still there from an earlier prompt."""
        return [node for kind, data in self.events if kind == "execution_cached" for node in data["nodes"]]


class ComfyServer:
    """A context manager; `url`, `log` and the folders under `base_dir` can be used inside it.

    `extra_args` are more command-line flags, `env` more environment variables, `extra_packs` more packs as
    {name: folder}. Entering it returns the server once it answers, and raises RuntimeError with the end of its log if
    it dies first or needs more than START_TIMEOUT seconds.
    """

    START_TIMEOUT = 600  # newer ComfyUIs load more nodes; one that dies is noticed at once

    def __init__(self, comfyui_dir, base_dir, pack_dir, extra_args=(), env=None, cpu=True, extra_packs=None):
        self.comfyui_dir, self.base_dir, self.pack_dir = (Path(d).resolve() for d in (comfyui_dir, base_dir, pack_dir))
        self.args = ["--cpu", *extra_args] if cpu else list(extra_args)
        self.env = env or {}
        self.packs = {PACK_NAME: self.pack_dir, **(extra_packs or {})}
        self.log = self.base_dir / "server.log"
        self.process = None
        self.http = requests.Session()
        self.http.trust_env = False  # no proxy for a server on this machine

    def __enter__(self):
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base_dir / name).mkdir(parents=True, exist_ok=True)
        for name, folder in self.packs.items():
            link_folder(Path(folder).resolve(), self.base_dir / "custom_nodes" / name)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port), *self.args]
        command += ["--base-directory", str(self.base_dir), "--disable-api-nodes"]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *self.packs]
        # Even with a base directory the default database is a file in ComfyUI's own folder.
        command += ["--database-url", "sqlite:///:memory:"]
        # Named in any case: a ComfyUI whose pinned frontend is not the installed one may fetch or install its own.
        if "--front-end-root" not in command and (frontend := _installed_frontend()):
            command += ["--front-end-root", str(frontend)]
        python_path = os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH")]))
        # The log is text in UTF-8 on every system.
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": python_path}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.comfyui_dir, env=env | self.env, stdout=log, stderr=log)
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info):
        self.stop()

    def stop(self):
        """Kills the server: nothing of it is worth a slow goodbye."""
        self.process.kill()
        self.process.wait()

    @property
    def pid(self) -> int:
        """Of the Python that runs ComfyUI. On Windows a venv's python.exe starts another one and waits for it."""
        started = psutil.Process(self.process.pid).children() if os.name == "nt" else []
        return started[0].pid if started else self.process.pid

    def log_tail(self, lines=40):
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _wait_until_up(self):
        deadline = time.monotonic() + self.START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with status {self.process.returncode}:\n{self.log_tail()}")
            try:
                if self.http.get(f"{self.url}/system_stats", timeout=10).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.1)
        raise RuntimeError(f"ComfyUI did not answer within {self.START_TIMEOUT} s:\n{self.log_tail()}")

    def _get(self, path, **params):
        response = self.http.get(f"{self.url}{path}", params=params, timeout=60)
        response.raise_for_status()
        return response

    def object_info(self, node=None):
        """Returns the description of one node, or a dict of all of them by id. Raises KeyError for an unknown node."""
        return self._get(f"/object_info/{node}").json()[node] if node else self._get("/object_info").json()

    def upload_image(self, path):
        """Returns the name under which LoadImage finds the picture."""
        with Path(path).open("rb") as file:
            files, data = {"image": (Path(path).name, file)}, {"overwrite": "true"}
            response = self.http.post(f"{self.url}/upload/image", files=files, data=data, timeout=60)
        response.raise_for_status()
        return response.json()["name"]

    def queue(self, prompt, client_id="", extra_data=None):
        """Returns the prompt's id at once. Raises ComfyError if the prompt, or any output node of it, is invalid."""
        body = {"prompt": prompt, "client_id": client_id, "extra_data": extra_data or {}}
        response = self.http.post(f"{self.url}/prompt", json=body, timeout=60)
        if response.status_code != 400:
            response.raise_for_status()
        answer = response.json()
        # With one valid and one invalid output ComfyUI answers 200 and runs half; no caller here wants half.
        if response.status_code == 400 or answer["node_errors"]:
            raise _invalid_prompt(answer)
        return answer["prompt_id"]

    def post(self, path, data):
        """Posts JSON to a route that answers with nothing of interest."""
        self.http.post(f"{self.url}{path}", json=data, timeout=60).raise_for_status()

    def interrupt(self):
        """Stops the running prompt; may be called from `on_event`."""
        self.post("/interrupt", {})

    def run(self, prompt, timeout=300, on_event=None, extra_data=None):
        """Runs a prompt to its end and returns its Result; `on_event(type, data)` sees every event as it arrives.

        Events of type "preview" carry an encoded picture as bytes. extra_data: what a browser posts beside the prompt.
        Raises ComfyError (invalid, or a node failed), ComfyInterrupted, TimeoutError (after interrupting the prompt),
        RuntimeError with the end of the log if the server went away.
        """
        return asyncio.run(self._run(prompt, timeout, on_event or (lambda kind, data: None), extra_data))

    async def _run(self, prompt, timeout, on_event, extra_data):
        client_id = uuid.uuid4().hex
        socket_url = f"{self.url}/ws?clientId={client_id}"
        # Connected before the prompt is posted: ComfyUI sends no event twice.
        async with aiohttp.ClientSession() as session, session.ws_connect(socket_url, max_msg_size=0) as websocket:
            result = Result(self.queue(prompt, client_id, extra_data))
            listening = asyncio.ensure_future(self._listen(websocket, result, on_event))
            done, _ = await asyncio.wait([listening], timeout=timeout)
            if not done:
                listening.cancel()
                self.interrupt()
                raise TimeoutError(f"prompt not done after {timeout} s; last event: {result.events[-1:]}")
            listening.result()
        for kind, data in result.events:
            if kind == "execution_error":
                raise _node_failed(data) from ServerTraceback("\n" + "".join(data["traceback"]))
            if kind == "execution_interrupted":
                raise ComfyInterrupted(f"interrupted in node {data['node_id']} ({data['node_type']})")
        result.outputs = self.outputs(result.prompt_id)
        return result

    def outputs(self, prompt_id):
        """What a prompt that is done has put out, by node."""
        return self._get(f"/history/{prompt_id}").json()[prompt_id]["outputs"]

    async def _listen(self, websocket, result, on_event):
        async for message in websocket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, data = _decode_binary(message.data)
            else:
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id", result.prompt_id) != result.prompt_id:
                    continue
            result.events.append((kind, data))
            on_event(kind, data)
            # The last event of every prompt, sent after its history has been written, however it ended.
            if kind == "executing" and data["node"] is None:
                return
        raise RuntimeError(f"ComfyUI closed the connection:\n{self.log_tail()}")

    def view(self, filename, subfolder="", type="output"):
        """Returns a picture's file as bytes; the arguments are those that a SaveImage output lists."""
        return self._get("/view", filename=filename, subfolder=subfolder, type=type).content

    def image_files(self, result):
        """Yields (subfolder/file name, bytes) of every picture that SaveImage and PreviewImage nodes wrote."""
        for output in result.outputs.values():
            for image in output.get("images", ()):
                content = self.view(image["filename"], image["subfolder"], image["type"])
                yield str(PurePosixPath(image["subfolder"], image["filename"])), content

    def images(self, result):
        """Yields the same pictures as PIL images."""
        for _, content in self.image_files(result):
            yield Image.open(io.BytesIO(content))

    def texts(self, result):
        """Yields every string of every "text" output."""
        for output in result.outputs.values():
            yield from output.get("text", ())


def free_port():
    """Returns a port that is free. Test processes beside each other get different ones: pytest-xdist numbers them."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port // 2 % count == number:  # half: Linux gives odd ports only
            return port


def link_folder(source, target):
    """Makes `source` visible as `target`: a symbolic link, or a copy where links need rights that a user lacks."""
    if target.is_symlink():
        target.unlink()
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        if os.name != "nt":
            raise
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", ".cache"), dirs_exist_ok=True)


def _installed_frontend():
    """Returns the folder of the installed frontend's pages, or None if there is none."""
    spec = importlib.util.find_spec("comfyui_frontend_package")
    return Path(spec.submodule_search_locations[0]) / "static" if spec else None


def _decode_binary(message):
    # Kind 1, the only one that our nodes cause at a client without feature flags; four bytes of file type.
    kind = int.from_bytes(message[:4], "big")
    return ("preview" if kind == 1 else f"binary {kind}"), message[8:]


def _invalid_prompt(answer):
    lines, first = [answer["error"]["message"]] if "error" in answer else [], None
    for node_id, node in answer["node_errors"].items():
        for error in node["errors"]:
            first = first or (node_id, node["class_type"], f"{error['message']}: {error['details']}")
            lines.append(f"node {node_id} ({node['class_type']}): {error['message']}: {error['details']}")
    return ComfyError("\n".join(lines), *(first or ()))


def _node_failed(data):
    message = data["exception_message"].strip()
    text = f"node {data['node_id']} ({data['node_type']}): {data['exception_type']}: {message}"
    return ComfyError(text, data["node_id"], data["node_type"], message, "".join(data["traceback"]))
