// What our widgets are made of: elements under one style sheet, and DOM widgets that neither the workflow nor the
// prompt gets to see.
import { app } from "../../scripts/app.js";

const sheet = document.createElement("link");
sheet.rel = "stylesheet";
sheet.href = new URL("./style.css", import.meta.url).href;
document.head.append(sheet);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// At the end of the node's widgets, always: older frontends store the values of a node by position.
export function addWidget(node, name, root, options) {
  const widget = node.addDOMWidget(name, name, root, { serialize: false, ...options });
  widget.serialize = false;
  root.dataset.internvlu = name;
  // Undo makes nodes anew under their old ids, and ComfyUI's Vue nodes then go on showing the elements of those before.
  beforeDrawing(node, () => {
    if (!LiteGraph.vueNodesMode || root.isConnected || node.graph !== app.canvas.graph) return;
    const place = `[data-node-id="${CSS.escape(node.id)}"] [data-internvlu="${name}"]`;
    document.querySelector(place)?.replaceWith(root);
  });
  return widget;
}

// Run `extra` before each time that a node is drawn: for what follows from the graph, whatever has changed that.
export function beforeDrawing(node, extra) {
  const { arrange } = node;
  node.arrange = function (...args) {
    extra();
    return arrange.apply(this, args);
  };
}

// One whose height neither grows nor shrinks with the node.
export function addBar(node, name, root, height) {
  const widget = addWidget(node, name, root, {});
  widget.computeLayoutSize = undefined;
  widget.computeSize = (width) => [width ?? 0, height];
  return widget;
}

export function findWidget(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

export function isLinked(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot >= 0 && node.isInputConnected(slot);
}

// Call `extra` after what the object already does under this name.
export function chain(object, name, extra) {
  const before = object[name];
  object[name] = function (...args) {
    const result = before?.apply(this, args);
    extra.apply(this, args);
    return result;
  };
}

// A text area scrolls; what it cannot use of the wheel is the canvas's, as with ComfyUI's own text areas.
export function shareWheel(area, canvas) {
  area.dataset.captureWheel = "true";
  area.addEventListener("wheel", (event) => {
    event.stopPropagation();
    if (area.scrollHeight > area.clientHeight && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    canvas.processMouseWheel(event);
  });
}

// Let undo know of a change that no click or key has made.
export function noteChange() {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}
