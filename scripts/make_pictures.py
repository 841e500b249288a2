#!/usr/bin/env python3
"""Writes the pictures of the graphs: workflows/*.jpg (templates), docs/*.jpg (README), js/docs/images/*.jpg (help).

    .cache/venv/bin/python scripts/make_pictures.py [NAME …]

Each shipped workflow is opened in the real frontend, given a prompt of the toy world, run on the toy checkpoint, and
photographed.
"""

import argparse
import io
import json
from pathlib import Path

import toy
from make_workflows import ROOT, WORKFLOWS, browser_page, node
from PIL import Image

# What a help page shows: the nodes of a workflow around its own, from left to right.
HELP = {
    "InternVLULoader": ("text_to_image", ["InternVLULoader", "InternVLUEncode", "InternVLUSampler"]),
    "InternVLUEncode": ("edit", ["InternVLULoader", "LoadImage", "InternVLUEncode", "InternVLUSampler"]),
    "InternVLUReason": ("reason_then_draw", ["InternVLULoader", "InternVLUReason", "InternVLUEncode"]),
    "InternVLUAsk": ("ask", ["InternVLULoader", "LoadImage", "InternVLUAsk"]),
    "InternVLUSampler": ("text_to_image", ["InternVLUEncode", "InternVLUEmptyLatent", "InternVLUSampler", "VAEDecode"]),
    "InternVLUEmptyLatent": ("text_to_image", ["InternVLUEmptyLatent", "InternVLUSampler"]),
    "InternVLUEdit": ("edit", ["LoadImage", "InternVLUEdit", "InternVLUSampler", "InternVLUEditRestore"]),
    "InternVLUEditRestore": ("edit", ["InternVLUEdit", "VAEDecode", "InternVLUEditRestore", "SaveImage"]),
    "InternVLUCLIP": ("lora", ["InternVLULoader", "InternVLUCLIP", "LoraLoader", "InternVLUEncode"]),
}
ADVANCED = ["InternVLUGuider", "InternVLUSamplerSelect", "InternVLUScheduler", "SamplerCustomAdvanced"]
HELP |= dict.fromkeys(
    ["InternVLUGuider", "InternVLUScheduler", "InternVLUSamplerSelect"], ("advanced_sampling", ADVANCED)
)

# Prompts that only help pages show.
CAT = {"prompt": "a photo of a cat"}
EXTRA = {
    "InternVLUBoxes": {
        "1": node("LoadImage", image="photo.png"),
        "2": node("InternVLUBoxes", image=["1", 0], answer="<ref>the sun</ref><box>[[255, 290, 545, 690]]</box>"),
        "3": node("PreviewImage", images=["2", 2]),
        "4": node("MaskPreview", mask=["2", 1]),
    },
    "InternVLUGuidance": {
        "1": node("InternVLULoader", checkpoint="InternVL-U"),
        "2": node("InternVLUEncode", vlm=["1", 1], **CAT),
        "3": node("InternVLUGuidance", model=["1", 0], partial=["2", 1]),
        "4": node("KSampler", model=["3", 0], positive=["2", 0], negative=["2", 2], cfg=4.5, steps=20),
    },
    "InternVLUModelLoader": {
        "1": node("InternVLUModelLoader"),
        "2": node("InternVLUVLMLoader"),
        "3": node("VAELoader"),
        "4": node("InternVLUEncode", vlm=["2", 0], vae=["3", 0], **CAT),
    },
    "InternVLUVLMLoader": {
        "1": node("InternVLUVLMLoader"),
        "2": node("InternVLUAsk", vlm=["1", 0], question="Who are you?"),
    },
}
STACKED = {"InternVLULoader", "LoadImage", "InternVLUModelLoader", "InternVLUVLMLoader"} | set(ADVANCED[:2])

# inputs: by kind of node and name; an empty text, the negative one, stays empty.
RUN = """async (inputs) => {
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? []) {
      const value = inputs[node.type]?.[widget.name];
      if (value !== undefined && widget.value !== "") { widget.value = value; widget.callback?.(value); }
    }
  const { api } = await import("./scripts/api.js");
  const over = new Promise((done) => {
    for (const event of ["execution_success", "execution_error", "execution_interrupted"])
      api.addEventListener(event, (message) => done([event, message.detail]), { once: true });
  });
  await app.queuePrompt(0, 1);
  return await over;
}"""

# Keeps the named kinds of nodes, one column each, those of STACKED below the column before.
KEEP = """([kinds, stacked]) => {
  for (const node of [...app.graph.nodes]) if (!kinds.includes(node.type)) app.graph.remove(node);
  for (const group of [...app.graph.groups]) app.graph.remove(group);
  let x = 0, y = 0, width = 0;
  for (const kind of kinds)
    for (const node of app.graph.nodes.filter((node) => node.type === kind)) {
      if (width && !(stacked.includes(kind) && y)) { x += width + 70; y = 0; width = 0; }
      node.pos = [x, y];
      width = Math.max(width, node.size[0]);
      y = stacked.includes(kind) ? y + node.size[1] + 70 : 0;
    }
}"""

# Brings the nodes (the groups too, if there are any) into view; returns their place on the page.
FRAME = """async ([most, notes]) => {
  const items = [...app.graph.nodes.filter((node) => notes || node.type !== "MarkdownNote"), ...app.graph.groups];
  let [left, top, right, bottom] = [1e9, 1e9, -1e9, -1e9];
  for (const item of items) {
    const title = item.type ? 52 : 0;  // with the badge above it
    left = Math.min(left, item.pos[0]); top = Math.min(top, item.pos[1] - title);
    right = Math.max(right, item.pos[0] + item.size[0]); bottom = Math.max(bottom, item.pos[1] + item.size[1]);
  }
  const pad = 16, scale = Math.min(most, 2200 / (right - left + 2 * pad), 1200 / (bottom - top + 2 * pad));
  app.canvas.deselectAll?.();
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset[0] = 200 / scale - left + pad;
  app.canvas.ds.offset[1] = 200 / scale - top + pad;
  app.canvas.draw(true, true);
  await new Promise((done) => setTimeout(done, 800));
  app.canvas.draw(true, true);
  const place = app.canvas.canvas.getBoundingClientRect();
  return {
    x: place.left + 200, y: place.top + 200,
    width: (right - left + 2 * pad) * scale, height: (bottom - top + 2 * pad) * scale,
  };
}"""


def run(page, name: str, plot: bool = False) -> None:
    """Opens a shipped workflow and runs it; what ran before comes out of ComfyUI's cache."""
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.wait_for_timeout(500)
    if name != "lora":  # whose adapter is the user's own
        inputs = toy.inputs(name)
        sampler = {**inputs["InternVLUSampler"], "guidance_plot": plot}
        outcome, detail = page.evaluate(RUN, {**inputs, "InternVLUSampler": sampler})
        assert outcome == "execution_success", f"{name}: {detail}"
        page.wait_for_timeout(1500)


def photograph(page, most: float = 1.0, notes: bool = False) -> Image.Image:
    clip = page.evaluate(FRAME, [most, notes])
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def save(picture: Image.Image, path: Path, width: int) -> None:
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=82, optimize=True, progressive=True)
    print(path.relative_to(ROOT), picture.size)


def on_card(picture: Image.Image) -> Image.Image:
    """A square, as the template browser's cards are: the right side of the graph, where its results are."""
    side = min(picture.size)
    return picture.crop((picture.width - side, 0, picture.width, side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows and node ids; default: all")
    args = parser.parse_args()
    with browser_page() as page:
        for name in WORKFLOWS:
            pages = [page_id for page_id, (workflow, _) in HELP.items() if workflow == name]
            if args.names and not {name, *pages} & set(args.names):
                continue
            run(page, name)
            picture = photograph(page)
            if name in ("text_to_image", "reason_then_edit"):
                save(picture, ROOT / "docs" / f"{name}.jpg", 1600)
            save(on_card(picture), ROOT / "workflows" / f"{name}.jpg", 400)
            for page_id in pages:
                run(page, name, plot=page_id == "InternVLUSampler")
                page.evaluate(KEEP, [HELP[page_id][1], sorted(STACKED)])
                save(photograph(page), ROOT / "js" / "docs" / "images" / f"{page_id}.jpg", 1000)
        for page_id, prompt in EXTRA.items():
            if args.names and page_id not in args.names:
                continue
            page.evaluate("(prompt) => app.loadApiJson(prompt, 'help')", prompt)
            page.wait_for_timeout(500)
            for picture in ("LoadImage", "PreviewImage", "MaskPreview"):
                page.evaluate(
                    "(kind) => app.graph.findNodesByType(kind).forEach((n) => n.setSize([300, 320]))", picture
                )
            if page_id == "InternVLUBoxes":  # the only one that needs no checkpoint
                page.evaluate(RUN, {})
                page.wait_for_timeout(1500)
            page.evaluate(KEEP, [[entry["class_type"] for entry in prompt.values()], sorted(STACKED)])
            save(photograph(page), ROOT / "js" / "docs" / "images" / f"{page_id}.jpg", 1000)


if __name__ == "__main__":
    main()
