// Shows the text of a node while it is being written. Without this file the nodes work the same, and show it nowhere.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chain, element } from "./dom.js";
import { words } from "./i18n.js";

const views = new WeakMap(); // node → its View
const writing = new Set(); // views whose node is at it
let run = 0;

// What a node shows: `write(text)` puts the words where they belong, the bar says how many there are.
export class View {
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
export function following(area, change) {
  const atEnd = area.scrollTop + area.clientHeight >= area.scrollHeight - 8;
  if (!places.has(area)) places.set(area, atEnd ? Infinity : area.scrollTop);
  change();
  requestAnimationFrame(() => {
    if (places.has(area)) area.scrollTop = Math.min(places.get(area), area.scrollHeight);
    places.delete(area);
  });
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

// Called when a node is made: its `add` gave it a View.
export function showOutput(node) {
  chain(node, "onExecuted", (output) => views.get(node)?.finish(output ?? {}));
  // Of a new node; a saved one has a size of its own, which it gets after this.
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, 400), height + 120]);
}
