// The words of our widgets, from locales/<language>/main.json, which the server sends with those of all packs. Should
// it not, or should a language lack a word, there is English; and the keys are English enough to do without.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

export let locales = {};
try {
  const response = await api.fetchApi("/i18n", { signal: AbortSignal.timeout(5000) });
  if (response.ok) locales = await response.json();
} catch {
  // The frontend, which asks for the same, reports it.
}

export const language = () => app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";

// What the frontend writes beside an input of a node.
export function inputLabel(nodeId, name) {
  return locales[language()]?.nodeDefs?.[nodeId]?.inputs?.[name]?.name ?? name;
}

export function words(key, values = {}) {
  const found = locales[language()]?.internvlu?.[key] ?? locales.en?.internvlu?.[key] ?? key.replaceAll("_", " ");
  return found.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}
