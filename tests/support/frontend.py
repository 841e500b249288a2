"""ComfyUI's frontend in a browser, for scripts that draw graphs with it."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from .comfy_server import ComfyServer, link_folder
from .environment import find_browser, find_comfyui

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "InternVL-U"  # as the shipped workflows call it

OPEN = """async ([prompt, bypassed]) => {
  app.clean();  // else nodes take over previews of those that had their ids before
  app.loadApiJson(prompt, "workflow");
  await new Promise((done) => setTimeout(done, 500));
  for (const node of app.graph.nodes) {
    const size = node.computeSize();
    const pictured = /^(SaveImage|LoadImage|LoadImageMask|PreviewImage|MaskPreview|LossGraphNode)$/.test(node.type);
    const worded = ["InternVLUEncode", "InternVLUReason", "InternVLUAsk", "CLIPTextEncode"].includes(node.type);
    const previewed = /^(InternVLUSampler|KSampler|SamplerCustomAdvanced)$/.test(node.type);
    const height = pictured ? Math.max(size[1], 320)
      : size[1] + (previewed ? 200 : worded ? 100 : node.type === "PreviewAny" ? 120 : 0);
    node.setSize([Math.max(size[0], worded ? 340 : 290), height]);
    // Another seed changes nothing in greedy text, but would make the node think again at every run; or train again.
    const control = node.widgets?.find((widget) => widget.name === "control_after_generate");
    const trains = app.graph.nodes.some(({ type }) => type === "TrainLoraNode");
    if ((worded || trains) && control) control.value = "fixed";
  }
  const api = (await app.graphToPrompt()).output;
  for (const node of Object.values(api)) delete node._meta;
  for (const [id, values] of Object.entries(bypassed)) {
    const node = app.graph.getNodeById(Number(id));
    node.mode = 4;
    for (const [name, value] of Object.entries(values))
      node.widgets.find((widget) => widget.name === name).value = value;
  }
  return JSON.stringify(api);  // as a browser saves it: without what is undefined
}"""


@contextmanager
def browser_page() -> Iterator[tuple[Page, ComfyServer]]:
    """A page of a browser on a real ComfyUI that has a checkpoint of the workflows' name, and that server."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = Path(folder)
        (base / "models" / "internvl_u").mkdir(parents=True)
        link_folder(ROOT / "tests" / "golden" / "checkpoint", base / "models" / "internvl_u" / CHECKPOINT)
        (base / "models" / "loras").mkdir()
        (base / "models" / "loras" / "internvl_u_lora.safetensors").touch()  # of the API's lora: a combo takes no other
        (base / "user" / "default").mkdir(parents=True)
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}  # else the template browser opens
        (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=find_browser(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        with ComfyServer(find_comfyui(), base, ROOT) as server:
            page = browser.new_page(viewport={"width": 2560, "height": 1440})
            page.set_default_timeout(180_000)  # milliseconds, for a machine that is busy
            page.goto(server.url)
            page.wait_for_function("() => !!window.LiteGraph?.registered_node_types?.InternVLULoader")
            page.wait_for_timeout(2000)
            yield page, server


def open_prompt(page: Page, prompt: dict, bypassed: dict | None = None) -> dict:
    """Draw a prompt in API format as a graph. Returns its API format as a browser saves it.

    bypassed: {node id: {widget: value}} of nodes that are bypassed in the graph, after the API format was read.
    """
    return json.loads(page.evaluate(OPEN, [prompt, bypassed or {}]))
