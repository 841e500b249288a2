#!/usr/bin/env python3
"""Writes pictures: workflows/*.jpg (cards of the templates), docs/*.jpg (README), js/docs/images/*.jpg (help).

    .cache/venv/bin/python scripts/make_pictures.py [NAME …]

A card shows what its workflow gives; the others are photographs of graphs in the real frontend, after a run. All run on
the toy checkpoint, with prompts of its world.
"""

import argparse
import io
import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from internvlu_core.checkpoints.files import SPLIT_FILES  # noqa: E402
from support import toy  # noqa: E402
from support.described_workflows import WORKFLOWS, node  # noqa: E402
from support.frontend import browser_page, open_prompt  # noqa: E402
from support.workflows import is_for_this, picture_of  # noqa: E402

SPLIT = {part: Path(file).name for part, file in SPLIT_FILES.items()}

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
        "1": node("LoadImage", image="internvlu_landscape.png"),
        "2": node("InternVLUBoxes", image=["1", 0], answer="<ref>the house</ref><box>[[547, 380, 801, 742]]</box>"),
        "3": node("PreviewImage", images=["2", 2]),
        "4": node("MaskPreview", mask=["2", 1]),
    },
    "InternVLUGuidance": {
        "1": node("InternVLULoader", checkpoint="InternVL-U"),
        "2": node("InternVLUEncode", vlm=["1", 1], **CAT),
        "3": node("InternVLUGuidance", model=["1", 0], partial=["2", 1]),
        "4": node("KSampler", model=["3", 0], positive=["2", 0], negative=["2", 2], cfg=4.5, steps=20),
    },
    "InternVLUGuidanceRange": {
        "1": node("InternVLULoader", checkpoint="InternVL-U"),
        "2": node("InternVLUGuidanceRange", model=["1", 0], end_percent=0.8),
        "3": node("InternVLUSampler", model=["2", 0]),
    },
    "InternVLUModelLoader": {
        "1": node("InternVLUModelLoader", file=SPLIT["generation_decoder"]),
        "2": node("InternVLUVLMLoader", file=SPLIT["vlm"]),
        "3": node("VAELoader", vae_name=SPLIT["vae"]),
        "4": node("InternVLUEncode", vlm=["2", 0], vae=["3", 0], **CAT),
    },
    "InternVLUVLMLoader": {
        "1": node("InternVLUVLMLoader", file=SPLIT["vlm"]),
        "2": node("InternVLUAsk", vlm=["1", 0], question="Who are you?"),
    },
}
STACKED = {"InternVLULoader", "LoadImage", "InternVLUModelLoader", "InternVLUVLMLoader"} | set(ADVANCED[:2])

# inputs: by kind of node and name; an empty text, the negative one, stays empty.
RUN = """async (inputs) => {
  const everyNode = ({ nodes }) =>
    nodes.flatMap((node) => [node, ...(node.subgraph ? everyNode(node.subgraph) : [])]);
  for (const node of everyNode(app.graph))
    for (const widget of node.widgets ?? []) {
      const shown = node.subgraph ? inputs.shown[widget.name.replace(/^.*: /, "")] : undefined;
      const value = inputs[node.type]?.[widget.name] ?? shown;
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
  let x = 0, y = 0, width = 0;
  for (const kind of kinds)
    for (const node of app.graph.nodes.filter((node) => node.type === kind)) {
      if (width && !(stacked.includes(kind) && y)) { x += width + 50; y = 0; width = 0; }
      node.pos = [x, y];
      width = Math.max(width, node.size[0]);
      y = stacked.includes(kind) ? y + node.size[1] + 60 : 0;
    }
}"""

# Brings the nodes into view, in their own size, so that their words can be read; returns their place on the page.
FRAME = """async () => {
  let [left, top, right, bottom] = [1e9, 1e9, -1e9, -1e9];
  for (const { pos, size } of app.graph.nodes) {
    left = Math.min(left, pos[0]); top = Math.min(top, pos[1] - 52);  // with the title and the badge above it
    right = Math.max(right, pos[0] + size[0]); bottom = Math.max(bottom, pos[1] + size[1]);
  }
  const pad = 16;
  app.canvas.deselectAll?.();
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset[0] = 200 - left + pad;
  app.canvas.ds.offset[1] = 200 - top + pad;
  app.canvas.draw(true, true);
  await new Promise((done) => setTimeout(done, 800));
  app.canvas.draw(true, true);
  const place = app.canvas.canvas.getBoundingClientRect();
  return { x: place.left + 200, y: place.top + 200, width: right - left + 2 * pad, height: bottom - top + 2 * pad };
}"""


def shown(inputs: dict) -> dict:
    """The same inputs, and under "shown" those that a subgraph's node shows, by name."""
    values = {key: value for kind in inputs.values() for key, value in kind.items()}
    return {**inputs, "shown": values}


def run(page, name: str, plain: bool = True, plot: bool = False) -> None:
    """Opens a shipped workflow and runs it. plain: all its nodes, instead of subgraphs."""
    if plain:
        open_prompt(page, WORKFLOWS[name]["prompt"])
    else:
        path = ROOT / "workflows" / f"{WORKFLOWS[name]['title']}.json"
        page.evaluate("(graph) => app.loadGraphData(graph)", json.loads(path.read_text(encoding="utf-8")))
    page.wait_for_timeout(500)
    if name != "lora":  # whose adapter is the user's own
        # Other kinds of nodes may have inputs of the same names, which a subgraph shows too.
        kinds = {one["class_type"] for one in WORKFLOWS[name]["prompt"].values()}
        inputs = {kind: values for kind, values in toy.inputs(name).items() if kind in kinds}
        if "InternVLUSampler" in inputs:
            inputs["InternVLUSampler"] = {**inputs["InternVLUSampler"], "guidance_plot": plot}
        outcome, detail = page.evaluate(RUN, shown(inputs))
        assert outcome == "execution_success", f"{name}: {detail}"
        page.wait_for_timeout(1500)


def photograph(page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(FRAME)))).convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=82, optimize=True, progressive=True)
    print(path.relative_to(ROOT), picture.size)


# Cards: 400 × 400, as the template browser shows them.

SIDE = 400
PAPER, INK = "#f7f4ec", "#22252b"


def letters(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def tile(picture: Image.Image, side: int) -> Image.Image:
    """Cut to a square, with the small pictures of the toy enlarged smoothly."""
    picture = picture.convert("RGB")
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    return picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)


def inset(card: Image.Image, picture: Image.Image, place: tuple[int, int], side: int = 150) -> None:
    """A smaller picture on the card, with a frame."""
    card.paste(INK, (place[0] - 3, place[1] - 3, place[0] + side + 3, place[1] + side + 3))
    card.paste(tile(picture, side), place)


def write(card: Image.Image, lines: list[tuple[str, str]], top: int, size: int = 22, width: int = 34) -> None:
    """lines: (text, color), on paper from `top` down to the card's lower edge."""
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, top, SIDE, SIDE), fill=PAPER)
    y = top + 12
    for text, color in lines:
        for line in textwrap.wrap(text, width):
            draw.text((18, y), line, fill=color, font=letters(size))
            y += size + 6
        y += 6


def label(card: Image.Image, text: str) -> None:
    """In a corner."""
    draw = ImageDraw.Draw(card)
    width = draw.textlength(text, font=letters(24))
    draw.rounded_rectangle((14, 14, 38 + width, 54), 8, fill=INK)
    draw.text((26, 20), text, fill="#ffffff", font=letters(24))


def finished(server, prompt: dict):
    """In a thread of its own: the browser's event loop has this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(server.run, prompt).result()


def result(server, name: str, text: str | None = None, **inputs) -> tuple[list[Image.Image], list[str]]:
    """Runs a shipped workflow on the toy. inputs: by kind of node, over toy.inputs. Returns pictures and texts."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    toy.fit(prompt, name, text)
    for entry in prompt.values():
        entry["inputs"] |= inputs.get(entry["class_type"], {})
    done = finished(server, prompt)
    return [picture.convert("RGB") for picture in server.images(done)], list(server.texts(done))


def sample(name: str) -> Image.Image:
    return Image.open(ROOT / "workflows" / "input" / f"internvlu_{name}.png").convert("RGB")


def card_of(server, name: str) -> Image.Image:
    """What the workflow gave."""
    shapes = sample("toy")
    if name == "caption_batch":
        card = Image.new("RGB", (SIDE, SIDE), PAPER)
        for row, place in enumerate(("in the top left", "in the bottom right")):
            (picture,), _ = result(server, "text_to_image", f"a {('green ring', 'purple cross')[row]} {place}")
            (server.base_dir / "input").mkdir(exist_ok=True)
            picture.save(server.base_dir / "input" / f"card{row}.png")
            _, (caption,) = result(server, "ask", LoadImage={"image": f"card{row}.png"})
            card.paste(tile(picture, 170), (16, 16 + row * 198))
            draw = ImageDraw.Draw(card)
            for line, words in enumerate(textwrap.wrap(caption, 15)):
                draw.text((204, 36 + row * 198 + line * 28), words, fill=INK, font=letters(22))
        return card
    if name == "find_objects":  # the toy was not taught boxes, so the answer is written here
        prompt = {key: dict(value) for key, value in EXTRA["InternVLUBoxes"].items()}
        picture = server.images(finished(server, prompt))
        found = next(image.convert("RGB") for image in picture if len(image.convert("RGB").getcolors(2**24)) > 2)
        card = tile(found.crop((352, 96, 1024, 768)), SIDE)
        write(card, [("“the house”", "#b3261e")], 340)
        return card
    if name == "ask":
        _, (answer,) = result(server, name)
        card = tile(shapes, SIDE).crop((0, 70, SIDE, 290))
        whole = Image.new("RGB", (SIDE, SIDE), PAPER)
        whole.paste(card)
        write(whole, [("describe the picture", "#1f6fd0"), (answer, INK)], 220)
        return whole
    if name.startswith("train_an_adapter"):
        prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        toy.fit(prompt, name)
        done = finished(server, prompt)
        card = Image.new("RGB", (SIDE, SIDE), PAPER)
        for row, (key, words) in enumerate({"18": "without it", "6": "with it"}.items()):
            card.paste(tile(picture_of(server, done, key), 170), (16, 16 + row * 198))
            ImageDraw.Draw(card).text((204, 86 + row * 198), words, fill=INK, font=letters(22))
        return card
    # Of lora, whose adapter is the user's own, without one.
    pictures, texts = result(server, "text_to_image" if name == "lora" else name, CARD_TEXTS.get(name))
    card = tile(pictures[0], SIDE)
    if name == "toy_world":
        card = Image.new("RGB", (SIDE, SIDE), "#dfe6ee")
        card.paste(tile(pictures[0], 280), (60, 5))
        write(card, [(CARD_TEXTS[name], "#1f6fd0"), (f"It saw: {texts[0]}", INK)], 290)
    elif name == "text_to_image":
        write(card, [(CARD_TEXTS[name], "#1f6fd0")], 350)
    elif name.startswith("reason"):
        card = Image.new("RGB", (SIDE, SIDE), "#eee3cd")
        card.paste(tile(pictures[0], 260), (70, 5))
        write(card, [(toy.inputs(name)["InternVLUReason"]["prompt"], "#1f6fd0"), (texts[0], "#6a5a2a")], 270, 20, 36)
        if "edit" in name:
            inset(card, shapes, (14, 14), 90)
    elif name == "two_references":
        for left in (20, 142):
            inset(card, shapes, (left, 272), 108)
    elif name in ("edit", "advanced_sampling", "image_to_image", "edit_with_mask"):
        inset(card, shapes, (20, 272), 108)
        if name == "edit_with_mask":
            inset(card, sample("toy_mask"), (142, 272), 108)
    elif name == "second_pass":
        inset(card, tile(pictures[0], 32), (20, 290), 90)
    if name in CARD_LABELS:
        label(card, CARD_LABELS[name])
    return card


CARD_TEXTS = {
    "toy_world": "a red heart in the bottom right",
    "text_to_image": "a yellow star right of a blue ring",
    "edit": "make the star red",
    "edit_with_mask": "make the star green",
    "image_to_image": "a blue circle and a green cross",
    "advanced_sampling": "make the circle orange",
    "second_pass": "a cyan diamond",
    "ksampler": "two green squares",
    "lora": "a purple ring",
    "two_references": "a blue circle and a yellow star",
}
CARD_LABELS = {
    "edit": "Edit",
    "edit_with_mask": "Mask",
    "two_references": "Two pictures",
    "image_to_image": "Image to image",
    "second_pass": "Second pass",
    "ksampler": "KSampler",
    "lora": "LoRA",
    "advanced_sampling": "In parts",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows and node ids; default: all")
    args = parser.parse_args()
    with browser_page() as (page, server):
        info = server.object_info()
        for name, spec in WORKFLOWS.items():
            if (not args.names or name in args.names) and is_for_this(name, info):
                save(card_of(server, name), ROOT / "workflows" / f"{spec['title']}.jpg")
                if name == "reason_then_edit":
                    run(page, name, plain=False)
                    save(photograph(page), ROOT / "docs" / f"{name}.jpg")
        images = ROOT / "js" / "docs" / "images"
        for page_id, (name, kinds) in HELP.items():
            if not args.names or page_id in args.names:
                run(page, name, plot=page_id == "InternVLUSampler")
                page.evaluate(KEEP, [kinds, sorted(STACKED)])
                save(photograph(page), images / f"{page_id}.jpg")
        for page_id, prompt in EXTRA.items():
            if args.names and page_id not in args.names:
                continue
            open_prompt(page, prompt)
            if page_id == "InternVLUBoxes":  # the only one that needs no checkpoint
                page.evaluate(RUN, {"shown": {}})
                page.wait_for_timeout(1500)
            page.evaluate(KEEP, [[entry["class_type"] for entry in prompt.values()], sorted(STACKED)])
            save(photograph(page), images / f"{page_id}.jpg")


if __name__ == "__main__":
    main()
