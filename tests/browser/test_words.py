"""The words of Reason: where they stand while they come in and after it, in subgraphs, tabs, undo and saved files."""

import io
import json

import pytest
from PIL import Image

from support.saved_workflows import saved_graph

REASON = "InternVLUReason"
KEY = "internvlu_reasoning"
HOST = "app.graph.nodes.find((node) => node.subgraph)"

# Of every piece of text that comes: how much of it there is, is on the page, and would be saved.
WATCH_DRAFTS = """() => {
  window.drafts = [];
  app.api.addEventListener("internvlu.text", ({ detail }) => {
    const node = app.graph.nodes.find((node) => node.type === "InternVLUReason");
    const saved = app.graph.serialize().nodes.find(({ id }) => id == node.id).widgets_values;
    const shown = node.widgets.find(({ name }) => name === "text").element.value;
    drafts.push([detail.text.length, shown.length, JSON.stringify(saved)]);
  });
}"""


@pytest.fixture
def graph(ui, mode, request):
    """reason_then_draw, small, with a prompt that no earlier test has had: nothing comes out of the cache."""
    ui.load(saved_graph("reason_then_draw"))
    ui.make_small()
    ui.set("InternVLUSampler", control_after_generate="fixed")
    ui.set(REASON, max_new_tokens=60, prompt=request.node.name)
    ui.click_canvas()


def shown(words: str) -> str:
    return words.replace("\r\n", "\n").replace("\r", "\n")


def generated(ui) -> str:
    """What the run has written."""
    (text,) = next(d["output"]["text"] for k, d in reversed(ui.seen()) if k == "executed" and "tokens" in d["output"])
    return text


def reason_inputs(ui) -> dict:
    return next(node["inputs"] for node in ui.api().values() if node["class_type"] == REASON)


def saved_picture(ui) -> bytes:
    outputs = [data["output"] for kind, data in reversed(ui.seen()) if kind == "executed"]
    (image,) = next(output["images"] for output in outputs if "images" in output)
    return ui.server.view(**image)


def drop(ui, content: bytes):
    ui.js(
        """async (bytes) => {
          app.graph.clear();
          await app.handleFile(new File([new Uint8Array(bytes)], "picture.png", { type: "image/png" }));
        }""",
        list(content),
    )
    ui.wait("() => app.graph.nodes.length > 3")
    ui.settle()


def text_areas(ui) -> list:
    """Those of Reason that a person sees, as (text, outlined as one's own)."""
    return ui.js("""() => [...document.querySelectorAll("textarea")]
      .filter((area) => area.checkVisibility() && area.placeholder.startsWith("The reasoning appears here"))
      .map((area) => [area.value, area.hasAttribute("data-internvlu-own")])""")


def test_half_written_words_are_on_the_page_only(ui, graph):
    ui.look_at(REASON)
    ui.js(WATCH_DRAFTS)
    ui.run()
    words = generated(ui)
    drafts = ui.js("() => drafts")
    assert len({length for length, _, _ in drafts}) > 1
    assert all(on_page == length for length, on_page, _ in drafts)
    assert len({saved for _, _, saved in drafts}) == 1 and words[:9] not in drafts[-1][2]
    assert shown(ui.get(REASON, "text")) == shown(words)


def test_a_run_that_fails_before_its_first_word_leaves_the_words(ui, graph):
    ui.look_at(REASON)
    ui.run()
    words = ui.get(REASON, "text")
    ui.set(REASON, prompt="<image> without a picture")
    ui.start()
    assert ui.end() == "execution_error"
    ui.settle()
    assert ui.get(REASON, "text") == words and text_areas(ui) == [[shown(words), False]]
    ui.press("Escape")  # the frontend's own message


def test_undo_of_words_and_of_what_came_after_them(ui, graph):
    ui.run()
    words = ui.get(REASON, "text")
    ui.js("() => { const n = LiteGraph.createNode('Note'); app.graph.add(n); n.pos = [3000, 3000]; }")
    ui.click_canvas()
    ui.undo_until(lambda: not ui.js("() => app.graph.nodes.some((node) => node.type === 'Note')"))
    assert ui.get(REASON, "text") == words

    # One's own words: badge, outline, bar and value go back and forth together.
    ui.look_at(REASON)
    area = ui.page.locator("textarea:visible").filter(visible=True)
    index = next(i for i in range(area.count()) if area.nth(i).input_value() == shown(words))
    area.nth(index).click()
    ui.press("Control+a")
    ui.type("my words")
    ui.click_canvas()
    for keys, own in (("", True), ("Control+z", False), ("Control+y", True)):
        if keys:
            ui.undo_until(lambda own=own: ui.get(REASON, "pinned") is own, keys)
            # The browser's own undo would go back in the text as well, and take the focus.
            assert ui.js("() => document.activeElement.tagName") != "TEXTAREA"
        ui.look_at(REASON)
        assert ui.get(REASON, "pinned") is own
        assert shown(ui.get(REASON, "text")) == ("my words" if own else shown(words))
        assert text_areas(ui) == [["my words" if own else shown(words), own]]
        badge = "() => app.graph.nodes.find((n) => n.type === 'InternVLUReason').badges.at(-1)().text"
        assert ui.js(badge) == ("My own words" if own else "")
        assert ui.page.locator(".internvlu-pinned").count() == own


def test_a_saved_picture_shows_its_words_and_one_click_keeps_them(ui, graph):
    ui.set(REASON, text="of an earlier run")
    ui.run()
    words = generated(ui)
    content = saved_picture(ui)
    saved = {key: json.loads(text) for key, text in Image.open(io.BytesIO(content)).text.items()}
    assert saved[KEY] == {"8": words}
    ui.set(REASON, text="of a later run")
    drop(ui, content)
    assert shown(ui.get(REASON, "text")) == shown(words)
    assert ui.get(REASON, "pinned") is False and reason_inputs(ui)["text"] == ""
    assert KEY not in json.dumps(ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))"))
    ui.set(REASON, pinned=True)
    assert shown(reason_inputs(ui)["text"]) == shown(words)


def promoted(ui):
    """Reason in a subgraph whose node shows its prompt, text and pinned, as older frontends save it."""
    ui.js("(type) => { app.graph.convertToSubgraph(new Set(app.graph.nodes.filter((n) => n.type === type))); }", REASON)
    ui.settle()
    graph = ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    (subgraph,) = graph["definitions"]["subgraphs"]
    host = next(node for node in graph["nodes"] if node["type"] == subgraph["id"])
    inner = str(subgraph["nodes"][0]["id"])
    # What newer frontends promote by themselves.
    extra = [socket for socket in subgraph["inputs"] if socket["name"] == "seed"]
    links = {link for socket in extra for link in socket["linkIds"]}
    subgraph["inputs"] = [socket for socket in subgraph["inputs"] if socket not in extra]
    subgraph["links"] = [link for link in subgraph["links"] if link["id"] not in links]
    for socket in subgraph["nodes"][0]["inputs"]:
        socket["link"] = None if socket.get("link") in links else socket.get("link")
    host["inputs"] = [socket for socket in host["inputs"] if socket["name"] != "seed"]
    host["widgets_values"] = []
    host["properties"] = {"proxyWidgets": [[inner, "prompt"], [inner, "text"], [inner, "pinned"]]}
    ui.load(graph)
    ui.js(f"""() => {{
      const host = {HOST};
      host.setSize([420, 520]);
      app.canvas.ds.scale = 1;
      app.canvas.ds.offset = [300 - host.pos[0], 200 - host.pos[1]];
      app.canvas.setDirty(true, true);
    }}""")
    ui.settle()


def host_value(ui, name: str):
    return ui.js(f"(name) => {HOST}.widgets.find((w) => w.name === name || w.name.endsWith(`: ${{name}}`)).value", name)


def test_words_promoted_to_a_subgraphs_node(ui, graph):
    promoted(ui)
    ui.run()
    words, content = generated(ui), saved_picture(ui)
    assert shown(host_value(ui, "text")) == shown(words) and host_value(ui, "pinned") is False
    assert reason_inputs(ui)["text"] == ""
    ui.run()
    ((key, _),) = [(key, node) for key, node in ui.posted[-1].items() if node["class_type"] == REASON]
    assert ":" in key and key in ui.cached()
    area = ui.page.locator("textarea:visible")
    (index,) = [i for i in range(area.count()) if area.nth(i).input_value() == shown(words)]
    area.nth(index).click()
    ui.press("Control+a")
    ui.type("a lighthouse")
    ui.settle()
    assert (host_value(ui, "text"), host_value(ui, "pinned")) == ("a lighthouse", True)
    assert text_areas(ui) == [["a lighthouse", True]]
    label = f"() => {HOST}.widgets.find((w) => w.name === 'pinned' || w.name.endsWith(': pinned')).label"
    assert ui.js(label) == "my own words"
    ui.run()
    assert ui.posted[-1][key]["inputs"] | {"text": "a lighthouse", "pinned": True} == ui.posted[-1][key]["inputs"]
    assert host_value(ui, "text") == "a lighthouse"

    # And out of the picture's file, into the subgraph's node.
    drop(ui, content)
    assert shown(host_value(ui, "text")) == shown(words) and host_value(ui, "pinned") is False


def test_words_belong_to_the_workflow_that_was_queued(ui, graph):
    ui.set(REASON, max_new_tokens=300, temperature=3.0, seed=7)
    ui.click_canvas()
    # The other tab, a copy with the same ids, is opened at the first piece of text.
    ui.js("""() => {
      let done = false;
      app.api.addEventListener("internvlu.text", () => {
        if (!done) app.extensionManager.command.execute("Comfy.DuplicateWorkflow");
        done = true;
      });
    }""")
    first = ui.js("() => app.extensionManager.workflow.activeWorkflow.path")
    ui.start()
    assert ui.end() == "execution_success"
    ui.settle()
    assert ui.js("() => app.extensionManager.workflow.activeWorkflow.path") != first
    words = generated(ui)
    assert ui.get(REASON, "text") == ""
    ui.js("async () => { await app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow'); }")
    ui.wait("(path) => app.extensionManager.workflow.activeWorkflow.path === path", first)
    ui.look_at(REASON)
    text = "app.graph.nodes.find((node) => node.type === 'InternVLUReason').widgets.find((w) => w.name === 'text')"
    ui.wait(f"() => {text}.value")
    assert shown(ui.get(REASON, "text")) == shown(words)
