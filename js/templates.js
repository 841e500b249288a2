// The template browser shows a pack's templates in the order in which the server finds their files, which is any. Ours
// have numbers.
import { api } from "../../scripts/api.js";

const ask = api.getWorkflowTemplates;
if (typeof ask === "function")
  api.getWorkflowTemplates = async function (...args) {
    const found = await ask.apply(this, args);
    for (const names of Object.values(found ?? {}))
      if (Array.isArray(names) && names.some((name) => /^\d+ InternVL-U /.test(name))) names.sort();
    return found;
  };
