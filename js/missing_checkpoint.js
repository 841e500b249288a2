// Offers the download where a checkpoint is named that is not there, as in a template: a button on InternVL-U Load, or on
// the subgraph's node that shows the loader's choice, and a notice when such a workflow is opened.
import { app } from "../../scripts/app.js";
import { chain, element, findWidget, isLinked } from "./dom.js";
import { words } from "./i18n.js";
import { SUBGRAPH_INPUTS, inputLink, rootGraph } from "./instances.js";

const NAME = "internvlu_download";
const INPUT = "checkpoint";
const PAGE = "https://huggingface.co/InternVL-U/InternVL-U";

const isLoader = (node) => node.comfyClass === "InternVLULoader";

// The widget on this node that chooses a checkpoint, and the loader's own, which knows what there is. Both are the same
// on a loader; on a subgraph's node the first is what people see.
function choice(node) {
  if (isLoader(node)) {
    const widget = findWidget(node, INPUT);
    return widget && { widget, input: INPUT, source: widget };
  }
  for (const inner of node.subgraph?.nodes ?? []) {
    const found = choice(inner);
    if (!found) continue;
    const link = inputLink(inner, inner.inputs?.findIndex((input) => input.name === found.input) ?? -1);
    const input = link && Number(link.origin_id) === SUBGRAPH_INPUTS ? node.subgraph.inputs[link.origin_slot]?.name : undefined;
    // Without a link it may still be shown, in the older frontends' way.
    const widget = findWidget(node, input ?? `${inner.id}: ${found.input}`);
    if (widget) return { widget, input, source: found.source };
  }
}

// What is to be downloaded for the checkpoint that the node names, if it is not there.
function missing(node) {
  const found = choice(node);
  if (!found || (found.input && isLinked(node, found.input))) return null;
  const { widget, source } = found;
  const values = source.options.values ?? [];
  const options = typeof values === "function" ? values(source, node) : values;
  const download = options.find((option) => option.startsWith("download: "));
  if (!download || options.includes(widget.value)) return null;
  const choose = () => {
    widget.value = download;
    widget.callback?.(download, app.canvas, node);
    refresh(node);
  };
  const what = download.slice("download: ".length);
  return { name: widget.value, label: words("download_on_the_next_run", { what }), choose };
}

const watched = new WeakSet(); // widgets

function refresh(node) {
  const found = choice(node);
  if (found && !watched.has(found.widget)) {
    watched.add(found.widget);
    chain(found.widget, "callback", () => later(node));
  }
  const wanted = missing(node);
  const button = findWidget(node, NAME);
  if (Boolean(wanted) === Boolean(button)) return;
  if (wanted) {
    const added = node.addWidget("button", NAME, null, () => missing(node)?.choose(), { serialize: false });
    added.label = wanted.label;
    added.serialize = false;
  } else {
    node.removeWidget(button);
  }
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], wanted ? 340 : width), isLoader(node) ? height : Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
}

// When links are made, and options renewed.
const later = (node) => setTimeout(() => node.graph && refresh(node));

function everyNode(graph = rootGraph()) {
  return (graph?.nodes ?? []).flatMap((node) => [node, ...(node.subgraph ? everyNode(node.subgraph) : [])]);
}

function notify(wanted) {
  document.querySelector(".internvlu-missing")?.remove();
  const [{ name, label }] = wanted;
  const close = () => dialog.remove();
  const download = () => {
    for (const { choose } of wanted) choose();
    close();
  };
  const dialog = element(
    "dialog",
    { className: "internvlu-missing", onclose: close },
    element("h3", { textContent: words("missing_title") }),
    element("p", { textContent: words("missing_text", { name }) }),
    element("p", {}, element("a", { href: PAGE, target: "_blank", rel: "noopener", textContent: PAGE })),
    element(
      "div",
      {},
      element("button", { textContent: words("close"), onclick: close }),
      element("button", { className: "internvlu-wanted", textContent: label, onclick: download }),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

const told = new Set(); // workflows, by their id: whoever comes back to a tab knows already

app.registerExtension({
  name: "InternVL-U.MissingCheckpoint",

  nodeCreated(node) {
    if (!isLoader(node) && !node.isSubgraphNode?.()) return;
    for (const event of ["onAdded", "onConfigure", "onConnectionsChange", "onWidgetChanged"])
      chain(node, event, () => later(node));
    // Older frontends save the names of all widgets of a subgraph's node.
    if (!isLoader(node))
      chain(node, "onSerialize", ({ properties }) => {
        if (properties?.proxyWidgets?.some(([, name]) => name === NAME))
          properties.proxyWidgets = properties.proxyWidgets.filter(([, name]) => name !== NAME);
      });
  },

  afterConfigureGraph() {
    setTimeout(() => {
      const nodes = everyNode();
      nodes.forEach(refresh);
      const { id } = rootGraph() ?? {};
      const seen = (node) => !node.graph.inputNode || isLoader(node); // not again what its subgraph's node shows
      const wanted = nodes.filter(seen).map(missing).filter(Boolean);
      const quiet = app.extensionManager?.setting?.get("Comfy.Workflow.ShowMissingModelsWarning") === false;
      if (!wanted.length || quiet || told.has(id)) return;
      told.add(id);
      notify(wanted);
    });
  },

  // "Refresh Node Definitions", after a file was put there.
  refreshComboInNodes() {
    setTimeout(() => everyNode().forEach(refresh));
  },
});
