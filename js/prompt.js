// Changes to the inputs of a kind of node in every prompt that is queued or exported: on what is sent, so that it makes
// no difference where a value came from, the node's own widget or a subgraph's.
import { app } from "../../scripts/app.js";

const rules = [];

export function onPrompt(kinds, change) {
  rules.push([[kinds].flat(), change]);
}

const { graphToPrompt } = app;
app.graphToPrompt = async function (...args) {
  const prompt = await graphToPrompt.apply(this, args);
  for (const { class_type: kind, inputs } of Object.values(prompt?.output ?? {})) {
    for (const [kinds, change] of rules) if (kinds.includes(kind)) change(inputs);
  }
  return prompt;
};
