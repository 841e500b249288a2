// Shows the text of a node while it is being written. Without this file the nodes work the same, and show it nowhere.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { beforeDrawing, element } from "./dom.js";
import { words } from "./i18n.js";
import { findPath, pathTo, rootGraph } from "./instances.js";

const views = new WeakMap(); // node → its View
const writing = new Set(); // views whose node is at it
let run = 0;

// What a node shows. The bar says how many words there are; the words are put where they belong by
// `write(text, path, done)`: for the node of this path (see instances.js), as far as they have come or whole.
// `restore(path)` shows again what was there before the run.
export class View {
  constructor(node, { read, write, restore, separator, keep }) {
    this.node = node;
    this.write = write;
    this.restore = restore;
    this.separator = separator;
    this.keep = keep ?? (() => {});
    this.texts = [];
    this.status = element("span", { className: "internvlu-status" });
    this.copy = element("button", { type: "button", textContent: words("copy") });
    this.copy.addEventListener("click", () => this.copyText(read()));
    this.bar = element("div", { className: "internvlu-bar" }, this.status, this.copy);
    views.set(node, this);
  }

  // Of several instances of a subgraph, the one that ran last.
  get path() {
    if (!this.node.graph || this.node.graph === rootGraph()) return [this.node];
    if (!this.last?.every(({ graph }) => graph)) this.last = pathTo(this.node);
    return this.last ?? [this.node];
  }

  // One event of the stream. Each text begins with an empty one.
  stream({ text, tokens, tokens_per_second: rate }, path) {
    this.last = path;
    if (this.run !== run) this.texts = [];
    if (!tokens || !this.texts.length) this.texts.push(text);
    this.texts[this.texts.length - 1] = text;
    this.run = run;
    writing.add(this);
    this.write(this.texts.join(this.separator), path, false);
    this.say(this.count([tokens], [rate]));
  }

  // The node's output, which ComfyUI also sends when nothing was generated because it was cached.
  finish({ text, tokens, tokens_per_second: rates }, path) {
    if (!text) return;
    this.last = path;
    writing.delete(this);
    this.texts = [...text];
    this.run = null; // more in this run is of another instance of the subgraph
    this.write(this.texts.join(this.separator), path, true);
    this.say(this.count(tokens ?? [], rates ?? []));
    this.keep(this.texts);
  }

  // The run ended early: what has come stays, and if nothing has, what was there before.
  breakOff(how) {
    this.say([words(how), this.counted].filter(Boolean).join(" · "));
    if (!this.texts.some(Boolean)) return this.restore(this.path);
    this.write(this.texts.join(this.separator), this.path, true);
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

// A run belongs to the workflow that it was queued from, which need not be open any more when its words come.
const workflow = () => app.extensionManager.workflow?.activeWorkflow;
const queuedFrom = new Map(); // prompt id → workflow
const missed = new WeakMap(); // workflow → outputs by execution id, to be shown when it is opened again
let prompt = null;

const { queuePrompt } = api;
api.queuePrompt = async function (...args) {
  const from = workflow();
  const answer = await queuePrompt.apply(this, args);
  if (answer?.prompt_id && from) queuedFrom.set(answer.prompt_id, from);
  return answer;
};

function elsewhere() {
  const from = queuedFrom.get(prompt);
  return from && from !== workflow() ? from : null;
}

function show(id, output) {
  const path = findPath(id);
  views.get(path?.at(-1) ?? {})?.finish(output, path);
}

api.addEventListener("execution_start", ({ detail }) => {
  run++;
  writing.clear();
  prompt = detail?.prompt_id;
});
api.addEventListener("internvlu.text", ({ detail }) => {
  const path = elsewhere() ? null : findPath(detail.node);
  views.get(path?.at(-1) ?? {})?.stream(detail, path);
});
api.addEventListener("executed", ({ detail }) => {
  const id = detail.display_node ?? detail.node;
  const from = elsewhere();
  if (!from) show(id, detail.output ?? {});
  else missed.set(from, (missed.get(from) ?? new Map()).set(id, detail.output ?? {}));
});
for (const [event, how] of [["execution_interrupted", "stopped"], ["execution_error", "failed"]]) {
  api.addEventListener(event, () => {
    for (const view of writing) view.breakOff(how);
    writing.clear();
    queuedFrom.delete(prompt);
  });
}
api.addEventListener("execution_success", () => queuedFrom.delete(prompt));

// Called when a node is made and has its View.
export function showOutput(node) {
  // Of a new node; a saved one has a size of its own, which it gets after this.
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, 400), height + 120]);
  // Before every drawing: only then it is known which workflow is open.
  beforeDrawing(node, () => {
    const outputs = missed.get(workflow() ?? {});
    if (!outputs) return;
    missed.delete(workflow());
    queueMicrotask(() => outputs.forEach((output, id) => show(id, output)));
  });
}
