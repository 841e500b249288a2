"""The shipped workflows and blueprints as a person meets them: in the template browser, opened, run, unpacked."""

import json
from pathlib import Path

import pytest

from support.comfy_server import PACK_NAME
from support.described_workflows import SHOWN_ONLY, SUBGRAPHS, WORKFLOWS, subgraphs_in
from support.workflows import is_for_this

ROOT = Path(__file__).resolve().parents[2]

TITLES = {name: spec["title"] for name, spec in WORKFLOWS.items()}
MAIN = [name for name, spec in WORKFLOWS.items() if subgraphs_in(spec)]
# Of those, some have nothing that another has not.
RARE = "edit", "reason_then_draw", "ask"
MAIN_ONCE = [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in MAIN]
NOTICE = ".internvlu-missing"
SEARCH = 1000  # ms; longer than the frontend waits for more letters
# What a person writes into a subgraph's node, by the name of its input.
WRITTEN = {
    "prompt": "other words",
    "question": "other words",
    "thing": "other words",
    "width": 96,
    "height": 112,
    "steps": 7,
    "seed": 99,
    "checkpoint": "InternVL-U-toy",
}
HOST = "app.graph.nodes.find((node) => node.subgraph)"
SHOWN = f"() => Object.fromEntries({HOST}.widgets.map((w) => [w.name.replace(/^.*: /, ''), w.value]))"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def graph_of(name: str) -> dict:
    return read(ROOT / "workflows" / f"{TITLES[name]}.json")


def flat(prompt: dict) -> dict:
    """Without the subgraphs that nodes are in, and without nodes that only show."""
    bare = {
        key: {
            "class_type": node["class_type"],
            "inputs": {
                name: [value[0].split(":")[-1], value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
        }
        for key, node in prompt.items()
        if node["class_type"] not in SHOWN_ONLY
    }
    assert len({key.split(":")[-1] for key in bare}) == len(bare)
    return {key.split(":")[-1]: node for key, node in bare.items()}


def meaning(prompt: dict) -> list:
    """The nodes, whatever their ids."""

    def of(node: dict):
        inputs = {key: value for key, value in node["inputs"].items() if not isinstance(value, list)}
        links = {
            key: [prompt[value[0]]["class_type"], value[1]]
            for key, value in node["inputs"].items()
            if isinstance(value, list)
        }
        return json.dumps([node["class_type"], inputs, links], sort_keys=True)

    return sorted(of(node) for node in prompt.values())


def assert_is(ui, name: str):
    """The graph on the page is the shipped one, node for node, link for link, value for value."""
    assert ui.graph() == ui.graph(graph_of(name))
    expected = read(ROOT / "workflows" / "api" / f"{name}.json")
    for node_id in WORKFLOWS[name].get("bypassed", ()):
        for node in expected.values():
            for key, value in node["inputs"].items():
                if isinstance(value, list) and value[0] == node_id:
                    # What a bypassed LoraLoader passes on: its own inputs.
                    node["inputs"][key] = expected[node_id]["inputs"][("model", "clip")[value[1]]]
        del expected[node_id]
    assert flat(ui.api()) == expected


def assert_no_complaint(ui):
    """Neither a dialog nor a message, and no node or model missed."""
    said = ui.page.locator("dialog[open], [role=dialog]:visible, .p-toast-message:visible").all_inner_texts()
    assert [text for text in said if "Switch back" not in text] == []  # to the nodes of old, an offer in Vue mode
    assert ui.page.get_by_text("Missing", exact=False).filter(visible=True).count() == 0
    assert ui.js("() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)") == []


def assert_legible(ui):
    """Nothing is left out of the drawing for being small, and all of it is on the page."""
    assert ui.js("() => app.canvas.low_quality") is False
    assert ui.js("() => app.canvas.ds.scale") >= 0.65
    outside = """() => {
      app.canvas.ds.computeVisibleArea(app.canvas.viewport);
      const [left, top, width, height] = app.canvas.visible_area;
      return app.graph.nodes.filter(({ pos: [x, y], size }) =>
        x < left || y < top || x + size[0] > left + width || y + size[1] > top + height).map((node) => node.type);
    }"""
    assert ui.js(outside) == []


def write(ui, values: dict):
    ui.js(
        f"""(values) => {{
          const host = {HOST};
          for (const widget of host.widgets) {{
            const value = values[widget.name.replace(/^.*: /, "")];
            if (value === undefined) continue;
            widget.value = value;
            widget.callback?.(value, app.canvas, host);
          }}
        }}""",
        values,
    )
    ui.settle()


def make_quick(ui):
    """Small pictures too: those of the tests."""
    ui.make_small()
    ui.js("""() => {
      for (const node of app.graph.nodes)
        if (node.type === "LoadImage") node.widgets.find((widget) => widget.name === "image").value = "photo.png";
        else if (node.type === "LoadImageMask")
          node.widgets.find((widget) => widget.name === "image").value = "mask.png";
    }""")


@pytest.mark.parametrize("name", TITLES)
def test_templates(ui, name):
    if not is_for_this(name, ui.server.object_info()):
        return  # its other version is, and is tested
    ui.open_template(TITLES[name])
    assert_no_complaint(ui)
    assert_is(ui, name)
    assert ui.overlaps() == []
    assert_legible(ui)
    ui.shot(f"template_{name}")
    make_quick(ui)
    ui.run()
    outputs = {str(data["node"]) for kind, data in ui.seen() if kind == "executed"}
    shown = {"SaveImage", "PreviewImage", "PreviewAny", "MaskPreview", "InternVLUAsk", "InternVLUReason"}
    assert outputs >= {key for key, node in ui.posted[-1].items() if node["class_type"] in shown}
    assert_no_complaint(ui)
    assert ui.overlaps() == []


def test_template_browser(ui):
    """Found by the model's name; under the pack's own in the order in which one meets them; with their pictures."""
    ui.page.get_by_role("button", name="Templates").first.click()
    cards = "[data-testid^=template-workflow-]"

    def listed():
        ui.wait(f"(many) => document.querySelectorAll('{cards}').length >= many", len(TITLES))
        found = [card.get_attribute("data-testid") for card in ui.page.locator(cards).all()]
        titles = [title.removeprefix("template-workflow-") for title in found]
        return [title for title in titles if title in TITLES.values()]

    search = ui.page.get_by_placeholder("Search").last
    search.fill("internvl")
    ui.settle(SEARCH)
    assert sorted(listed()) == list(TITLES.values())
    search.fill("")
    ui.page.get_by_text(PACK_NAME).filter(visible=True).first.click()
    ui.settle(SEARCH)
    assert listed() == list(TITLES.values())
    pictures = f"[data-testid='template-workflow-{TITLES['edit']}'] img"
    ui.wait("(images) => [...document.querySelectorAll(images)].some((image) => image.naturalWidth === 400)", pictures)
    ui.shot("template_browser")
    ui.page.get_by_test_id(f"template-workflow-{TITLES['edit']}").click()
    ui.page.get_by_test_id("template-workflows-content").wait_for(state="hidden")


@pytest.mark.parametrize("name", MAIN_ONCE)
def test_templates_in_vue_mode(ui, name):
    ui.set_setting("Comfy.VueNodes.Enabled", True)
    try:
        ui.load(graph_of(name))
        assert_no_complaint(ui)
        assert_is(ui, name)
        ui.shot(f"vue_template_{name}")
        make_quick(ui)
        ui.run()
        assert_no_complaint(ui)
    finally:
        ui.set_setting("Comfy.VueNodes.Enabled", False)


@pytest.mark.parametrize("name", [name for name in MAIN_ONCE if name != "toy_world"])
def test_what_is_written_into_a_subgraph_stays(ui, name):
    """Over saving, pasting, being put into another subgraph, and unpacking."""
    (title,) = subgraphs_in(WORKFLOWS[name])
    ui.load(graph_of(name))
    values = {key: value for key, value in WRITTEN.items() if key in ui.js(SHOWN)}
    assert {"checkpoint"} < set(values) and ("seed" in values) == bool(SUBGRAPHS[title]["own"])
    before = meaning(ui.api())
    write(ui, values)
    after = meaning(ui.api())
    assert before != after and sum("other words" in node for node in after) == 1

    saved = ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    ui.load(saved)
    assert meaning(ui.api()) == after
    assert values.items() <= ui.js(SHOWN).items()

    ui.js(f"() => {{ app.canvas.selectNode({HOST}); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }}")
    ui.settle()
    shown = "() => app.graph.nodes.filter((node) => node.subgraph).map((host) => host.widgets.map((w) => w.value))"
    first, second = ui.js(shown)
    assert first == second
    ui.load(saved)

    ui.js(f"() => {{ app.graph.convertToSubgraph(new Set([{HOST}])); }}")
    ui.settle()
    assert meaning(ui.api()) == after
    for _ in range(2):
        ui.js(f"() => {{ app.graph.serialize(); app.graph.unpackSubgraph({HOST}); }}")
        ui.settle()
        assert meaning(ui.api()) == after
    assert ui.js(f"() => {HOST} === undefined")


@pytest.mark.parametrize("title", SUBGRAPHS)
def test_blueprints(ui, title):
    """Each is in the library with its description, and the same as in its template."""
    blueprint = read(ROOT / "subgraphs" / f"{title}.json")
    ui.load(blueprint)
    assert_no_complaint(ui)
    (name,) = [name for name in MAIN if name != "toy_world" and title in subgraphs_in(WORKFLOWS[name])]
    shown = ui.js(SHOWN)
    inside = {key: node for key, node in ui.api().items() if ":" in key}
    ui.load(graph_of(name))
    assert ui.js(SHOWN) == shown
    template = {key: node for key, node in flat(ui.api()).items() if key in flat(inside)}
    for key, node in flat(inside).items():  # pictures from outside are not connected in it
        assert node["inputs"].items() <= template[key]["inputs"].items()
    described = SUBGRAPHS[title]["description"]
    assert blueprint["extra"]["BlueprintDescription"] == described
    labels = ui.js(f"() => Object.fromEntries({HOST}.inputs.map((input) => [input.name, input.label]))")
    wanted = {key: label for key, (label, *_) in SUBGRAPHS[title]["inputs"].items()}
    assert wanted.items() <= labels.items()


@pytest.mark.parametrize("vue", [pytest.param(False, marks=pytest.mark.slow), True])
def test_missing_checkpoint(host, vue):
    """Said when the workflow is opened, offered on the node that shows the choice, and gone with it."""
    ui = host.open(missing=True)
    button = f"{HOST}.widgets.find((widget) => widget.name === 'internvlu_download')"
    chosen = "download: InternVL-U (8.5 GB)"
    try:
        ui.set_setting("Comfy.VueNodes.Enabled", vue)
        ui.open_template(TITLES["toy_world"])
        assert_no_complaint(ui)
        ui.open_template(TITLES["text_to_image"])
        notice = ui.page.locator(NOTICE)
        notice.get_by_text("“InternVL-U”").wait_for()
        ui.shot(f"missing_checkpoint_{vue}")
        notice.get_by_role("button", name="Close").click()
        assert ui.js(f"() => {button}.label") == "Download InternVL-U (8.5 GB) on the next run"
        graph = ui.js("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
        assert "internvlu_download" not in json.dumps(graph)
        ui.load(graph)
        assert notice.count() == 0, "said twice"
        ui.js(f"() => {button}.callback()")
        ui.settle()
        assert ui.js(SHOWN)["checkpoint"] == chosen
        assert [n["inputs"]["checkpoint"] for n in ui.api().values() if "checkpoint" in n["inputs"]] == [chosen]
        assert ui.js(f"() => {button} === undefined")

        # Of a graph that shows its loader, and by the notice's own button.
        ui.open_template(TITLES["ksampler"])
        notice.get_by_role("button", name="Download").click()
        assert ui.get("InternVLULoader", "checkpoint") == chosen
        assert not ui.errors
    finally:
        ui.set_setting("Comfy.VueNodes.Enabled", False)
        ui.close()


def test_samples_are_found(ui):
    """Each picture that a workflow names is in Load Image's list."""
    named = {
        node["inputs"]["image"]
        for name in TITLES
        for node in read(ROOT / "workflows" / "api" / f"{name}.json").values()
        if node["class_type"] in ("LoadImage", "LoadImageMask")
    }
    listed = set(ui.server.object_info("LoadImage")["input"]["required"]["image"][0])
    assert named and named <= listed


def test_everything_works_without_our_scripts(host):
    """Each graph is queued as it is shipped, so a few are enough to run."""
    ui = host.open(blocked=True)
    try:
        assert ui.js("() => app.extensions.filter((e) => e.name.startsWith('InternVL-U')).length") == 0
        for name in TITLES:
            if not is_for_this(name, ui.server.object_info()):
                continue
            ui.load(graph_of(name))
            assert_is(ui, name)
            if name in ("reason_then_edit", "ksampler"):
                make_quick(ui)
                ui.run()
        ui.shot("without_our_scripts")
    finally:
        ui.close()
