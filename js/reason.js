// The words of InternVL-U Reason appear in its own `text` widget, where they can be edited and pinned.
import { app } from "../../scripts/app.js";
import { addBar, chain, findWidget, isLinked } from "./dom.js";
import { words } from "./i18n.js";
import { View, following, showOutput } from "./stream.js";

const PIN_ON_EDIT = "InternVLU.Text.PinOnEdit";

function addPinning(node) {
  const text = findWidget(node, "text");
  const pinned = findWidget(node, "pinned");
  if (!text || !pinned) return;
  const isPinned = () => pinned.value === true && !isLinked(node, "pinned");

  // The Vue node draws a text area of its own, beside our bar.
  const area = () =>
    view.bar.closest(".lg-node-widgets")?.querySelector('[data-widget-name="text"] textarea') ?? text.element;
  let last = text.value;
  const view = new View(node, {
    read: () => text.value,
    write(words) {
      // Pinned words are the person's own, unless they come over a link and are shown here only.
      if ((isPinned() && !isLinked(node, "text")) || words === text.value) return;
      last = words;
      following(area(), () => (text.value = words));
    },
    separator: "\n\n",
  });
  view.pinned = isPinned;
  text.element.dir = "auto";
  text.element.placeholder = words("reasoning_appears_here");

  // The prompt says no words that the run does not use, so that running again finds the cached result.
  text.serializeValue = () => (pinned.value === true || isLinked(node, "pinned") ? text.value : "");

  const refresh = () => {
    view.bar.classList.toggle("internvlu-pinned", isPinned());
    text.element.classList.toggle("internvlu-pinned-text", isPinned());
    view.refresh();
    node.setDirtyCanvas(true, true);
  };
  chain(text, "callback", () => {
    const edited = text.value !== last;
    last = text.value;
    if (!edited || app.configuringGraph || pinned.value || isLinked(node, "text") || isLinked(node, "pinned")) return;
    if (!text.value.trim() || !app.extensionManager.setting.get(PIN_ON_EDIT)) return;
    pinned.value = true;
    pinned.callback?.(true);
  });
  chain(pinned, "callback", refresh);
  chain(node, "onConfigure", refresh);
  chain(node, "onConnectionsChange", refresh);
  node.badges?.push(
    () => new LGraphBadge({ text: isPinned() ? words("pinned") : "", fgColor: "#1e1400", bgColor: "#f0a830" }),
  );
  addBar(node, "internvlu_status", view.bar, 42);
}

app.registerExtension({
  name: "InternVL-U.Reason",
  settings: [
    {
      id: PIN_ON_EDIT,
      category: ["InternVL-U", "Reason", "PinOnEdit"],
      name: "Pin the reasoning when its text is edited",
      tooltip: "InternVL-U Reason then draws from the edited words instead of generating new ones.",
      type: "boolean",
      defaultValue: true,
    },
  ],

  nodeCreated(node) {
    if (node.comfyClass !== "InternVLUReason") return;
    addPinning(node);
    showOutput(node);
  },
});
