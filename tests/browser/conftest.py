"""A real browser on a real ComfyUI server with the tiny checkpoint: once with the frontend that ComfyUI pins, once with
the newest. Screenshots go to .cache/screenshots/<frontend>/.

The servers last as long as the tests. The browser ends with this folder: Playwright's event loop must be gone before
other tests start theirs. Pages that are not kept from something share a context, so that only the first has to fetch
and compile the frontend's scripts; each starts with empty storage.
"""

import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from playwright.sync_api import Page, sync_playwright
from safetensors.torch import save_file

from support.checkpoints import CHECKPOINT
from support.comfy_server import PACK_NAME, ComfyServer, link_folder
from support.environment import find_browser, find_comfyui, find_frontend

ROOT = Path(__file__).resolve().parents[2]

SCREENSHOTS = ROOT / ".cache" / "screenshots"
OURS = f"/extensions/{PACK_NAME}/"
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": False}
SMALL = {"width": 64, "height": 64, "steps": 2, "max_new_tokens": 8}

WATCH = """() => {
  window.seen = [];
  for (const kind of ["execution_start", "execution_cached", "executed", "execution_success", "execution_error",
                      "execution_interrupted", "internvlu.text", "b_preview", "b_preview_with_metadata"]) {
    app.api.addEventListener(kind, ({ detail }) => seen.push([kind, detail]));
  }
  // What stands in the answer's panel as the text comes in.
  window.panels = [];
  const read = (selector) => document.querySelector(selector)?.value ?? document.querySelector(selector)?.textContent;
  app.api.addEventListener("internvlu.text", () =>
    requestAnimationFrame(() => panels.push([".internvlu-panel textarea", ".internvlu-status"].map(read))));
}"""

# quiet(still, least, limit) returns when nothing has changed on the page for `still` ms, two frames were drawn, and all
# answers that were asked for have come. All is measured by the page's own clock, so a slow machine only makes it later:
# whatever the frontend does by a timer of at most `still` ms is done then. `least` ms are enough where nothing is under
# way: no such timer, no animation that ends, no script or style sheet that is loaded. After `limit` ms it fails.
NOTICE_CHANGES = """(() => {
  let changes = 0;
  const open = new Set();
  const counted = (owner, name) => {
    const real = owner?.[name];
    if (!real) return;
    owner[name] = function (...args) {
      const result = real.apply(this, args);
      const what = `${name} ${args[0]?.url ?? args[0] ?? ""}`.trim();
      const entry = { what };
      const done = () => { open.delete(entry); changes++; };
      open.add(entry);
      result.then(done, done);
      return result;
    };
  };
  counted(window, "fetch");
  for (const name of ["json", "text", "blob", "arrayBuffer"]) counted(Response.prototype, name);
  for (const name of ["read", "readText", "write", "writeText"]) counted(window.Clipboard?.prototype, name);
  const send = XMLHttpRequest.prototype.send;
  XMLHttpRequest.prototype.send = function (...args) {
    const entry = { what: `XMLHttpRequest ${this.responseURL}` };
    open.add(entry);
    this.addEventListener("loadend", () => { open.delete(entry); changes++; });
    return send.apply(this, args);
  };
  const { setTimeout: later, clearTimeout: never } = window;
  const timers = new Map(), parts = new Set();
  window.setTimeout = (call, delay = 0, ...args) => {
    const timer = later(() => {
      timers.delete(timer);
      if (typeof call === "function") call(...args);
      else (0, eval)(call);
    }, delay);
    timers.set(timer, delay);
    return timer;
  };
  window.clearTimeout = window.clearInterval = (timer) => { timers.delete(timer); never(timer); };
  const noteParts = (nodes) => {
    for (const link of nodes) {
      if (link.tagName !== "LINK" || !["modulepreload", "stylesheet"].includes(link.rel)) continue;
      parts.add(link);
      for (const end of ["load", "error"]) link.addEventListener(end, () => parts.delete(link), { once: true });
    }
  };
  const underWay = (still) =>
    [...timers.values()].some((delay) => delay <= still) ||
    [...parts].some((link) => link.isConnected) ||
    document.getAnimations().some(({ playState, effect }) =>
      playState === "running" && effect?.getComputedTiming().endTime !== Infinity);
  let last = "";
  const name = (node) => (node.parentElement ?? node).outerHTML?.slice(0, 300);
  new MutationObserver((records) => {
    changes += records.length;
    for (const { addedNodes } of records) noteParts(addedNodes);
    last = `${records[0].type} ${records[0].attributeName} in ${name(records[0].target)}`;
  }).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
  const state = () => {
    const { app } = window;
    const tracker = app?.extensionManager?.workflow?.activeWorkflow?.changeTracker;
    const { scale, offset } = app?.canvas?.ds ?? {};
    const { _version, nodes } = app?.graph ?? {};
    const { undoQueue, redoQueue, _restoringState } = tracker ?? {};
    if (_restoringState) changes++;
    return [changes, scale, offset?.[0], offset?.[1], _version, nodes?.length, undoQueue?.length, redoQueue?.length]
      .join(" ");
  };
  const frame = () => new Promise(requestAnimationFrame);
  window.drawn = async () => { await frame(); await frame(); };
  window.quiet = async (still, least, limit) => {
    const end = performance.now() + limit;
    for (;;) {
      const before = state();
      await drawn();
      const start = performance.now();
      do await new Promise((done) => later(done, least));
      while ((open.size || underWay(still)) && state() === before && performance.now() < start + still);
      const after = state();
      if (!open.size && after === before) return;
      if (performance.now() > end)
        throw new Error(`not quiet: ${before} → ${after}; ${last}; waits for ${[...open].map(({ what }) => what)}`);
    }
  };
})()"""

# Nodes by id, and links by the names of their sockets: what a slot's number is may differ.
READ_GRAPH = """(graph) => {
  graph ??= JSON.parse(JSON.stringify(app.graph.serialize()));
  const byId = Object.fromEntries(graph.nodes.map((node) => [node.id, node]));
  return {
    nodes: Object.fromEntries(graph.nodes.map((node) => [node.id, node.type])),
    links: graph.links.map(([, from, output, to, input]) =>
      [from, byId[from].outputs[output].name, to, byId[to].inputs[input].name].join(" ")).sort(),
  };
}"""

# Of each node: {id: what is written} of sockets and widgets.
LABELS = """() => Object.fromEntries(app.graph.nodes.map((node) => {
  const shown = (slot) => slot.label || slot.localized_name || slot.name;
  const outputs = node.outputs.map((slot) => [slot.name, shown(slot)]);
  const ours = (widget) => !widget.name.startsWith("internvlu_");
  return [node.type, {
    title: node.title,
    inputs: Object.fromEntries(node.inputs.map((slot) => [slot.name, shown(slot)])),
    widgets: Object.fromEntries((node.widgets ?? []).filter(ours).map((w) => [w.name, w.label ?? w.name])),
    outputs: Object.fromEntries(outputs),
  }];
}))"""

# What a widget shows in place of its value.
DISPLAYED = """([kind, name]) => app.graph.nodes.find((node) => node.type === kind)
  .widgets.find((widget) => widget.name === name)._displayValue"""

OVERLAPS = """() => {
  const boxes = app.graph.nodes.map((node) => [node.type, ...node.boundingRect]);
  return boxes.flatMap(([a, x, y, w, h], i) => boxes.slice(0, i)
    .filter(([, x2, y2, w2, h2]) => x < x2 + w2 && x2 < x + w && y < y2 + h2 && y2 < y + h)
    .map(([b]) => `${a} and ${b}`));
}"""


class Ui:
    """One page of ComfyUI's frontend."""

    def __init__(self, context, server: ComfyServer, frontend: str, blocked: bool = False, missing: bool = False):
        """blocked: without our scripts. missing: as on a machine that has the toy and no other checkpoint."""
        self.server, self.frontend = server, frontend
        self.errors, self.posted = [], []  # console errors from our files, prompts sent to the server
        self.page: Page = context.new_page()
        self.page.set_default_timeout(120_000)
        everything = {"origin": server.url, "storageTypes": "local_storage,indexeddb"}  # of an earlier page
        context.new_cdp_session(self.page).send("Storage.clearDataForOrigin", everything)
        if missing:
            self.page.route("**/object_info", self._without_checkpoint)
        if blocked:
            self.page.route(lambda url: OURS in url and url.split("?")[0].endswith(".js"), lambda route: route.abort())
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: OURS in (error.stack or "") and self.errors.append(error.stack))
        self.page.on("request", self._on_request)
        self.open()

    def _on_console(self, message):
        where = message.location.get("url", "")
        # A help page that is not there in one language is asked for in the next.
        missing_help = "/docs/" in where and "Failed to load resource" in message.text
        if message.type == "error" and OURS in where + message.text and not missing_help:
            self.errors.append(f"{where}: {message.text}")

    def _without_checkpoint(self, route):
        answer = route.fetch()
        nodes = answer.json()
        kind, *options = nodes["InternVLULoader"]["input"]["required"]["checkpoint"]
        there = ["InternVL-U-toy", "download: InternVL-U (8.5 GB)"]
        checkpoint = [there, *options] if isinstance(kind, list) else [kind, {**options[0], "options": there}]
        nodes["InternVLULoader"]["input"]["required"]["checkpoint"] = checkpoint
        route.fulfill(response=answer, json=nodes)

    def _on_request(self, request):
        if request.method == "POST" and request.url.endswith("/prompt"):
            self.posted.append(request.post_data_json["prompt"])

    def open(self):
        self.page.goto(self.server.url)
        self.wait(
            "() => window.app?.graph?.nodes.length && LiteGraph.registered_node_types.SaveImage"
            " && app.extensionManager?.workflow?.activeWorkflow"
        )
        self.settle(300)  # what it opens by itself, like the last workflow, is open then
        self.js(WATCH)

    def reload(self):
        """Open the page anew, with what is on it."""
        self.settle(600, least=600)  # some frontends save that half a second after the last change
        self.open()

    def shot(self, name: str):
        folder = SCREENSHOTS / self.frontend
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png")

    def js(self, script: str, arg=None):
        return self.page.evaluate(script, arg)

    def wait(self, script: str, arg=None, seconds: float = 120):
        self.page.wait_for_function(script, arg=arg, timeout=seconds * 1000)

    def set_setting(self, name: str, value):
        self.js("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
        self.settle()

    def open_template(self, name: str):
        """As a person does: from the template browser."""
        self.page.get_by_role("button", name="Templates").first.click()
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        self.page.get_by_test_id("template-workflows-content").wait_for(state="hidden")
        self.wait("(name) => app.extensionManager.workflow.activeWorkflow?.path.includes(name)", name)
        self.settle()

    def load(self, graph: dict):
        self.js("(graph) => app.loadGraphData(graph, true, true)", graph)
        self.settle()

    def fresh(self, *types: str):
        """An empty graph with new nodes of these types, side by side."""
        self.js(
            """(types) => {
              app.graph.clear();
              let x = 0;
              for (const type of types) {
                const node = LiteGraph.createNode(type);
                app.graph.add(node);
                node.pos = [x, 0];
                x += node.size[0] + 60;
              }
            }""",
            list(types),
        )
        self.settle()
        self.look_at(types[0], scale=1.0)

    def settle(self, still: float = 300, least: float = 100):
        """Wait until the page has been quiet for `still` ms, or for `least` ms with nothing under way."""
        self.js("([still, least, limit]) => quiet(still, least, limit)", [still, least, 60_000])

    def look_at(self, kind: str, scale: float = 0.9):
        """Move the canvas so that the node is in front."""
        self.js(
            """([kind, scale]) => {
              const node = app.graph.nodes.find((node) => node.type === kind);
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset = [160 / scale - node.pos[0], 130 / scale - node.pos[1]];
              app.canvas.setDirty(true, true);
            }""",
            [kind, scale],
        )
        self.settle()

    def set(self, kind: str, **values):
        self.js(
            """async ([kind, values]) => {
              const node = app.graph.nodes.find((node) => node.type === kind);
              for (const [name, value] of Object.entries(values)) {
                const widget = node.widgets.find((widget) => widget.name === name);
                widget.value = value;
                widget.callback?.(value, app.canvas, node);
              }
              await drawn();
            }""",
            [kind, values],
        )

    def get(self, kind: str, name: str):
        return self.js(
            """([kind, name]) => app.graph.nodes.find((node) => node.type === kind)
              .widgets.find((widget) => widget.name === name)?.value""",
            [kind, name],
        )

    def make_small(self):
        """Every size and length that the graph's nodes ask for."""
        self.js(
            """(small) => {
              const shrink = (graph) => {
                for (const node of graph.nodes) {
                  for (const widget of node.widgets ?? []) {
                    if (!(widget.name in small)) continue;
                    widget.value = small[widget.name];
                    widget.callback?.(widget.value, app.canvas, node);
                  }
                  if (node.subgraph) shrink(node.subgraph);
                }
              };
              shrink(app.graph);
            }""",
            SMALL,
        )

    def api(self) -> dict:
        """The API format of the graph."""
        output = self.js("async () => (await app.graphToPrompt()).output")
        return {key: {k: v for k, v in node.items() if k != "_meta"} for key, node in output.items()}

    def start(self):
        self.js("() => { seen.length = panels.length = 0; }")
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        self.wait("() => seen.some(([kind]) => kind === 'execution_start')")

    def end(self) -> str:
        """How the run ended."""
        ends = ["execution_success", "execution_error", "execution_interrupted"]
        self.wait("(ends) => seen.some(([kind]) => ends.includes(kind))", ends, seconds=120)
        self.settle()
        return next(kind for kind, _ in self.seen() if kind in ends)

    def run(self):
        self.start()
        how = self.end()
        assert how == "execution_success", [data for kind, data in self.seen() if kind == "execution_error"]

    def click_canvas(self):
        """Where nothing is: after it the frontend takes note of what has changed. Pastes go to another place."""
        self.js("""() => {
          Object.assign(app.canvas.ds, { scale: 0.3, offset: [700, 500] });
          app.canvas.setDirty(true, true);
        }""")
        self.settle()
        self.page.mouse.click(1450, 560)
        # Keys are for the canvas, as after a person's click: a text area has an undo and a paste of its own.
        self.js("() => app.canvas.canvas.focus()")
        self.page.mouse.move(400, 640)
        self.settle()

    def press(self, keys: str):
        self.page.keyboard.press(keys)
        if "Control" in keys:  # undo and redo, and what waits for the clipboard, are under way unseen by the page
            self.page.wait_for_timeout(700)
        self.settle()

    def type(self, words: str):
        self.page.keyboard.type(words)
        self.settle()

    def wait_until(self, reached, seconds: float = 10):
        """Ask again and again until a function says so: what it waits for may begin unseen by the page, as a paste."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, "this does not come"
            self.page.wait_for_timeout(200)

    def undo_until(self, reached, keys: str = "Control+z"):
        """Press undo, or redo, until a function says so: some frontends count an arrangement as a change of its own."""
        for _ in range(3):
            self.press(keys)
            if reached():
                return
        raise AssertionError(f"{keys} does not lead there")

    def copied(self) -> str:
        """What is on the clipboard; Windows has two characters at the end of a line."""
        self.settle()
        return self.js("() => navigator.clipboard.readText()").replace("\r\n", "\n")

    def execute(self, **output):
        """As if the server had sent this output of every node on the graph."""
        self.js(
            """async (output) => {
              for (const { id } of app.graph.nodes) {
                const detail = { node: String(id), display_node: String(id), output };
                app.api.dispatchEvent(new CustomEvent("executed", { detail }));
              }
              await drawn();
            }""",
            output,
        )

    def seen(self) -> list:
        return self.js("() => JSON.parse(JSON.stringify(seen))")

    def cached(self) -> set:
        return {str(node) for kind, data in self.seen() if kind == "execution_cached" for node in data["nodes"]}

    def graph(self, of: dict | None = None) -> dict:
        return self.js(READ_GRAPH, of)

    def labels(self) -> dict:
        return self.js(LABELS)

    def displayed(self, kind: str, name: str) -> str:
        return self.js(DISPLAYED, [kind, name])

    def overlaps(self) -> list:
        return self.js(OVERLAPS)

    def close(self):
        self.page.close()


@pytest.fixture(scope="package")
def contexts():
    """contexts(): a context of a browser, which is like another person's browser."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        # Frontends ask for news and for a registry; where there is no network, that fails at once instead of by and by.
        arguments.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)

        def new_context():
            context = browser.new_context(viewport={"width": 1600, "height": 1000})
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            context.add_init_script(NOTICE_CHANGES)
            return context

        yield new_context
        browser.close()


@pytest.fixture(scope="package")
def context(contexts):
    return contexts()


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """servers(frontend): a server with the pinned or the newest frontend, started when it is first asked for."""
    with ExitStack() as running:

        @cache
        def started(frontend: str) -> ComfyServer:
            base = tmp_path_factory.mktemp(frontend)
            (base / "models" / "internvl_u").mkdir(parents=True)
            link_folder(CHECKPOINT, base / "models" / "internvl_u" / "InternVL-U")
            (base / "models" / "loras").mkdir()
            lora = {
                f"diffusion_model.transformer_blocks.0.attn.to_v.lora_{k}.weight": torch.ones(s)
                for k, s in {"A": (1, 64), "B": (64, 1)}.items()
            }
            save_file(lora, base / "models" / "loras" / "internvl_u_lora.safetensors")
            arguments = ["--preview-method", "latent2rgb"]
            if frontend == "newest":
                arguments += ["--front-end-root", str(find_frontend())]
            packs = {"debug_pack": ROOT / "tests" / "support" / "debug_pack"}
            env = {"OMP_NUM_THREADS": "1"}
            server = ComfyServer(find_comfyui(), base, ROOT, arguments, env=env, extra_packs=packs)
            running.enter_context(server)
            for picture in (ROOT / "tests" / "pictures").glob("*.png"):
                server.upload_image(picture)
            return server

        yield started


@pytest.fixture(scope="module", params=["pinned", "newest"])
def host(request, contexts, context, servers):
    """A server with one of the frontends, as if nothing had run on it.

    host.open() opens a page on it, host.open(blocked=True) or host.open(missing=True) one in a context of its own.
    """
    server = servers(request.param)
    server.post("/settings", QUIET)
    server.post("/free", {"free_memory": True})  # its cache

    def open_page(**options):
        return Ui(contexts() if options else context, server, request.param, **options)

    return SimpleNamespace(open=open_page, server=server)


@pytest.fixture(scope="module")
def shared_page(host):
    ui = host.open()
    yield ui
    ui.close()


@pytest.fixture
def ui(shared_page, request):
    """The module's page; a console error from our files fails the test, and every test leaves a screenshot."""
    if shared_page.page.locator("[role=dialog]:visible, .p-toast-message:visible").count():
        shared_page.open()  # what a failed test has left
    shared_page.errors.clear()
    shared_page.posted.clear()
    yield shared_page
    shared_page.shot(request.node.name.replace("/", "_"))
    assert not shared_page.errors


@pytest.fixture(params=["litegraph", "vue"])
def mode(ui, request):
    ui.set_setting("Comfy.VueNodes.Enabled", request.param == "vue")
    yield request.param
    ui.set_setting("Comfy.VueNodes.Enabled", False)
