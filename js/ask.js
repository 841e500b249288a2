// InternVL-U Ask's panel, in which the answer appears while it is being written.
import { app } from "../../scripts/app.js";
import { addWidget, chain, element, shareWheel } from "./dom.js";
import { words } from "./i18n.js";
import { View, following, showOutput } from "./stream.js";

const RULE = "\n\n———\n\n"; // between the answers of a node that ran once for each item of a list

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

app.registerExtension({
  name: "InternVL-U.Ask",
  nodeCreated(node) {
    if (node.comfyClass !== "InternVLUAsk") return;
    addAnswer(node);
    showOutput(node);
  },
});
