// Draws one free image socket more than are connected, instead of all eight. Every node has all of them at all times, in
// the order of the schema: the frontend restores links by a socket's position when it pastes, converts to a subgraph or
// unpacks one. So nothing is added or removed here; unused sockets only lie under the free one, and are not drawn.
// ComfyUI's Vue nodes draw all eight.
import { app } from "../../scripts/app.js";

const numberOf = (socket) => Number(/^image(\d+)$/.exec(socket.name)?.[1] ?? 0);
const nothing = () => {};

function unused(node) {
  const connected = node.inputs.filter((_, slot) => node.isInputConnected(slot)).map(numberOf);
  const shown = Math.max(0, ...connected) + 1;
  return node.inputs.filter((socket) => numberOf(socket) > shown);
}

function layOut(node) {
  const hidden = new Set(unused(node));
  const { NODE_SLOT_HEIGHT: height } = LiteGraph;
  const column = node.inputs.filter((socket) => !socket.widget && !hidden.has(socket));
  const free = column.findLastIndex(numberOf); // of which there is one, or all are connected
  for (const socket of node.inputs.filter(numberOf)) {
    if (hidden.has(socket)) {
      socket.pos = [height / 2, (free + 0.7) * height];
      socket.draw = nothing;
    } else if (socket.draw === nothing) {
      socket.pos = undefined;
      delete socket.draw;
    }
  }
}

app.registerExtension({
  name: "InternVL-U.ImageSockets",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("InternVLU") || !nodeData.input?.optional?.image2) return;
    const { arrange, computeSize, onSerialize } = nodeType.prototype;
    // Before every drawing, so that what is drawn follows from the links alone, whatever has changed them.
    nodeType.prototype.arrange = function (...args) {
      layOut(this);
      return arrange.apply(this, args);
    };
    nodeType.prototype.computeSize = function (...args) {
      const size = computeSize.apply(this, args);
      if (!LiteGraph.vueNodesMode) size[1] -= unused(this).length * LiteGraph.NODE_SLOT_HEIGHT;
      return size;
    };
    // Where a socket is drawn is no part of the workflow.
    nodeType.prototype.onSerialize = function (saved) {
      onSerialize?.call(this, saved);
      for (const socket of saved.inputs ?? []) if (numberOf(socket)) delete socket.pos;
    };
  },
});
