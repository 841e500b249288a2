"""`internvlu batch --comfyui` on two real servers, of which one is killed in the midst."""

import io
import json
import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from internvlu_core.batch import BatchOptions, run_batch
from support.checkpoints import CHECKPOINT, GOLDEN
from support.comfy_server import ComfyServer, link_folder
from support.pack import ROOT
from support.workflows import workflow

ROWS = 10


def test_rows_through_two_servers(server, tmp_path):
    """Each result is that of the workflow with the row's inputs, whichever server made it."""
    (tmp_path / "models" / "internvl_u").mkdir(parents=True)
    link_folder(CHECKPOINT, tmp_path / "models" / "internvl_u" / "InternVL-U")
    prompt = workflow("reason_then_edit", steps=1, max_new_tokens=4)
    prompt["4"]["_meta"] = {"title": "Draw it"}
    (tmp_path / "workflow.json").write_text(json.dumps(prompt))
    photo = {"LoadImage.image": str(GOLDEN / "photo.png")}
    rows = [photo | {"InternVLUReason.prompt": f"make it {i}", "Draw it.seed": i} for i in range(ROWS)]
    rows[4]["InternVLUReason.prompt"] = "x " * 9000
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    with ComfyServer(os.environ["COMFYUI_PATH"], tmp_path, ROOT, env={"OMP_NUM_THREADS": "1"}) as second:
        killed = threading.Event()

        def kill(done: int, total: int):
            if done >= 4 and not killed.is_set():
                second.stop()
                killed.set()

        options = BatchOptions(
            tmp_path / "r.jsonl", out, comfyui=(server.url, second.url), workflow=tmp_path / "workflow.json", chunk=1
        )
        summary = run_batch(options, kill)
    assert killed.is_set()
    assert (summary.rows, summary.errors) == (ROWS, 1)
    found = {row["id"]: row for row in pa.concat_tables(map(parquet.read_table, out.glob("part-*"))).to_pylist()}
    assert sorted(found, key=int) == [str(i) for i in range(ROWS)]
    assert "node 8 (InternVLUReason)" in found["4"]["error"]
    for i in (0, ROWS - 1):
        prompt["8"]["inputs"]["prompt"], prompt["4"]["inputs"]["seed"] = f"make it {i}", i
        prompt["7"]["inputs"]["image"] = server.upload_image(GOLDEN / "photo.png")
        result = server.run(prompt)
        (expected,) = server.images(result)
        (picture,) = found[str(i)]["images"]
        assert np.array_equal(Image.open(io.BytesIO(picture)).convert("RGB"), expected.convert("RGB"))
        assert found[str(i)]["text"] == "\n".join(server.texts(result))
