// InternVL-U Ask's panel, in which the answer appears while it is being written: alone, or at the end of a conversation.
import { app } from "../../scripts/app.js";
import { addWidget, beforeDrawing, chain, element, findWidget, noteChange, shareWheel } from "./dom.js";
import { words } from "./i18n.js";
import { holder } from "./instances.js";
import { View, following, showOutput } from "./stream.js";
import { kept, keep } from "./kept.js";

const RULE = "\n\n———\n\n"; // between the answers of a node that ran once for each item of a list

// The turns of a text, none if there are none to be read in it: then the server says what is wrong with it.
function turnsOf(text) {
  try {
    const turns = JSON.parse(text);
    return Array.isArray(turns) ? turns.filter((turn) => turn?.question !== undefined) : [];
  } catch {
    return [];
  }
}

// The turns so far. Saved with the workflow, they are the value of the node's `conversation`. Else the node has only
// the name under which this page keeps them, so that undo, copies and tabs treat both alike.
class Conversation {
  constructor(view) {
    this.view = view;
    this.node = view.node;
    this.widget = findWidget(this.node, "conversation");
    this.widget.hidden = this.widget.options.hidden = true; // the panel shows it
    this.widget.serializeValue = () => this.serialize();
  }

  get text() {
    return this.widget.value || kept(this.node.properties.conversation);
  }

  get turns() {
    return turnsOf(this.text);
  }

  set turns(turns) {
    const text = turns.length ? JSON.stringify(turns) : "";
    this.widget.value = this.saved ? text : "";
    this.node.properties.conversation = this.saved || !text ? "" : keep(text);
  }

  get saved() {
    return this.node.properties.save_conversation === true;
  }

  set saved(saved) {
    const turns = this.turns;
    this.node.properties.save_conversation = saved;
    this.turns = turns;
  }

  get isOn() {
    const { linked, widget } = holder(this.view.path, "go_on");
    return linked || widget.value === true;
  }

  // The turns before this question. The last one's own question, unchanged, is that turn again: a run for the sake of
  // other nodes, or with another seed, does not ask it twice.
  before(question) {
    const turns = this.turns;
    const again = !holder(this.view.path, "question").linked && turns.at(-1)?.question === question;
    return again ? turns.slice(0, -1) : turns;
  }

  // For the prompt, which says no words that the run does not use.
  async serialize() {
    if (!this.isOn) return "";
    const { widget } = holder(this.view.path, "question");
    const turns = this.before(widget?.serializeValue ? await widget.serializeValue() : widget?.value);
    if (!this.turns.length) return this.text;
    return turns.length ? JSON.stringify(turns) : "";
  }
}

class AnswerView extends View {
  constructor(node) {
    const area = element("textarea", {
      className: "comfy-multiline-input",
      readOnly: true,
      dir: "auto",
      placeholder: words("answer_appears_here"),
    });
    super(node, {
      read: () => area.value,
      write: (text) => this.show(text),
      restore: () => this.showSaved(),
      separator: RULE,
      // Not among the widgets' values: those are in the order of the schema's inputs, of which more may come. Of a
      // conversation that is not to be in the workflow, this is not either.
      keep: (texts) => (node.properties.answers = this.talk.isOn ? [] : texts),
    });
    this.area = area;
    this.talk = new Conversation(this);
    this.log = element("div", { className: "internvlu-talk", role: "log", tabIndex: 0 });
    this.log.setAttribute("aria-label", words("conversation"));
    leaveKeysAlone(this.log);
    for (const scrolled of [area, this.log]) shareWheel(scrolled, app.canvas);

    this.save = element("input", { type: "checkbox" });
    this.save.addEventListener("change", () => (this.talk.saved = this.save.checked));
    const label = element("label", { title: words("save_conversation_tip") }, this.save, words("save_conversation"));
    this.fresh = element("button", { type: "button", textContent: words("new_conversation") });
    this.fresh.addEventListener("click", () => this.begin());
    this.head = element("div", { className: "internvlu-bar" }, label, this.fresh);
    this.root = element("div", { className: "internvlu-panel" }, this.log, area, this.bar);

    chain(this.talk.widget, "callback", () => this.refreshLog());
    chain(findWidget(node, "go_on"), "callback", () => {
      // Who wants to go on means: from the answer that is shown.
      if (this.talk.isOn && !this.talk.text && this.alone) this.talk.turns = this.alone;
      this.refreshLog();
    });
    chain(node, "onConnectionsChange", () => this.refreshLog());
    // The switch may be in a subgraph's node.
    beforeDrawing(node, () => this.talk.isOn !== this.wasOn && this.refreshLog());
    chain(node, "onConfigure", () => this.showSaved());
    this.refreshLog();
  }

  stream(detail, path) {
    this.asked = detail.question;
    this.writes = true;
    super.stream(detail, path);
  }

  finish(output, path) {
    if (!output.text) return;
    this.writes = false;
    super.finish(output, path);
    // Several answers, one for each item of a list, are no conversation.
    if (output.conversation?.length === 1) {
      const turns = turnsOf(output.conversation[0]);
      this.asked = undefined;
      if (this.talk.isOn) this.talk.turns = turns;
      else this.alone = turns;
    }
    this.refreshLog();
  }

  breakOff(how) {
    this.writes = false;
    super.breakOff(how);
    this.refreshLog();
  }

  showSaved() {
    const { answers } = this.node.properties;
    this.asked = undefined;
    this.area.value = this.talk.isOn ? (this.talk.turns.at(-1)?.answer ?? "") : (answers ?? []).join(RULE);
    this.refreshLog();
  }

  show(text) {
    following(this.area, () => (this.area.value = text));
    this.refreshLog();
  }

  begin() {
    this.talk.turns = [];
    this.asked = this.alone = undefined;
    this.area.value = "";
    this.node.properties.answers = [];
    this.say("");
    this.refreshLog();
    noteChange(); // which the frontend does at the end of a click, before what the click does
  }

  refreshLog() {
    const on = (this.wasOn = this.talk.isOn);
    this.log.hidden = !on;
    this.area.hidden = on;
    if (!on) this.head.remove();
    else if (!this.root.contains(this.head)) this.root.prepend(this.head);
    if (!on) return;
    const turns = this.asked === undefined ? this.talk.turns : this.talk.before(this.asked);
    if (this.asked !== undefined) turns.push({ question: this.asked, answer: this.area.value });
    this.save.checked = this.talk.saved;
    this.fresh.disabled = this.writes === true || (!this.talk.text && !turns.length);
    this.log.setAttribute("aria-busy", this.writes === true); // read out when it is complete
    this.log.dataset.empty = turns.length ? "" : words("answer_appears_here");
    following(this.log, () => showTurns(this.log, turns));
  }
}

// Only what differs is made anew: what a person has selected stays selected while an answer grows.
function showTurns(log, turns) {
  const texts = turns.flatMap(({ question, answer }) => [
    ["question", question],
    ["answer", answer],
  ]);
  while (log.children.length > texts.length) log.lastChild.remove();
  for (const [index, [role, text]] of texts.entries()) {
    if (!log.children[index]) {
      const label = element("span", { className: "internvlu-unseen", textContent: words(role) });
      log.append(element("div", { className: `internvlu-${role}` }, label, element("p", { dir: "auto" })));
    }
    const paragraph = log.children[index].lastChild;
    if (paragraph.textContent !== text) paragraph.textContent = text;
  }
}

// Keys that do something to text are not for the graph.
function leaveKeysAlone(log) {
  log.addEventListener("copy", (event) => event.stopPropagation());
  log.addEventListener("pointerdown", (event) => event.stopPropagation());
  log.addEventListener("keydown", (event) => {
    const all = event.key.toLowerCase() === "a" && (event.ctrlKey || event.metaKey);
    if (all) {
      event.preventDefault();
      getSelection().selectAllChildren(log);
    }
    if (all || ["Delete", "Backspace"].includes(event.key)) event.stopPropagation();
  });
}

app.registerExtension({
  name: "InternVL-U.Ask",
  nodeCreated(node) {
    if (node.comfyClass !== "InternVLUAsk") return;
    const { root } = new AnswerView(node);
    addWidget(node, "internvlu_answer", root, { getMinHeight: () => 160 });
    showOutput(node);
  },
});
