// InternVL-U Boxes says on the node how many boxes it found in its last run, above all that there were none.
import { app } from "../../scripts/app.js";
import { chain } from "./dom.js";
import { words } from "./i18n.js";

app.registerExtension({
  name: "InternVL-U.Boxes",

  nodeCreated(node) {
    if (node.comfyClass !== "InternVLUBoxes") return;
    let found = null;
    chain(node, "onExecuted", (output) => {
      const counts = output?.boxes;
      if (!counts) return;
      found = counts.reduce((sum, count) => sum + count, 0);
      node.setDirtyCanvas(true, true);
    });
    const colours = () => (found === 0 ? { fgColor: "#1e1400", bgColor: "#f0a830" } : {});
    const text = () => (found === null ? "" : found === 0 ? words("no_boxes") : words("boxes", { count: found }));
    node.badges?.push(() => new LGraphBadge({ text: text(), ...colours() }));
  },
});
