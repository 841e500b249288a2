#!/usr/bin/env python3
"""Writes workflows/*.json (the graphs people open), workflows/api/*.json and subgraphs/*.json (the blueprints).

    .cache/venv/bin/python scripts/make_workflows.py [NAME …]

The real frontend makes them all from the descriptions in tests/support/described_workflows.py: it loads the described
prompt, is told where each node goes, and then saves the graph and exports its API format, as a person's browser would.
`scripts/dev.py test` installs what this needs.
"""

import json
import re
import sys
import uuid
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from internvlu_core.checkpoints import hub  # noqa: E402
from support.described_workflows import SHOWN_ONLY, SUBGRAPHS, WORKFLOWS, subgraphs_in  # noqa: E402
from support.frontend import browser_page, open_prompt  # noqa: E402
from support.workflows import is_for_this  # noqa: E402

# Nodes by id or, of a subgraph's own node, by title. The note stands left of them, or, if there are groups, above the
# first one: what is opened is shown as a whole, and wide graphs so small that the frontend leaves their words out.
# shown: height of nodes that show a picture, if there is not room for all of it.
PLACE = """([columns, groups, words, shown]) => {
  const TITLE = 30, PAD = 15, HEAD = TITLE + PAD + 35, GAP = groups ? 55 : 40;
  const found = (key) =>
    app.graph.nodes.find((node) => String(node.id) === key || (node.subgraph && node.title === key));
  let x = 0, below = 0;
  if (words) {
    const note = LiteGraph.createNode("MarkdownNote"), width = groups ? 290 : 340;
    note.widgets[0].value = words;
    app.graph.add(note);
    const lines = words.split("\\n").reduce((sum, line) => sum + Math.ceil((line.length + 1) * 7 / width), 0);
    note.setSize([width, Math.max(150, 50 + 12 * lines)]);
    note.pos = [0, groups ? TITLE - HEAD : 0];
    if (groups) below = note.size[1] + PAD;
    else x += width + GAP;
  }
  for (const [index, keys] of columns.entries()) {
    const top = index ? 0 : below;
    let y = top, width = 0;
    for (const node of keys.map(found)) {
      node.pos = [x, y];
      if (shown && ["PreviewImage", "SaveImage"].includes(node.type)) node.setSize([node.size[0], shown]);
      y += node.size[1] + TITLE + 20;
      width = Math.max(width, node.size[0]);
    }
    if (groups) {
      const group = new LiteGraph.LGraphGroup(groups[index]);
      group.pos = [x - PAD, top - HEAD];
      group.size = [width + 2 * PAD, y - 20 - TITLE - top + HEAD + PAD];
      app.graph.add(group);
    }
    x += width + GAP;
  }
}"""

WRAP = """([title, ids, inputs, own]) => {
  const nodes = ids.map((id) => app.graph.getNodeById(Number(id)));
  const { subgraph, node: host } = app.graph.convertToSubgraph(new Set(nodes));
  subgraph.name = host.title = title;
  for (const [name, [label, ...targets]] of Object.entries(inputs)) {
    const sockets = targets.map(([id, key]) => {
      const node = subgraph.getNodeById(Number(id));
      return [node.inputs.find((input) => input.name === key), node];
    });
    const link = subgraph.getLink(sockets[0][0].link);  // of a picture from outside
    const slot = link ? subgraph.inputs[link.origin_slot] : subgraph.addInput(name, sockets[0][0].type);
    slot.label = label;
    if (!link) for (const [socket, node] of sockets) slot.connect(socket, node);
    else slot.wanted = name;
  }
  for (const slot of subgraph.inputs) {
    const input = host.inputs.find((input) => input.name === slot.name);
    input.label = slot.label;
    if (slot.wanted) slot.name = slot.localized_name = input.name = input.localized_name = slot.wanted;
  }
  host.properties.proxyWidgets = [
    ...host.inputs.filter((input) => input.widget).map(({ name }) => ["-1", name]), ...own
  ];
  host.setSize([360, host.computeSize()[1] + (own.some(([, name]) => name === "text") ? 200 : 80)]);
}"""

SAVE = """(alone) => {
  if (alone) {
    for (const node of [...app.graph.nodes]) if (node.title !== alone) app.graph.remove(node);
    app.graph.nodes[0].pos = [0, 0];
  }
  const graph = app.graph.serialize();
  graph.extra = {};
  return JSON.stringify(graph);
}"""


def build(page, spec: dict) -> dict:
    """The graph of a workflow, on the page. Returns its API format, with the ids of the description."""
    api = open_prompt(page, spec["prompt"], spec.get("bypassed"))
    for title in subgraphs_in(spec):
        subgraph = SUBGRAPHS[title]
        renamed = spec.get("renamed", {}).get(title, {})
        columns = [[renamed.get(key, key) for key in column] for column in subgraph["columns"]]
        page.evaluate(PLACE, [columns, None, None, None])
        exposed = {
            name: [label, *([renamed.get(key, key), widget] for key, widget in targets)]
            for name, (label, *targets) in subgraph["inputs"].items()
        }
        own = [[renamed.get(key, key), widget] for key, widget in subgraph["own"]]
        page.evaluate(WRAP, [title, [*chain.from_iterable(columns)], exposed, own])
    page.evaluate(PLACE, [spec["columns"], spec.get("groups"), spec["note"], spec.get("shown")])
    return {key: value for key, value in api.items() if value["class_type"] not in SHOWN_ONLY}


def steady(graph: dict, name: str) -> dict:
    """The same graph with ids that do not change from one run of this script to the next, and described subgraphs."""
    text = json.dumps(graph)
    for index, found in enumerate(dict.fromkeys(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))):
        text = text.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{hub.REPOSITORY} {name} {index}")))
    graph = json.loads(text)
    subgraphs = graph.get("definitions", {}).get("subgraphs", ())
    for subgraph in subgraphs:
        subgraph["description"] = SUBGRAPHS[subgraph["name"]]["description"]
        subgraph["category"] = "InternVL-U"
    for host in graph["nodes"]:
        if host["type"] in {subgraph["id"] for subgraph in subgraphs}:
            # The values are those of the nodes inside. Said twice, in the older frontends' way ("-1"), newer ones keep
            # this copy and would bring it back over what a person has written.
            host["widgets_values"] = []
            own = [entry for entry in host["properties"]["proxyWidgets"] if entry[0] != "-1"]
            host["properties"]["proxyWidgets"] = own
    return graph


def main(names: list[str]) -> None:
    with browser_page() as (page, server):
        info = server.object_info()
        for name in names or WORKFLOWS:
            spec = WORKFLOWS[name]
            if not is_for_this(name, info):
                print(f"{name} is for another ComfyUI: name it by COMFYUI_PATH, and the workflow in the command")
                continue
            api = build(page, spec)
            write(ROOT / "workflows" / f"{spec['title']}.json", steady(json.loads(page.evaluate(SAVE)), name))
            write(ROOT / "workflows" / "api" / f"{name}.json", api)
            titles = [] if name == "toy_world" else subgraphs_in(spec)
            for title in titles:
                graph = steady(json.loads(page.evaluate(SAVE, title)), title)
                described = SUBGRAPHS[title]
                # Where the frontends look for what they say of a blueprint.
                graph["extra"] = {
                    "BlueprintDescription": described["description"],
                    "BlueprintSearchAliases": described["aliases"],
                }
                write(ROOT / "subgraphs" / f"{title}.json", graph)


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
