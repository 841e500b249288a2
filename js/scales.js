// A guidance scale below 0 is automatic, and its widget says so on the canvas. (Nodes 2.0 show the number: their fields
// take no other text. The tooltip explains it there.)
import { app } from "../../scripts/app.js";
import { findWidget } from "./dom.js";
import { words } from "./i18n.js";

const SCALES = ["all_scale", "partial_scale"];

function sayAutomatic(widget) {
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      const inherited = Reflect.get(Object.getPrototypeOf(this), "_displayValue", this);
      return inherited && this.value < 0 ? words("automatic") : inherited; // it is empty while a link gives the value
    },
  });
}

app.registerExtension({
  name: "InternVL-U.Scales",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("InternVLU")) return;
    SCALES.map((name) => findWidget(node, name)).forEach((widget) => widget && sayAutomatic(widget));
  },
});
