#!/usr/bin/env python3
"""Writes workflows/*.json (the graphs people open), workflows/api/*.json and subgraphs/*.json.

    .cache/venv/bin/python scripts/make_workflows.py [NAME …]

The real frontend makes them all from the descriptions below: it loads the described prompt, is told where each node
goes, and then saves the graph and exports its API format, as a person's browser would. `scripts/dev.py test` installs
what this needs.
"""

import json
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

import toy  # noqa: E402
from comfy_server import ComfyServer, link_folder  # noqa: E402
from dev import find_browser, find_comfyui  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

CHECKPOINT = "InternVL-U"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loader(checkpoint: str = CHECKPOINT) -> dict:
    return node("InternVLULoader", checkpoint=checkpoint, weight_dtype="auto")


def encode(prompt: str, **inputs) -> dict:
    return node("InternVLUEncode", **{"vlm": ["1", 1], "prompt": prompt, **inputs})


def sampler(latent: list, all_scale: float = 4.5, partial_scale: float = 2.0, **inputs) -> dict:
    values = {
        "model": ["1", 0],
        "full": ["2", 0],
        "partial": ["2", 1],
        "unconditional": ["2", 2],
        "latent_image": latent,
        "seed": 42,
        "steps": 20,
        "all_scale": all_scale,
        "partial_scale": partial_scale,
        "denoise": 1.0,
    }
    return node("InternVLUSampler", **values | inputs)


def decoded(prefix: str, latent: str = "4", restore: bool = False) -> dict:
    """VAE Decode and Save Image, with Edit Restore between them if asked for."""
    images = ["10", 0] if restore else ["5", 0]
    nodes = {
        "5": node("VAEDecode", samples=[latent, 0], vae=["1", 2]),
        "6": node("SaveImage", images=images, filename_prefix=prefix),
    }
    if restore:
        nodes["10"] = node("InternVLUEditRestore", edit=["3", 2], image=["5", 0])
    return nodes


def empty(width: int, height: int) -> dict:
    return node("InternVLUEmptyLatent", width=width, height=height, batch_size=1)


def picture(name: str) -> dict:
    return node("LoadImage", image=name)


def fitted(**inputs) -> dict:
    return node("InternVLUEdit", vlm=["1", 1], vae=["1", 2], image=["7", 0], **inputs)


PHOTO = picture("photo.png")
CAT = "a photo of a cat"
SKY = "Change the sky to sunset colors"
HOPE = "Draw a picture of hope."
SEEN = {"vae": ["1", 2], "image1": ["7", 0]}

# prompt: API format by node id. columns: node ids from left to right, a titled group around each column.
WORKFLOWS = {
    "toy_world": {
        "prompt": {
            "1": loader(toy.CHECKPOINT.name),
            "2": encode("a red heart in the top left"),
            "3": empty(**toy.SIZE),
            "4": sampler(["3", 0], **toy.SCALES),
            "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
            "8": node(
                "InternVLUAsk",
                vlm=["1", 1],
                image1=["5", 0],
                question="describe the picture",
                max_new_tokens=64,
                seed=0,
            ),
            "9": node("ImageScaleBy", image=["5", 0], upscale_method="nearest-exact", scale_by=6.0),
            "6": node("SaveImage", images=["9", 0], filename_prefix="InternVL-U toy"),
        },
        "columns": {"Load": ["1"], "Describe": ["2"], "Draw": ["3", "4"], "Look": ["5", "9", "8"], "Save": ["6"]},
        "note": "## The toy world\nRuns in seconds on any computer: the checkpoint of 13 MB that comes with the pack, "
        "trained on flat shapes of 64 × 64 pixels. It draws the prompt, then looks at its own picture. Shapes: circle, "
        "square, triangle, diamond, star, cross, heart, ring. Colors: red, orange, yellow, green, cyan, blue, purple, "
        "black. It knows places (*in the top left*), relations (*left of*) and numbers to four.",
    },
    "text_to_image": {
        "prompt": {
            "1": loader(),
            "2": encode(CAT),
            "3": empty(1024, 1024),
            "4": sampler(["3", 0]),
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
            "2": encode(SKY, **SEEN),
            "3": fitted(),
            "4": sampler(["3", 1]),
            **decoded("InternVL-U edit", restore=True),
        },
        "columns": {"Load": ["1", "7"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "10", "6"]},
        "note": "## Edit a picture\nSay what to change in **Encode**. **Edit** chooses the size at which the model "
        "edits best, **Edit Restore** brings the result back to the picture's own. `partial_scale` says how closely "
        "the input picture is kept.",
    },
    "edit_with_mask": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": node("LoadImageMask", image="mask.png", channel="red"),
            "2": encode("Turn the circle into a sun", **SEEN),
            "3": fitted(mask=["8", 0]),
            "4": sampler(["3", 1]),
            **decoded("InternVL-U masked edit", restore=True),
        },
        "columns": {"Load": ["1", "7", "8"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "10", "6"]},
        "note": "## Edit a part of a picture\nOnly what is white in the mask may change; every other pixel stays as it "
        "was, bit by bit. **Load Image** has a mask output too: paint it with the mask editor.",
    },
    "two_references": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": picture("tall.png"),
            "2": encode("Put the second picture as a poster into the first", **SEEN, image2=["8", 0]),
            "3": empty(1024, 768),
            "4": sampler(["3", 0]),
            **decoded("InternVL-U two references"),
        },
        "columns": {"Load": ["1", "7", "8"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## Two references\nUp to eight pictures of any sizes. `<image>` in the prompt says where each "
        "belongs; without it they stand in front, in order.",
    },
    "reason_then_draw": {
        "prompt": {
            "1": loader(),
            "8": node("InternVLUReason", vlm=["1", 1], prompt=HOPE, max_new_tokens=200, seed=0),
            "2": encode(HOPE, reasoning=["8", 0]),
            "3": empty(1024, 1024),
            "4": sampler(["3", 0], 3.5, 1.5),
            **decoded("InternVL-U reasoned"),
        },
        "columns": {"Load": ["1"], "Think": ["8"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## Reason, then draw\nThe model first thinks in words about the prompt; **Encode** gets the same "
        "prompt and these words. After reasoning the scales 3.5 and 1.5 are the official ones.",
    },
    "reason_then_edit": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": node("InternVLUReason", vlm=["1", 1], image1=["7", 0], prompt=SKY, max_new_tokens=200, seed=0),
            "2": encode(SKY, **SEEN, reasoning=["8", 0]),
            "3": fitted(),
            "4": sampler(["3", 1], 3.5, 1.5),
            **decoded("InternVL-U reasoned edit", restore=True),
        },
        "columns": {
            "Load": ["1", "7"],
            "Think": ["8"],
            "Describe": ["2"],
            "Draw": ["3", "4"],
            "Save": ["5", "10", "6"],
        },
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
        },
        "columns": {"Load": ["1", "7"], "Ask": ["8"]},
        "note": "## Ask about a picture\nThe answer appears in the node. For small print and charts raise `max_tiles`.",
    },
    "find_objects": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": node(
                "InternVLUAsk",
                vlm=["1", 1],
                image1=["7", 0],
                question="Please provide the bounding box coordinate of the region this sentence describes: "
                "<ref>the sun</ref>",
                max_new_tokens=256,
                seed=0,
            ),
            "11": node("InternVLUBoxes", answer=["8", 0], image=["7", 0]),
            "12": node("PreviewImage", images=["11", 2]),
            "13": node("MaskPreview", mask=["11", 1]),
        },
        "columns": {"Load": ["1", "7"], "Ask": ["8"], "Read": ["11"], "Look": ["12", "13"]},
        "note": "## Find things\nName the thing between `<ref>` and `</ref>`. **Boxes** reads the answer's boxes: as "
        "numbers, as a mask (for **Edit**, say), and drawn on the picture.",
    },
    "caption_batch": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "8": picture("tall.png"),
            "10": node("ImageBatch", image1=["7", 0], image2=["8", 0]),
            "11": node("RebatchImages", images=["10", 0], batch_size=1),
            "12": node(
                "InternVLUAsk",
                vlm=["1", 1],
                image1=["11", 0],
                question="Describe the picture in one sentence.",
                max_new_tokens=128,
                seed=0,
            ),
        },
        "columns": {"Load": ["1", "7", "8"], "Batch": ["10", "11"], "Caption": ["12"]},
        "note": "## Caption a batch\n**Rebatch Images** turns a batch into a list, and **Ask** then runs once for each "
        "picture. Connected as a batch, the pictures would belong to one question.",
    },
    "image_to_image": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "2": encode("a painting in warm colors"),
            "3": fitted(),
            "8": node("VAEEncode", pixels=["3", 0], vae=["1", 2]),
            "4": sampler(["8", 0], denoise=0.6),
            **decoded("InternVL-U image to image", restore=True),
        },
        "columns": {"Load": ["1", "7"], "Describe": ["2"], "Draw": ["3", "8", "4"], "Save": ["5", "10", "6"]},
        "note": "## Image to image\nThe picture's latent is noised as far as `denoise` says, and drawn anew from "
        "there. The model does not look at the picture otherwise; for that, use *edit*.",
    },
    "second_pass": {
        "prompt": {
            "1": loader(),
            "2": encode(CAT),
            "3": empty(512, 512),
            "7": sampler(["3", 0]),
            "8": node("LatentUpscaleBy", samples=["7", 0], upscale_method="bicubic", scale_by=2.0),
            "4": sampler(["8", 0], denoise=0.5),
            **decoded("InternVL-U second pass"),
        },
        "columns": {
            "Load": ["1"],
            "Describe": ["2"],
            "First pass": ["3", "7"],
            "Second pass": ["8", "4"],
            "Save": ["5", "6"],
        },
        "note": "## A second pass\nDrawn small, its latent doubled, then drawn on: the composition of the small "
        "picture with the detail of the large one.",
    },
    "lora": {
        "prompt": {
            "1": loader(),
            "7": node("InternVLUCLIP", vlm=["1", 1]),
            "8": node(
                "LoraLoader",
                model=["1", 0],
                clip=["7", 0],
                lora_name="internvl_u_lora.safetensors",
                strength_model=1.0,
                strength_clip=1.0,
            ),
            "2": encode(CAT, vlm=["8", 1]),
            "3": empty(1024, 1024),
            "4": sampler(["3", 0], model=["8", 0]),
            **decoded("InternVL-U LoRA"),
        },
        "columns": {"Load": ["1", "7", "8"], "Describe": ["2"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## LoRA\nThe stock loader, for adapters of the image generator, of the language model, or of both. "
        "Every `vlm` input takes its CLIP.",
    },
    "ksampler": {
        "prompt": {
            "1": loader(),
            "7": node("InternVLUCLIP", vlm=["1", 1]),
            "2": node("CLIPTextEncode", clip=["7", 0], text=CAT),
            "8": node("CLIPTextEncode", clip=["7", 0], text=""),
            "3": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
            "4": node(
                "KSampler",
                model=["1", 0],
                positive=["2", 0],
                negative=["8", 0],
                latent_image=["3", 0],
                seed=42,
                steps=20,
                cfg=4.5,
                sampler_name="euler",
                scheduler="simple",
                denoise=1.0,
            ),
            **decoded("InternVL-U KSampler"),
        },
        "columns": {"Load": ["1", "7"], "Describe": ["2", "8"], "Draw": ["3", "4"], "Save": ["5", "6"]},
        "note": "## Stock nodes\nAfter the loader everything is ComfyUI's own. An empty negative text is the blank "
        "prompt that the model was trained with.",
    },
    "advanced_sampling": {
        "prompt": {
            "1": loader(),
            "7": PHOTO,
            "2": encode(SKY, **SEEN),
            "3": fitted(),
            "11": node(
                "InternVLUGuider",
                model=["1", 0],
                full=["2", 0],
                partial=["2", 1],
                unconditional=["2", 2],
                all_scale=4.5,
                partial_scale=2.0,
            ),
            "12": node("InternVLUSamplerSelect"),
            "13": node("InternVLUScheduler", steps=20, shift=3.0, denoise=1.0),
            "14": node("RandomNoise", noise_seed=42),
            "4": node(
                "SamplerCustomAdvanced",
                noise=["14", 0],
                guider=["11", 0],
                sampler=["12", 0],
                sigmas=["13", 0],
                latent_image=["3", 1],
            ),
            **decoded("InternVL-U advanced", restore=True),
        },
        "columns": {
            "Load": ["1", "7"],
            "Describe": ["2"],
            "Guide": ["3", "11"],
            "Draw": ["14", "12", "13", "4"],
            "Save": ["5", "10", "6"],
        },
        "note": "## The sampler in its parts\nThe same as **InternVL-U Sample**, to be mixed with other samplers, "
        "schedules and guiders.",
    },
}

# Subgraph blueprints made from a workflow: the nodes inside, and the widgets to be seen from outside.
BLUEPRINTS = {
    "InternVL-U Text to Image": {
        "workflow": "text_to_image",
        "inside": ["1", "2", "3", "4", "5"],
        "widgets": [
            ["1", "checkpoint"],
            ["2", "prompt"],
            ["3", "width"],
            ["3", "height"],
            ["4", "seed"],
            ["4", "steps"],
        ],
    },
    "InternVL-U Edit": {
        "workflow": "edit",
        "inside": ["1", "2", "3", "4", "5", "10"],
        "widgets": [["1", "checkpoint"], ["2", "prompt"], ["4", "seed"], ["4", "steps"], ["4", "partial_scale"]],
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
      const pictured = /^(SaveImage|LoadImage|LoadImageMask|PreviewImage|MaskPreview)$/.test(node.type);
      const worded = ["InternVLUEncode", "InternVLUReason", "InternVLUAsk", "CLIPTextEncode"].includes(node.type);
      const previewed = /^(InternVLUSampler|KSampler|SamplerCustomAdvanced)$/.test(node.type);
      const height = pictured ? Math.max(size[1], 320) : size[1] + (previewed ? 240 : worded ? 120 : 0);
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
  for (const node of Object.values(api)) delete node._meta;
  return JSON.stringify([graph, api]);  // as a browser saves it: without what is undefined
}"""


WRAP = """async ([title, inside, widgets]) => {
  const nodes = inside.map((id) => app.graph.getNodeById(Number(id)));
  const { subgraph, node } = app.graph.convertToSubgraph(new Set(nodes));
  subgraph.name = node.title = title;
  node.properties.proxyWidgets = widgets;
  for (const other of [...app.graph.nodes]) if (other !== node) app.graph.remove(other);
  for (const group of [...app.graph.groups]) app.graph.remove(group);
  node.pos = [0, 0];
  node.setSize([400, node.computeSize()[1]]);
  const graph = app.graph.serialize();
  graph.extra = {};
  return JSON.stringify(graph);
}"""


@contextmanager
def browser_page():
    """A browser page on a real ComfyUI that has a checkpoint of the workflows' name and the example pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = Path(folder)
        (base / "models" / "internvl_u").mkdir(parents=True)
        link_folder(ROOT / "tests" / "golden" / "checkpoint", base / "models" / "internvl_u" / CHECKPOINT)
        shutil.copytree(ROOT / "workflows" / "input", base / "input")
        (base / "user" / "default").mkdir(parents=True)
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}  # else the template browser opens
        (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=find_browser(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        with ComfyServer(find_comfyui(), base, ROOT) as server:
            page = browser.new_page(viewport={"width": 2560, "height": 1440})
            page.goto(server.url)
            page.wait_for_function("() => !!window.LiteGraph?.registered_node_types?.InternVLULoader")
            page.wait_for_timeout(2000)
            yield page


def main(names: list[str]) -> None:
    with browser_page() as page:

        def build(name: str):
            spec = WORKFLOWS[name]
            return json.loads(page.evaluate(BUILD, [spec["prompt"], spec["columns"], spec["note"]]))

        for title, spec in BLUEPRINTS.items() if not names else ():
            build(spec["workflow"])
            graph = json.loads(page.evaluate(WRAP, [title, spec["inside"], spec["widgets"]]))
            write(ROOT / "subgraphs" / f"{title}.json", graph)
        for name in names or WORKFLOWS:
            graph, api = build(name)
            write(ROOT / "workflows" / f"{name}.json", graph)
            write(ROOT / "workflows" / "api" / f"{name}.json", api)


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
