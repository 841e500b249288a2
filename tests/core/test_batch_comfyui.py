"""`internvlu batch --comfyui`: rows through a workflow, against servers that answer as ComfyUI does."""

import http.server
import json
import threading
from email import message_from_bytes
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from internvlu_core import InputError
from internvlu_core.batch import BatchOptions, run_batch
from internvlu_core.batch.comfyui import Workflow

WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "Load Image"}},
    "2": {"class_type": "Encode", "inputs": {"text": "", "seed": 0, "image": ["1", 0]}, "_meta": {"title": "My v1.0"}},
    "3": {"class_type": "Save", "inputs": {"images": ["2", 0]}},
    "4": {"class_type": "Show", "inputs": {}, "_meta": {"title": "Show"}},
    "5": {"class_type": "Show", "inputs": {}, "_meta": {"title": "Show"}},
}


class FakeComfy(http.server.ThreadingHTTPServer):
    """A server whose workflow makes a text and a picture of its inputs. dies: at the prompt of this number."""

    daemon_threads = True

    def __init__(self, dies: int | None = None, forgets: bool = False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.dies, self.forgets = dies, forgets
        self.prompts, self.uploads = [], {}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """ComfyUI's routes that a client needs."""

    def do_GET(self):
        url = urlsplit(self.path)
        query, prompts = {k: v[0] for k, v in parse_qs(url.query).items()}, self.server.prompts
        if url.path == "/system_stats":
            self.reply({"system": {}})
        elif url.path == "/queue":
            self.reply({"queue_running": [], "queue_pending": []})
        elif url.path == "/view":
            self.reply(query["filename"].encode())
        elif url.path.startswith("/history/"):
            number = int(url.path.rpartition("/")[2])
            self.reply({} if self.server.forgets else {str(number): history(prompts[number])})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            parts = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\n\n" + body)
            fields = {part.get_param("name", header="Content-Disposition"): part for part in parts.get_payload()}
            name = fields["image"].get_filename()
            self.server.uploads[name] = fields["image"].get_payload(decode=True)
            self.reply({"name": name, "subfolder": fields["subfolder"].get_payload(), "type": "input"})
            return
        if len(self.server.prompts) == self.server.dies:
            self.server.server_close()
            self.connection.close()
            return
        nodes = json.loads(body)["prompt"]
        if nodes["2"]["inputs"]["text"] == "refuse":
            error = {"message": "Value not in list", "details": "text"}
            node = {"class_type": "Encode", "errors": [error]}
            self.reply({"error": {"message": "Invalid prompt"}, "node_errors": {"2": node}}, 400)
            return
        self.server.prompts.append(nodes)
        self.reply({"prompt_id": str(len(self.server.prompts) - 1), "node_errors": {}})

    def reply(self, content: dict | bytes, status: int = 200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    def log_message(self, *args):
        pass


def history(nodes: dict) -> dict:
    inputs = nodes["2"]["inputs"]
    if inputs["text"] == "fail":
        data = {"node_id": "2", "node_type": "Encode", "exception_message": "it broke\n"}
        return {"outputs": {}, "status": {"status_str": "error", "messages": [["execution_error", data]]}}
    name = f"{inputs['text']} {inputs['seed']} {nodes['1']['inputs']['image']}"
    preview, saved = ({"filename": n, "subfolder": "", "type": t} for n, t in (("no", "temp"), (name, "output")))
    outputs = {"10": {"text": ["second"]}, "3": {"images": [preview, saved]}, "4": {"text": [inputs["text"]]}}
    return {"outputs": outputs, "status": {"status_str": "success", "messages": []}}


@pytest.fixture
def workflow(tmp_path) -> Path:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(WORKFLOW))
    return path


def run(tmp_path: Path, workflow: Path, *servers: FakeComfy, rows: list | None = None, chunk: int = 1):
    requests = tmp_path / "r.jsonl"
    if rows:
        requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    urls = tuple(server.url for server in servers)
    return run_batch(BatchOptions(requests, tmp_path / "out", comfyui=urls, workflow=workflow, chunk=chunk))


def read(tmp_path: Path) -> dict[str, dict]:
    parts = sorted((tmp_path / "out").glob("part-*"))
    rows = pa.concat_tables(map(parquet.read_table, parts)).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def test_columns_set_inputs(tmp_path, workflow):
    """By title or class; pictures are sent, names of the server's own stay; the rest is carried."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n--\r\n")
    rows = [
        {"id": "a", "My v1.0.text": "one", "My v1.0.seed": 3.0, "LoadImage.image": "a.png", "tag": 1},
        {"id": "b", "My v1.0.text": "two", "LoadImage.image": "there.png", "prompt": "said"},
        {"id": "c", "My v1.0.text": "fail"},
        {"id": "d", "My v1.0.text": "refuse"},
        {"id": "e", "My v1.0.text": "x", "LoadImage.image": "http://127.0.0.1/a.png"},
    ]
    server = FakeComfy()
    assert run(tmp_path, workflow, server, rows=rows, chunk=3).errors == 3
    found = read(tmp_path)
    ((name, content),) = server.uploads.items()
    assert content == b"\x89PNG\r\n--\r\n"
    assert found["a"]["images"] == [f"one 3 internvlu-batch/{name}".encode()]
    assert (found["a"]["text"], found["a"]["tag"]) == ("one\nsecond", 1)
    assert found["b"]["images"] == [b"two 0 there.png"]
    assert (found["b"]["prompt"], found["b"]["tag"]) == ("said", None)
    assert found["c"]["error"] == "node 2 (Encode): it broke"
    assert found["d"]["error"].endswith("Invalid prompt; node 2 (Encode): Value not in list (text)")
    assert "give --allow-urls" in found["e"]["error"]
    assert "My v1.0.text" not in found["a"]


def test_a_server_that_dies_gives_its_rows_back(tmp_path, workflow):
    rows = [{"id": f"r{i}", "My v1.0.text": f"{i}"} for i in range(20)]
    dying, other = FakeComfy(dies=3), FakeComfy()
    run(tmp_path, workflow, dying, other, rows=rows, chunk=2)
    found = read(tmp_path)
    assert [found[f"r{i}"]["images"] for i in range(20)] == [[f"{i} 0 example.png".encode()] for i in range(20)]
    assert len(dying.prompts) == 3


@pytest.mark.parametrize("how", [{"dies": 3}, {"forgets": True}])
def test_no_server_is_left(tmp_path, workflow, how):
    """The next run goes on."""
    rows = [{"id": f"r{i}", "My v1.0.text": f"{i}"} for i in range(8)]
    with pytest.raises(InputError, match=r"no server is left: http://127.* run it again"):
        run(tmp_path, workflow, FakeComfy(**how), rows=rows)
    summary = run(tmp_path, workflow, FakeComfy())
    assert (summary.rows, summary.before) == (8, 3 if "dies" in how else 0)
    assert len(read(tmp_path)) == 8


BAD = [
    ({"prompt": "x"}, "no column of the requests is called TITLE.INPUT"),
    ({"Nowhere.text": "x"}, "no node is called 'Nowhere'"),
    ({"Show.text": "x"}, "2 nodes are called 'Show'"),
    ({"Encode.words": "x"}, "no input 'words'; it has text, seed, image"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_bad_columns(tmp_path, workflow, row, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path, workflow, FakeComfy(), rows=[row])


def test_bad_workflows_and_servers(tmp_path, workflow):
    for text in ("[", "[]", "{}", '{"nodes": []}', '{"1": {"class_type": "A"}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="workflow"):
            Workflow.read(tmp_path / "bad.json")
    gone = FakeComfy()
    gone.server_close()
    with pytest.raises(InputError, match=f"no ComfyUI answers at {gone.url}"):
        run(tmp_path, workflow, gone, rows=[{"Encode.text": "x"}])
    gone.url = gone.url.removeprefix("http://")
    with pytest.raises(InputError, match="it must begin with http:// or https://"):
        run(tmp_path, workflow, gone, rows=[{"Encode.text": "x"}])
    with pytest.raises(InputError, match="belong together"):
        BatchOptions(tmp_path, tmp_path, comfyui=(gone.url,))
