// The seed of a node that writes words. A new node keeps it as it is; and at temperature 0, where it is without effect,
// the prompt says 0, so that ComfyUI finds what it has computed with any other.
import { app } from "../../scripts/app.js";
import { findWidget } from "./dom.js";
import { onPrompt } from "./prompt.js";

const KINDS = ["InternVLUAsk", "InternVLUReason"];

onPrompt(KINDS, (inputs) => {
  if (inputs.temperature === 0 && typeof inputs.seed === "number") inputs.seed = 0;
});

app.registerExtension({
  name: "InternVL-U.Seed",
  nodeCreated(node) {
    if (!KINDS.includes(node.comfyClass)) return;
    // A saved node then gets what it was saved with.
    const control = findWidget(node, "control_after_generate");
    if (control) control.value = "fixed";
  },
});
