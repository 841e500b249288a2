"""What people do to a graph with their hands, on both frontends and in both modes: no link and no value may be lost.

A graph is compared by what it computes: each last node with all that it depends on, links followed and values written
out. So ids and subgraphs do not count, but every link and every value that is queued does.
"""

import json

import pytest

from support.saved_workflows import SAVED, saved_graph, saved_prompt

NAMES = sorted(path.stem for path in SAVED.glob("*.json"))
REASON, ENCODE, SAMPLER = "InternVLUReason", "InternVLUEncode", "InternVLUSampler"

# Values that no node has by itself.
VALUES = {
    REASON: {
        "prompt": "one", "max_new_tokens": 7, "seed": 11, "temperature": 0.25, "top_p": 0.75, "top_k": 3,
        "system_prompt": "two", "text": "my words", "pinned": True,
    },
    ENCODE: {
        "prompt": "one", "whole_reasoning": True, "system_prompt": "three", "negative": "four",
        "partial_negative": "five",
    },
    SAMPLER: {"seed": 12, "control_after_generate": "fixed", "steps": 3, "all_scale": 2.5, "partial_scale": 1.5},
    "SaveImage": {"filename_prefix": "six"},
}  # fmt: skip

COMPUTES = """async () => {
  const prompt = (await app.graphToPrompt()).output;
  const of = (id) => ({
    kind: prompt[id].class_type,
    inputs: Object.fromEntries(Object.entries(prompt[id].inputs)
      .filter(([name]) => name !== "upload")  // a button of Load Image
      .map(([name, value]) => [name, Array.isArray(value) ? [of(value[0]), value[1]] : value])
      .sort(([a], [b]) => (a < b ? -1 : 1))),
  });
  const used = new Set(Object.values(prompt).flatMap(({ inputs }) =>
    Object.values(inputs).filter(Array.isArray).map(([id]) => String(id))));
  return Object.keys(prompt).filter((id) => !used.has(id)).map(of);
}"""


def computes(ui) -> list:
    return ordered(ui.js(COMPUTES))


def ordered(trees: list) -> list:
    return sorted(trees, key=lambda tree: json.dumps(tree, sort_keys=True))


def find(tree, kind: str) -> dict:
    """The first node of this kind in a tree."""
    if tree["kind"] == kind:
        return tree
    inner = (find(value[0], kind) for value in tree["inputs"].values() if isinstance(value, list))
    return next(filter(None, inner), None)


def cut(tree: dict, *kept: str) -> dict:
    """The node without links, but for those to the kept kinds."""
    inputs = {
        name: [cut(value[0], *kept), value[1]] if isinstance(value, list) else value
        for name, value in tree["inputs"].items()
        if not isinstance(value, list) or value[0]["kind"] in kept
    }
    return {"kind": tree["kind"], "inputs": inputs}


def dropped(tree: dict, kind: str) -> dict:
    """The tree without links from nodes of this kind."""
    inputs = {
        name: [dropped(value[0], kind), value[1]] if isinstance(value, list) else value
        for name, value in tree["inputs"].items()
        if not isinstance(value, list) or value[0]["kind"] != kind
    }
    return {"kind": tree["kind"], "inputs": inputs}


@pytest.fixture
def base(ui, mode):
    """What the graph on the page computes: reason_then_edit with values that no node has by itself."""
    ui.load(saved_graph("reason_then_edit"))
    for kind, values in VALUES.items():
        ui.set(kind, **values)
    ui.click_canvas()
    computed = computes(ui)
    (tree,) = computed
    for kind, values in VALUES.items():
        inputs = find(tree, kind)["inputs"]
        assert {name: inputs[name] for name in values if name in inputs} | {"control_after_generate": "fixed"} == {
            **values,
            "control_after_generate": "fixed",
        }
    return computed


def select(ui, *kinds: str):
    ui.js(
        "(kinds) => { app.canvas.selectItems(app.canvas.graph.nodes.filter("
        "(node) => !kinds.length || kinds.includes(node.subgraph ? 'subgraph' : node.type))); }",
        list(kinds),
    )
    ui.settle()


def command(ui, name: str):
    ui.js("async (name) => { await app.extensionManager.command.execute(name); }", name)
    ui.settle()


def convert(ui, *kinds: str):
    subgraphs = "() => app.canvas.graph.nodes.filter((node) => node.subgraph).length"
    before = ui.js(subgraphs) if "subgraph" not in kinds and kinds else 0
    select(ui, *kinds)
    command(ui, "Comfy.Graph.ConvertToSubgraph")
    assert ui.js(subgraphs) == before + 1


def unpack(ui):
    select(ui, "subgraph")
    command(ui, "Comfy.Graph.UnpackSubgraph")


def survives(ui, before: list, after: list, reload: bool = True):
    """After undo it is as before, after redo as after; and so it stays when the page is loaded anew."""
    ui.wait_until(lambda: computes(ui) == after)
    ui.click_canvas()
    ui.undo_until(lambda: computes(ui) == before)
    ui.undo_until(lambda: computes(ui) == after, "Control+y")
    if reload:
        ui.click_canvas()
        ui.reload()
        assert computes(ui) == after


@pytest.mark.parametrize("name", NAMES)
def test_saved_workflows_load(ui, name):
    """With every link and every value; nodes may have more inputs by now."""
    graph = saved_graph(name)
    ui.load(graph)
    assert ui.graph() == ui.graph(graph)
    saved = saved_prompt(name)
    loaded = ui.api()
    assert saved.keys() == loaded.keys()
    for key, node in saved.items():
        assert loaded[key] | {"inputs": loaded[key]["inputs"] | node["inputs"]} == loaded[key]


def test_copy_and_paste(ui, base):
    ui.click_canvas()
    select(ui)
    ui.press("Control+c")
    ui.press("Control+v")
    survives(ui, base, ordered(base * 2))


def test_copy_and_paste_of_a_part(ui, base):
    (tree,) = base
    encode = find(tree, ENCODE)
    ui.click_canvas()
    select(ui, REASON, ENCODE)
    ui.press("Control+c")
    ui.press("Control+v")
    without = ordered([tree, cut(encode, REASON)])
    survives(ui, base, without, reload=False)
    ui.click_canvas()
    ui.press("Control+Shift+v")  # with the links that come from elsewhere
    survives(ui, without, ordered([*without, encode]))


def test_duplicate_by_dragging(ui, base, mode):
    (tree,) = base
    x, y = ui.js("""() => {
      const node = app.graph.nodes.find((node) => node.type === "InternVLUEncode");
      app.canvas.ds.scale = 0.6;
      app.canvas.ds.offset = [700 - node.pos[0], 400 - node.pos[1]];
      app.canvas.setDirty(true, true);
      const { left, top } = app.canvas.canvas.getBoundingClientRect();
      const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 120, node.pos[1] - 14]);
      return [left + x, top + y];
    }""")
    ui.settle()
    ui.page.mouse.move(x, y)
    ui.page.keyboard.down("Alt")
    ui.page.mouse.down()
    ui.page.mouse.move(x + 60, y + 420, steps=8)
    ui.page.mouse.up()
    ui.page.keyboard.up("Alt")
    ui.settle()
    both = ordered([tree, cut(find(tree, ENCODE))])
    ui.wait_until(lambda: computes(ui) == both)
    if (ui.frontend, mode) != ("pinned", "vue"):  # which does not count a Vue node's clone as a change
        survives(ui, base, both, reload=False)


@pytest.mark.parametrize("kinds", [(ENCODE,), (REASON, ENCODE), ()], ids=["encode", "reason-encode", "all"])
def test_convert_to_subgraph_and_unpack(ui, base, kinds):
    convert(ui, *kinds)
    survives(ui, base, base, reload=kinds != ())
    unpack(ui)
    assert not ui.js("() => app.graph.nodes.some((node) => node.subgraph)")
    survives(ui, base, base, reload=kinds == ())


def test_nested_subgraphs(ui, base):
    convert(ui, REASON, ENCODE)
    convert(ui, SAMPLER, "subgraph")
    assert ui.js("() => app.graph.nodes.find((n) => n.subgraph).subgraph.nodes.some((n) => n.subgraph)")
    survives(ui, base, base)
    ui.click_canvas()
    select(ui, "subgraph")
    ui.press("Control+c")
    ui.press("Control+Shift+v")
    copy = find(base[0], SAMPLER)
    ui.wait_until(lambda: computes(ui) == ordered([*base, copy]))
    ui.click_canvas()
    ui.undo_until(lambda: computes(ui) == base)
    unpack(ui)
    unpack(ui)
    assert not ui.js("() => app.graph.nodes.some((node) => node.subgraph)")
    survives(ui, base, base)


@pytest.mark.parametrize("keys", ["Control+b", "Control+m"], ids=["bypass", "mute"])
def test_bypass_and_mute(ui, base, keys):
    without = dropped(base[0], REASON)
    select(ui, REASON)
    ui.js("() => app.canvas.canvas.focus()")
    ui.press(keys)
    survives(ui, base, [without])


def test_second_tab(ui, base):
    path = "() => app.extensionManager.workflow.activeWorkflow.path"
    first = ui.js(path)
    command(ui, "Comfy.DuplicateWorkflow")
    assert ui.js(path) != first
    assert computes(ui) == base
    ui.set(REASON, text="other words")
    other = computes(ui)
    assert other != base
    ui.click_canvas()
    command(ui, "Workspace.PreviousOpenedWorkflow")
    assert (ui.js(path), computes(ui)) == (first, base)
    command(ui, "Workspace.NextOpenedWorkflow")
    assert computes(ui) == other
