// Shows one free image socket more than are connected, instead of all eight at once. The nodes have all of them in
// Python, so graphs and API prompts mean the same without this file.
import { app } from "../../scripts/app.js";
import { inputLabel } from "./i18n.js";

const numberOf = (socket) => Number(/^image(\d+)$/.exec(socket.name)?.[1] ?? 0);

function refresh(node, sockets) {
  const connected = node.inputs.filter((_, slot) => node.isInputConnected(slot)).map(numberOf);
  const wanted = Math.min(Math.max(0, ...connected) + 1, sockets.length);
  for (let i = node.inputs.length - 1; i >= 0; i--) {
    if (numberOf(node.inputs[i]) > wanted) node.removeInput(i);
  }
  const present = new Set(node.inputs.map(numberOf));
  for (let number = 1; number <= wanted; number++) {
    if (!present.has(number)) insert(node, sockets[number - 1]);
  }
  node.setDirtyCanvas(true, true);
}

// Behind the image sockets that are there; sockets below move down, and their links with them.
function insert(node, { name, tooltip }) {
  const position = node.inputs.findLastIndex((input) => numberOf(input)) + 1;
  const links = node.inputs.map((_, slot) => node.getInputLink(slot));
  const label = { localized_name: inputLabel(node.comfyClass, name) };
  node.addInput(name, "IMAGE", { tooltip, shape: 7, ...label }); // hollow, as optional inputs are
  node.inputs.splice(position, 0, node.inputs.pop());
  // From the last: newer frontends know a link by its slot, and a slot can have only one.
  for (let slot = links.length - 1; slot >= position; slot--) {
    if (links[slot]) links[slot].target_slot = slot + 1;
  }
}

app.registerExtension({
  name: "InternVL-U.ImageSockets",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("InternVLU")) return;
    const optional = nodeData.input?.optional ?? {};
    const sockets = Object.entries(optional)
      .map(([name, [, options]]) => ({ name, tooltip: options?.tooltip }))
      .filter(numberOf);
    if (!sockets.length) return;

    const { onNodeCreated, onConnectionsChange } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = onNodeCreated?.apply(this, args);
      // Not before a saved graph has made its links, which it does in the same turn.
      setTimeout(() => this.graph && refresh(this, sockets));
      return result;
    };
    nodeType.prototype.onConnectionsChange = function (...args) {
      const result = onConnectionsChange?.apply(this, args);
      if (!app.configuringGraph) setTimeout(() => this.graph && refresh(this, sockets));
      return result;
    };
  },
});
