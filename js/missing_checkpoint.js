// Offers the download in InternVL-U Load while the checkpoint that it names is not there, as in a shared workflow.
import { app } from "../../scripts/app.js";
import { chain, findWidget, isLinked } from "./dom.js";
import { words } from "./i18n.js";

const NAME = "internvlu_download";

function refresh(node) {
  const combo = findWidget(node, "checkpoint");
  const values = combo?.options.values ?? [];
  const options = typeof values === "function" ? values(combo, node) : values;
  const download = options.find((option) => option.startsWith("download: "));
  const there = options.includes(combo?.value);
  const wanted = Boolean(download) && !there && !isLinked(node, "checkpoint");
  const button = findWidget(node, NAME);
  if (wanted === Boolean(button)) return;

  if (wanted) {
    const choose = () => {
      combo.value = download;
      combo.callback?.(download, app.canvas, node);
      refresh(node);
    };
    const added = node.addWidget("button", NAME, null, choose, { serialize: false });
    added.label = words("download_on_the_next_run", { what: download.slice("download: ".length) });
    added.serialize = false;
  } else {
    node.removeWidget(button);
  }
  node.setSize([wanted ? Math.max(node.size[0], 340) : node.size[0], node.computeSize()[1]]);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "InternVL-U.MissingCheckpoint",

  nodeCreated(node) {
    if (node.comfyClass !== "InternVLULoader") return;
    const later = () => setTimeout(() => node.graph && refresh(node)); // when links are made, and options renewed
    const combo = findWidget(node, "checkpoint");
    if (combo) chain(combo, "callback", later);
    for (const event of ["onAdded", "onConfigure", "onConnectionsChange"]) chain(node, event, later);
  },

  // "Refresh Node Definitions", after a file was put there.
  refreshComboInNodes() {
    setTimeout(() => app.graph?.nodes?.filter((node) => node.comfyClass === "InternVLULoader").forEach(refresh));
  },
});
