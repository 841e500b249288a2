// Keeps our nodes' translated names and tooltips. Frontends of the time of ComfyUI 0.3.75 get them from the server, and
// lose them when they load a language of their own; newer ones do not, and then this file does nothing.
import { app } from "../../scripts/app.js";
import { language, locales } from "./i18n.js";

// vue-i18n, which these frontends show to no extension.
function translator() {
  const context = document.querySelector("#vue-app")?.__vue_app__?._context.provides ?? {};
  const provided = Object.getOwnPropertySymbols(context).map((symbol) => context[symbol]);
  return provided.find((value) => value?.global?.mergeLocaleMessage)?.global;
}

app.registerExtension({
  name: "InternVL-U.NodeTranslations",

  // Nodes are registered after this, under the names that are known then.
  async init() {
    const ours = locales[language()]?.nodeDefs;
    const global = translator();
    if (!ours || !global || language() === "en") return;
    const loaded = () => global.getLocaleMessage(language());
    for (let wait = 0; wait < 50 && !loaded().g; wait++) await new Promise((done) => setTimeout(done, 100));
    if (loaded().nodeDefs?.InternVLULoader) return;
    const { internvlu, nodeDefs, settings, settingsCategories } = locales[language()];
    global.mergeLocaleMessage(language(), { internvlu, nodeDefs, settings, settingsCategories });
  },
});
