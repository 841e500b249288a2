// The seed of a node that writes words. A new node keeps it as it is; and at temperature 0, where it is without effect,
// the prompt says 0, so that ComfyUI finds what it has computed with any other.
import { app } from "../../scripts/app.js";
import { findWidget, isLinked } from "./dom.js";

app.registerExtension({
  name: "InternVL-U.Seed",
  nodeCreated(node) {
    if (!["InternVLUAsk", "InternVLUReason"].includes(node.comfyClass)) return;
    const seed = findWidget(node, "seed");
    const temperature = findWidget(node, "temperature");
    if (!seed || !temperature) return;
    // A saved node then gets what it was saved with.
    const control = findWidget(node, "control_after_generate");
    if (control) control.value = "fixed";
    seed.serializeValue = () => (temperature.value === 0 && !isLinked(node, "temperature") ? 0 : seed.value);
  },
});
