// Shows the text of InternVL-U Reason and InternVL-U Ask in the node while it is being written. Reason's words go into
// its own `text` widget, where they can be edited and pinned; Ask gets a panel for its answer. Without this file both
// nodes work the same, and show their text nowhere.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addBar, addWidget, chain, element, findWidget, isLinked, shareWheel } from "./dom.js";
import { words } from "./i18n.js";

const PIN_ON_EDIT = "InternVLU.Text.PinOnEdit";
const RULE = "\n\n———\n\n"; // between the answers of a node that ran once for each item of a list

const views = new WeakMap(); // node → its View
const writing = new Set(); // views whose node is at it
let run = 0;

// What a node shows: `write(text)` puts the words where they belong, the bar says how many there are.
class View {
  constructor(node, { read, write, separator, keep }) {
    this.write = write;
    this.separator = separator;
    this.keep = keep ?? (() => {});
    this.texts = [];
    this.status = element("span", { className: "internvlu-status" });
    this.copy = element("button", { type: "button", textContent: words("copy") });
    this.copy.addEventListener("click", () => this.copyText(read()));
    this.bar = element("div", { className: "internvlu-bar" }, this.status, this.copy);
    views.set(node, this);
  }

  // One event of the stream. Each text begins with an empty one.
  stream({ text, tokens, tokens_per_second: rate }) {
    if (this.run !== run) this.texts = [];
    if (!tokens || !this.texts.length) this.texts.push(text);
    this.texts[this.texts.length - 1] = text;
    this.run = run;
    writing.add(this);
    this.write(this.texts.join(this.separator));
    this.say(this.count([tokens], [rate]));
  }

  // The node's output, which ComfyUI also sends when nothing was generated because it was cached.
  finish({ text, tokens, tokens_per_second: rates }) {
    if (!text) return;
    writing.delete(this);
    this.texts = [...text];
    this.write(this.texts.join(this.separator));
    this.say(this.count(tokens ?? [], rates ?? []));
    this.keep(this.texts);
  }

  // The run ended early: what is there stays.
  breakOff(how) {
    this.say([words(how), this.counted].filter(Boolean).join(" · "));
    this.keep(this.texts);
  }

  count(tokens, rates) {
    const total = tokens.reduce((sum, n) => sum + n, 0);
    const seconds = tokens.reduce((sum, n, i) => sum + (rates[i] ? n / rates[i] : 0), 0);
    this.counted = total ? `${total} ${words("tokens")}` : "";
    if (total && seconds) this.counted += ` · ${(total / seconds).toFixed(1)} ${words("tokens_per_second")}`;
    return this.counted;
  }

  say(status) {
    this.said = status;
    this.refresh();
  }

  refresh() {
    this.status.textContent = this.status.title = this.pinned?.() ? words("pinned_status") : (this.said ?? "");
  }

  async copyText(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // A page over plain http from another machine has no clipboard to write to, but may copy what is selected.
      const area = element("textarea", { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    this.copy.textContent = words("copied");
    setTimeout(() => (this.copy.textContent = words("copy")), 1500);
  }
}

// Runs `change` on a text area and leaves its reader where they are: at the end, if they were there.
const places = new WeakMap(); // where to go after the next layout, before which several pieces of text may come
function following(area, change) {
  const atEnd = area.scrollTop + area.clientHeight >= area.scrollHeight - 8;
  if (!places.has(area)) places.set(area, atEnd ? Infinity : area.scrollTop);
  change();
  requestAnimationFrame(() => {
    if (places.has(area)) area.scrollTop = Math.min(places.get(area), area.scrollHeight);
    places.delete(area);
  });
}

function addAnswer(node) {
  const area = element("textarea", {
    className: "comfy-multiline-input",
    readOnly: true,
    dir: "auto",
    placeholder: words("answer_appears_here"),
  });
  shareWheel(area, app.canvas);
  const view = new View(node, {
    read: () => area.value,
    write: (text) => following(area, () => (area.value = text)),
    separator: RULE,
    // Not among the widgets' values: those are in the order of the schema's inputs, of which more may come.
    keep: (texts) => (node.properties.answers = texts),
  });
  const root = element("div", { className: "internvlu-panel" }, area, view.bar);
  addWidget(node, "internvlu_answer", root, { getMinHeight: () => 160 });
  chain(node, "onConfigure", () => {
    area.value = (node.properties.answers ?? []).join(RULE);
  });
}

function addPinning(node) {
  const text = findWidget(node, "text");
  const pinned = findWidget(node, "pinned");
  if (!text || !pinned) return;
  const isPinned = () => pinned.value === true && !isLinked(node, "pinned");

  // The Vue node draws a text area of its own, beside our bar.
  const area = () =>
    view.bar.closest(".lg-node-widgets")?.querySelector('[data-widget-name="text"] textarea') ?? text.element;
  let last = text.value;
  const view = new View(node, {
    read: () => text.value,
    write(words) {
      // Pinned words are the person's own, unless they come over a link and are shown here only.
      if ((isPinned() && !isLinked(node, "text")) || words === text.value) return;
      last = words;
      following(area(), () => (text.value = words));
    },
    separator: "\n\n",
  });
  view.pinned = isPinned;
  text.element.dir = "auto";
  text.element.placeholder = words("reasoning_appears_here");

  // The prompt says no words that the run does not use, so that running again finds the cached result.
  text.serializeValue = () => (pinned.value === true || isLinked(node, "pinned") ? text.value : "");

  const refresh = () => {
    view.bar.classList.toggle("internvlu-pinned", isPinned());
    text.element.classList.toggle("internvlu-pinned-text", isPinned());
    view.refresh();
    node.setDirtyCanvas(true, true);
  };
  chain(text, "callback", () => {
    const edited = text.value !== last;
    last = text.value;
    if (!edited || app.configuringGraph || pinned.value || isLinked(node, "text") || isLinked(node, "pinned")) return;
    if (!text.value.trim() || !app.extensionManager.setting.get(PIN_ON_EDIT)) return;
    pinned.value = true;
    pinned.callback?.(true);
  });
  chain(pinned, "callback", refresh);
  chain(node, "onConfigure", refresh);
  chain(node, "onConnectionsChange", refresh);
  node.badges?.push(
    () => new LGraphBadge({ text: isPinned() ? words("pinned") : "", fgColor: "#1e1400", bgColor: "#f0a830" }),
  );
  addBar(node, "internvlu_status", view.bar, 42);
}

// Execution ids name the way through subgraphs: "12:5" is node 5 in the subgraph of node 12.
function findNode(id) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

const viewOf = (id) => views.get(findNode(id) ?? {});

api.addEventListener("execution_start", () => run++);
api.addEventListener("internvlu.text", ({ detail }) => viewOf(detail.node)?.stream(detail));
for (const [event, how] of [["execution_interrupted", "stopped"], ["execution_error", "failed"]]) {
  api.addEventListener(event, () => {
    for (const view of writing) view.breakOff(how);
    writing.clear();
  });
}

const kinds = { InternVLUReason: addPinning, InternVLUAsk: addAnswer };

app.registerExtension({
  name: "InternVL-U.TextPanel",
  settings: [
    {
      id: PIN_ON_EDIT,
      category: ["InternVL-U", "Reason", "PinOnEdit"],
      name: "Pin the reasoning when its text is edited",
      tooltip: "InternVL-U Reason then draws from the edited words instead of generating new ones.",
      type: "boolean",
      defaultValue: true,
    },
  ],

  nodeCreated(node) {
    const add = kinds[node.comfyClass];
    if (!add) return;
    add(node);
    chain(node, "onExecuted", (output) => views.get(node)?.finish(output ?? {}));
    // Of a new node; a saved one has a size of its own, which it gets after this.
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, 400), height + 120]);
  },
});
