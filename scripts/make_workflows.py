#!/usr/bin/env python3
"""Writes workflows/*.json (the graphs people open) and workflows/api/*.json from the descriptions below.

    .cache/venv/bin/python scripts/make_workflows.py [NAME …]

The real frontend makes both files: it loads the described prompt, is told where each node goes, and then saves the
graph and exports its API format, as a person's browser would. Needs `pip install playwright` and a `chromium`.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from comfy_server import ComfyServer, link_folder  # noqa: E402
from dev import find_comfyui  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

CHECKPOINT = "InternVL-U"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loader() -> dict:
    return node("InternVLULoader", checkpoint=CHECKPOINT, weight_dtype="auto")


def sampler(all_scale: float = 4.5, partial_scale: float = 2.0) -> dict:
    return node(
        "InternVLUSampler",
        model=["1", 0],
        full=["2", 0],
        partial=["2", 1],
        unconditional=["2", 2],
        latent_image=["3", 0],
        seed=42,
        steps=20,
        all_scale=all_scale,
        partial_scale=partial_scale,
        denoise=1.0,
    )


def decoded(prefix: str) -> dict:
    return {
        "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "6": node("SaveImage", images=["5", 0], filename_prefix=prefix),
    }


def empty(width: int, height: int) -> dict:
    return node("InternVLUEmptyLatent", width=width, height=height, batch_size=1)


PHOTO = node("LoadImage", image="photo.png")
EDIT = "Change the sky to sunset colors"
THINK = "Draw a picture of hope."

# Columns of node ids from left to right; a group's title frames each column.
WORKFLOWS = {
    "text_to_image": {
        "prompt": {
            "1": loader(),
            "2": node("InternVLUEncode", vlm=["1", 1], prompt="a photo of a cat"),
            "3": empty(1024, 1024),
            "4": sampler(),
            **decoded("InternVL-U"),
        },
        "columns": {"Load": ["1"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## Text to image\nWrite what to draw in **Encode** and run. `all_scale` says how closely the prompt "
        "is followed. Sizes are multiples of 16; the model likes 512 to 1024 pixels a side.",
    },
    "edit": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "2": node("InternVLUEncode", vlm=["1", 1], vae=["1", 2], image1=["7", 0], prompt=EDIT),
            "3": empty(1024, 768),
            "4": sampler(),
            **decoded("InternVL-U edit"),
        },
        "columns": {"Load": ["1", "7"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## Edit a picture\nSay what to change in **Encode**. Give the latent the picture's aspect ratio. "
        "`partial_scale` says how closely the input picture is kept.",
    },
    "reason_then_draw": {
        "prompt": {
            "1": loader(),
            "8": node("InternVLUReason", vlm=["1", 1], prompt=THINK, max_new_tokens=200, seed=0),
            "2": node("InternVLUEncode", vlm=["1", 1], reasoning=["8", 0], prompt=THINK),
            "3": empty(1024, 1024),
            "4": sampler(3.5, 1.5),
            **decoded("InternVL-U reasoned"),
            "9": node("PreviewAny", source=["8", 1]),
        },
        "columns": {"Load": ["1"], "Think": ["8", "9"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## Reason, then draw\nThe model first thinks in words about the prompt; **Encode** gets the same "
        "prompt and these words. After reasoning the scales 3.5 and 1.5 are the official ones.",
    },
    "reason_then_edit": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": node("InternVLUReason", vlm=["1", 1], image1=["7", 0], prompt=EDIT, max_new_tokens=200, seed=0),
            "2": node("InternVLUEncode", vlm=["1", 1], vae=["1", 2], image1=["7", 0], reasoning=["8", 0], prompt=EDIT),
            "3": empty(1024, 768),
            "4": sampler(3.5, 1.5),
            **decoded("InternVL-U reasoned edit"),
            "9": node("PreviewAny", source=["8", 1]),
        },
        "columns": {"Load": ["1", "7"], "Think": ["8", "9"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## Reason, then edit\n**Reason** and **Encode** get the same prompt and the same picture.",
    },
    "ask": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": node(
                "InternVLUAsk",
                vlm=["1", 1],
                image1=["7", 0],
                question="What is in the picture?",
                max_new_tokens=1024,
                seed=0,
            ),
            "9": node("PreviewAny", source=["8", 0]),
        },
        "columns": {"Load": ["1", "7"], "Ask": ["8"], "Answer": ["9"]},
        "note": "## Ask about a picture\nFor small print and charts raise `max_tiles`.",
    },
}

BUILD = """async ([prompt, columns, note]) => {
  const TITLE = 30, GAP = 60, PAD = 20;
  app.loadApiJson(prompt, "workflow");
  await new Promise((done) => setTimeout(done, 500));
  let x = 0;
  for (const [title, ids] of Object.entries(columns)) {
    const nodes = ids.map((id) => app.graph.getNodeById(Number(id)));
    let y = 0, width = 0;
    for (const node of nodes) {
      const size = node.computeSize();
      const pictured = ["PreviewAny", "SaveImage", "LoadImage"].includes(node.type);
      const worded = ["InternVLUEncode", "InternVLUReason", "InternVLUAsk"].includes(node.type);
      const height = pictured ? Math.max(size[1], 320) : worded ? size[1] + 120 : size[1];
      node.setSize([Math.max(size[0], worded ? 400 : 320), height]);
      node.pos = [x, y];
      // Another seed changes nothing in greedy text, but would make the node think again at every run.
      const control = node.widgets?.find((widget) => widget.name === "control_after_generate");
      if (worded && control) control.value = "fixed";
      y += node.size[1] + TITLE + GAP;
      width = Math.max(width, node.size[0]);
    }
    const group = new LiteGraph.LGraphGroup(title);
    group.pos = [x - PAD, -TITLE - 2 * PAD - 20];
    group.size = [width + 2 * PAD, y - GAP + 3 * PAD + 20];
    app.graph.add(group);
    x += width + 2 * PAD + GAP;
  }
  const text = LiteGraph.createNode("MarkdownNote");
  text.pos = [-440, 0];
  text.widgets[0].value = note;
  app.graph.add(text);
  text.setSize([380, 220]);
  app.graph.setDirtyCanvas(true, true);
  const graph = app.graph.serialize();
  graph.extra = {};
  const api = (await app.graphToPrompt()).output;
  for (const node of Object.values(api)) {
    delete node._meta;
    if (node.class_type === "PreviewAny") delete node.inputs.preview;  // the text it showed last
  }
  return [graph, api];
}"""


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = Path(folder)
        (base / "models" / "internvl_u").mkdir(parents=True)
        link_folder(ROOT / "tests" / "golden" / "checkpoint", base / "models" / "internvl_u" / CHECKPOINT)
        shutil.copytree(ROOT / "workflows" / "input", base / "input")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        with ComfyServer(find_comfyui(), base, ROOT) as server:
            for name in names or WORKFLOWS:
                spec = WORKFLOWS[name]
                page = browser.new_page(viewport={"width": 1920, "height": 1080})
                page.goto(server.url)
                page.wait_for_function("() => !!window.LiteGraph?.registered_node_types?.InternVLULoader")
                page.wait_for_timeout(2000)
                graph, api = page.evaluate(BUILD, [spec["prompt"], spec["columns"], spec["note"]])
                write(ROOT / "workflows" / f"{name}.json", graph)
                write(ROOT / "workflows" / "api" / f"{name}.json", api)
                if shots := os.environ.get("SCREENSHOTS"):
                    page.keyboard.press("Escape")  # the template browser, on a first visit
                    page.evaluate(
                        "app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [520, 260]; app.canvas.draw(true, true)"
                    )
                    page.wait_for_timeout(1000)
                    page.screenshot(path=f"{shots}/{name}.png")
                page.close()


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
