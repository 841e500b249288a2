// Helps InternVL-U Empty Latent to a size: by aspect ratio and size class, swapped, or with its ratio locked. Only
// width and height count; what is shown here follows from them.
import { app } from "../../scripts/app.js";
import { addBar, chain, element, findWidget, isLinked } from "./dom.js";
import { words } from "./i18n.js";

const GRID = 16; // pixels a token
const CLASSES = [64, 128, 256, 512, 768, 1024]; // of an area of about so many pixels squared
const SLACK = 1.2; // how far an area may be from its class's
const RATIOS = ["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "5:4", "4:5", "7:5", "5:7"];
const CUSTOM = "custom";

const PADLOCK = `<svg viewBox="0 0 12 12" width="12" height="12" fill="none" stroke="currentColor" stroke-width="1.5">
  <path d="M3.5 5.5V4a2.5 2.5 0 0 1 5 0v1.5"/><rect x="2" y="5.5" width="8" height="5.5" rx="1" fill="currentColor"/></svg>`;

const snap = (side) => Math.round(side / GRID) * GRID;

function sizeOf(aspect, sizeClass) {
  return [snap(sizeClass * Math.sqrt(aspect)), snap(sizeClass / Math.sqrt(aspect))];
}

function aspectOf(ratio) {
  const [across, down] = ratio.split(":").map(Number);
  return across / down;
}

const apart = (a, b) => Math.abs(Math.log(a / b));
const nearest = (values, distance) => values.reduce((best, next) => (distance(next) < distance(best) ? next : best));

// The class nearest in area, if it is near, and the ratio if this is exactly its size. Small classes have one size for
// several ratios: then it is the one that the size is nearest to.
function recognise(width, height) {
  const sizeClass = nearest(CLASSES, (each) => apart(width * height, each ** 2));
  const fitting = RATIOS.filter((ratio) => sizeOf(aspectOf(ratio), sizeClass).join() === [width, height].join());
  const ratio = fitting.length ? nearest(fitting, (each) => apart(width / height, aspectOf(each))) : CUSTOM;
  return [ratio, apart(width * height, sizeClass ** 2) < Math.log(SLACK) ? sizeClass : CUSTOM];
}

function addHelper(node) {
  const sides = ["width", "height"].map((name) => findWidget(node, name));
  if (!sides.every(Boolean)) return;
  const [width, height] = sides;

  const options = (values) => values.map((value) => element("option", { value, textContent: value }));
  const custom = () => element("option", { value: CUSTOM, textContent: words("custom") });
  const ratio = element("select", { title: words("aspect_ratio") }, custom(), ...options(RATIOS));
  const sizeClass = element("select", { title: words("size_class") }, custom(), ...options(CLASSES));
  const swap = element("button", { type: "button", textContent: "⇄", title: words("swap_width_and_height") });
  const lock = element("button", { type: "button", innerHTML: PADLOCK, title: words("lock_ratio") });
  const info = element("output");
  const root = element("div", { className: "internvlu-size" }, ratio, sizeClass, swap, lock, info);

  let aspect = null; // to keep, while the ratio is locked
  let setting = false;

  function set(newWidth, newHeight) {
    setting = true;
    for (const [widget, value] of [[width, newWidth], [height, newHeight]]) {
      widget.value = Math.min(Math.max(value, widget.options.min), widget.options.max);
      widget.callback?.(widget.value, app.canvas, node);
    }
    setting = false;
    refresh();
  }

  function refresh() {
    const linked = isLinked(node, "width") || isLinked(node, "height");
    for (const control of [ratio, sizeClass, swap, lock]) control.disabled = linked;
    const [w, h] = [width.value, height.value];
    [ratio.value, sizeClass.value] = recognise(w, h);
    const tokens = Math.floor(w / GRID) * Math.floor(h / GRID);
    const size = `${w} × ${h} · ${((w * h) / 1e6).toFixed(2)} MP · ${tokens} ${words("tokens")}`;
    info.textContent = info.title = linked ? "–" : size;
    node.setDirtyCanvas(true, true);
  }

  function choose() {
    const wanted = ratio.value === CUSTOM ? width.value / height.value : aspectOf(ratio.value);
    const side = sizeClass.value === CUSTOM ? Math.sqrt(width.value * height.value) : Number(sizeClass.value);
    set(...sizeOf(wanted, side));
    if (aspect) aspect = wanted;
  }
  ratio.addEventListener("change", () => (ratio.value === CUSTOM ? refresh() : choose()));
  sizeClass.addEventListener("change", () => (sizeClass.value === CUSTOM ? refresh() : choose()));
  swap.addEventListener("click", () => {
    if (aspect) aspect = 1 / aspect;
    set(height.value, width.value);
  });
  lock.addEventListener("click", () => {
    const named = recognise(width.value, height.value)[0];
    aspect = aspect ? null : named === CUSTOM ? width.value / height.value : aspectOf(named);
    lock.setAttribute("aria-pressed", Boolean(aspect));
  });

  // After the number widgets' own snapping to their step.
  const follow = (widget, other, factor) => () => {
    if (setting) return;
    widget.value = Math.max(snap(widget.value), widget.options.min);
    if (aspect) {
      setting = true;
      other.value = Math.min(Math.max(snap(widget.value * factor()), other.options.min), other.options.max);
      other.callback?.(other.value, app.canvas, node);
      setting = false;
    }
    refresh();
  };
  chain(width, "callback", follow(width, height, () => 1 / aspect));
  chain(height, "callback", follow(height, width, () => aspect));
  chain(node, "onConfigure", refresh);
  chain(node, "onConnectionsChange", refresh);
  addBar(node, "internvlu_size", root, 66);
  refresh();
}

app.registerExtension({
  name: "InternVL-U.SizeHelper",
  nodeCreated(node) {
    if (node.comfyClass !== "InternVLUEmptyLatent") return;
    addHelper(node);
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, 300), height]);
  },
});
