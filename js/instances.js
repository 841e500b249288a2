// Nodes inside subgraphs. The same node stands for as many executed nodes as its subgraph has instances; a path of nodes,
// from the root graph inwards, names one of them. Execution ids say the same: "12:5" is node 5 in the subgraph of node 12.
import { app } from "../../scripts/app.js";
import { findWidget, isLinked } from "./dom.js";

export const SUBGRAPH_INPUTS = -10; // id of the node that a subgraph's inputs come from

export const rootGraph = () => app.rootGraph ?? app.graph;

export function findPath(id) {
  let graph = rootGraph();
  const path = [];
  for (const part of String(id).split(":")) {
    const node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    if (!node) return null;
    path.push(node);
    graph = node.subgraph;
  }
  return path;
}

export function* pathsOf(kind, graph = rootGraph(), hosts = []) {
  for (const node of graph?.nodes ?? []) {
    if (node.subgraph) yield* pathsOf(kind, node.subgraph, [...hosts, node]);
    else if (node.comfyClass === kind) yield [...hosts, node];
  }
}

// The first one.
export function pathTo(node) {
  for (const path of pathsOf(node.comfyClass)) if (path.at(-1) === node) return path;
}

// Not a subgraph's node's own `getInputLink`: that one looks at its outputs, from within.
export function inputLink(node, slot) {
  return slot >= 0 && node.graph ? LGraphNode.prototype.getInputLink.call(node, slot) : null;
}

// Who holds the value of a node's widget: the node, or the subgraph's node to which the widget is promoted. (Older
// frontends show such a widget in the subgraph's node and leave the value where it was.)
export function holder(path, name) {
  let node = path.at(-1);
  let widget = findWidget(node, name);
  for (const host of path.slice(0, -1).reverse()) {
    const slot = node.inputs.findIndex((input) => input.name === name);
    const link = inputLink(node, slot);
    if (!link || Number(link.origin_id) !== SUBGRAPH_INPUTS) break;
    const input = host.inputs.find((input) => input.name === host.subgraph.inputs[link.origin_slot]?.name);
    if (!input) break;
    node = host;
    name = input.name;
    widget = host.getWidgetFromSlot(input);
  }
  return { node, widget, name, linked: !widget || isLinked(node, name) };
}

// The text areas that show a widget of text, on the graph that is open: ComfyUI's Vue nodes have some of their own.
export function areasOf(path, name) {
  const { node, widget, name: shownAs } = holder(path, name);
  const own = widget?.element ? [widget.element] : [];
  if (!LiteGraph.vueNodesMode) return own;
  const places = [[node, shownAs]];
  // Where an older frontend shows it, in a subgraph's node that does not hold it.
  for (const host of path.slice(0, -1)) places.push([host, `${path.at(-1).id}: ${name}`]);
  const vue = places
    .filter(([node]) => node.graph === app.canvas.graph)
    .map(([{ id }, label]) => [CSS.escape(id), CSS.escape(label)])
    .map(([id, label]) => `[data-node-id="${id}"] :is([data-widget-name="${label}"] textarea, textarea[aria-label="${label}"])`);
  return vue.length ? [...document.querySelectorAll(vue.join()), ...own] : own;
}
