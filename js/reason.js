// The words of InternVL-U Reason appear in its own `text` widget, where a person can make them their own.
import { app } from "../../scripts/app.js";
import { addBar, beforeDrawing, chain, findWidget, noteChange } from "./dom.js";
import { inputLabel, words } from "./i18n.js";
import { areasOf, findPath, holder, pathsOf, rootGraph } from "./instances.js";
import { onPrompt } from "./prompt.js";
import { View, following, showOutput } from "./stream.js";

const KIND = "InternVLUReason";
const OWN_ON_EDIT = "InternVLU.Text.PinOnEdit";
const SAVED = "internvlu_reasoning"; // in a saved workflow's `extra`: the words of its run, by execution id

const isOwn = (path) => {
  const pinned = holder(path, "pinned");
  return !pinned.linked && pinned.widget.value === true;
};

// While words come in they are on the page only: what is saved, queued or undone meanwhile has the words before.
const before = new WeakMap(); // a node's own widget (older frontends show its element in a subgraph's node) → its value

function showDraft(path, words) {
  const own = findWidget(path.at(-1), "text");
  if (!before.has(own)) before.set(own, own.value);
  for (const area of areasOf(path, "text")) following(area, () => (area.value = words));
}

function put(path, words) {
  showDraft(path, words);
  const { widget } = holder(path, "text");
  before.delete(findWidget(path.at(-1), "text"));
  if (widget.value !== words) widget.value = words;
}

function write(words, path, done) {
  const text = holder(path, "text");
  // A person's own words stay, unless they come over a link and are shown here only.
  if (!text.widget || (isOwn(path) && !text.linked)) return;
  if (!done) return showDraft(path, words);
  put(path, words);
  noteChange(); // of its own, so that undoing the next one does not take the words away
}

function restore(path) {
  const { widget } = holder(path, "text");
  for (const area of areasOf(path, "text")) area.value = widget?.value ?? "";
  before.delete(findWidget(path.at(-1), "text"));
}

function makeOwn(path, words) {
  const text = holder(path, "text");
  const pinned = holder(path, "pinned");
  if (text.linked) return;
  if (text.widget.value !== words) text.widget.value = words; // as a subgraph's Vue node of older frontends does not
  if (pinned.linked || pinned.widget.value === true) return;
  if (!text.widget.value?.trim() || !app.extensionManager.setting.get(OWN_ON_EDIT)) return;
  pinned.widget.value = true;
  pinned.widget.callback?.(true, app.canvas, pinned.node);
  decorate(path);
  pinned.node.setDirtyCanvas(true, true);
}

function decorate(path) {
  const own = isOwn(path);
  for (const area of areasOf(path, "text")) {
    area.toggleAttribute("data-internvlu-own", own);
    area.placeholder = words("reasoning_appears_here");
    area.dir = "auto";
  }
  return own;
}

function addWords(node) {
  const text = findWidget(node, "text");
  if (!text || !findWidget(node, "pinned")) return;
  const read = () => holder(view.path, "text").widget?.value ?? "";
  const view = new View(node, { read, write, restore, separator: "\n\n" });
  view.pinned = () => isOwn(view.path);

  // Older frontends keep the value in the element.
  const { getValue } = text.options;
  text.options.getValue = () => (before.has(text) ? before.get(text) : getValue());
  text.element.addEventListener("input", () => before.delete(text), true);

  beforeDrawing(node, () => {
    const own = decorate(view.path);
    if (own === view.wasOwn) return;
    view.wasOwn = own;
    view.bar.classList.toggle("internvlu-pinned", own);
    view.refresh();
  });
  chain(findWidget(node, "pinned"), "callback", () => node.setDirtyCanvas(true, true));
  node.badges?.push(
    () => new LGraphBadge({ text: view.pinned() ? words("pinned") : "", fgColor: "#1e1400", bgColor: "#f0a830" }),
  );
  addBar(node, "internvlu_status", view.bar, 42);
}

// The same in a subgraph's node to which the words are promoted. It calls such a widget by its id, unless a person has
// given it another name.
function decorateHost(host) {
  beforeDrawing(host, () => {
    for (const path of pathsOf(KIND, host.subgraph, [host])) {
      decorate(path);
      const { node, widget, name } = holder(path, "pinned");
      if (node === host && widget && (widget.label ?? name) === "pinned") widget.label = inputLabel(KIND, "pinned");
    }
  });
}

const pathsShownIn = (area) => [...pathsOf(KIND)].filter((path) => areasOf(path, "text").includes(area));

// Where no text is being edited, the browser's undo goes back in the one that was edited last, beside the graph's own: it
// would make that text a person's own again, and take the focus, after which the graph hears of no more undo.
document.addEventListener("beforeinput", (event) => {
  const { target } = event;
  if (target?.tagName !== "TEXTAREA" || target === document.activeElement) return;
  if (pathsShownIn(target).length) event.preventDefault();
}, true);

// A person's edit, wherever the text is shown; not before the frontend has taken note of it.
document.addEventListener("input", ({ target }) => {
  if (target?.tagName !== "TEXTAREA") return;
  setTimeout(() => {
    for (const path of pathsShownIn(target)) makeOwn(path, target.value);
  });
});

// The prompt says no words that the run does not use, so that running again finds the cached result.
onPrompt(KIND, (inputs) => {
  if (inputs.pinned === false && typeof inputs.text === "string") inputs.text = "";
});

app.registerExtension({
  name: "InternVL-U.Reason",
  settings: [
    {
      id: OWN_ON_EDIT,
      category: ["InternVL-U", "Reason", "PinOnEdit"],
      name: "Use my own words when the reasoning is edited",
      tooltip: "InternVL-U Reason then draws from the edited words instead of generating new ones.",
      type: "boolean",
      defaultValue: true,
    },
  ],

  nodeCreated(node) {
    if (node.subgraph) decorateHost(node);
    if (node.comfyClass !== KIND) return;
    addWords(node);
    showOutput(node);
  },

  // A saved picture has the words that it was drawn with; when its prompt was queued, the box had others.
  afterConfigureGraph() {
    const { extra } = rootGraph();
    const saved = extra?.[SAVED];
    if (!saved) return;
    delete extra[SAVED];
    for (const [id, words] of Object.entries(saved)) {
      const path = findPath(id);
      if (path?.at(-1)?.comfyClass !== KIND || isOwn(path)) continue;
      if (holder(path, "text").widget) put(path, words);
    }
  },
});
