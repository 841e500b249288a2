"""A model hub on this machine, as far as huggingface_hub asks it: a repository's list of files, and the files.

with FakeHub(folder) as hub:    # hub.url goes into HF_ENDPOINT; hub.requests lists what was asked
"""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from internvlu_core.checkpoints.hub import REPOSITORY, REVISION


class FakeHub:
    """Serves a folder as REPOSITORY at REVISION. Large files (safetensors) are redirected, as the real hub does.

    status: answer everything with it. delay: seconds before every answer. cut: {file: bytes after which the connection
    breaks, once}. published: {file: hash to publish in place of the real one}.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.status, self.delay, self.cut, self.published = None, 0, {}, {}
        self.requests: list[tuple[str, str | None, str | None]] = []  # (path, Range, Authorization)
        self.sent: dict[str, int] = {}  # bytes a file
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *args: None  # cancelled downloads hang up
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def listing(self) -> dict:
        siblings = []
        for name in self.files():
            content = (self.folder / name).read_bytes()
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            sibling = {"rfilename": name, "size": len(content), "blobId": self.published.get(name, blob)}
            if name.endswith(".safetensors"):
                digest = self.published.get(name, hashlib.sha256(content).hexdigest())
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": REVISION, "siblings": siblings}

    def answer(self, request: BaseHTTPRequestHandler):
        path = unquote(urlsplit(request.path).path)
        self.requests.append((path, request.headers.get("Range"), request.headers.get("Authorization")))
        time.sleep(self.delay)
        if self.status:
            return self.send(request, self.status, b'{"error": "no"}', {"X-Error-Message": "no"})
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            return self.send(request, 200, json.dumps(self.listing()).encode())
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/").removeprefix("/storage/")
        if name not in self.files():
            return self.send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if name.endswith(".safetensors") and not path.startswith("/storage/"):
            # localhost is another host than 127.0.0.1: a token must not go there.
            storage = f"http://localhost:{self.server.server_port}/storage/{name}"
            return self.send(request, 302, b"", {"Location": storage, "X-Repo-Commit": REVISION})
        content = (self.folder / name).read_bytes()
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        part = content[start:]
        end = self.cut.pop(name, len(part))
        self.sent[name] = self.sent.get(name, 0) + len(part[:end])
        self.send(request, 206 if start else 200, part, {**headers, "X-Repo-Commit": REVISION}, end)

    def send(self, request, status: int, body: bytes, headers=(), end: int | None = None):
        request.send_response(status)
        for key, value in dict(headers).items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        try:
            request.wfile.write(body[:end])
        except OSError:  # the other side has hung up
            request.close_connection = True
        if end is not None and end < len(body):
            request.close_connection = True
