// Notices of nodes/comfy/notice.py, as the frontend's own messages.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { words } from "./i18n.js";

const LIFE = 15000; // ms

api.addEventListener("internvlu.notice", ({ detail: { key, values } }) => {
  app.extensionManager.toast.add({ severity: "warn", summary: "InternVL-U", detail: words(key, values), life: LIFE });
});
