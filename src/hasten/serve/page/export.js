/** A conversation as a file. */

import { element } from "./dom.js";
import { titleOf, wholeTitleOf } from "./storage.js";

/** Messages as the API has them, each answer with the owner of every token. */
function exported(conversation) {
  const messages = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  for (const { question, answer } of conversation.turns) {
    messages.push({ role: "user", content: question });
    if (answer === null) continue;
    const { model, state, finish, usage, account, thought, tokens } = answer;
    const pieces = [thought, tokens].flatMap(({ text, ends }) => ends.map((end, index) => text.slice(ends[index - 1] ?? 0, end)));
    const signed = { pieces, provenance: [...thought.codes, ...tokens.codes], hasten: { ...account, legend: tokens.legend } };
    const said = { ...(thought.text ? { reasoning_content: thought.text } : {}), content: tokens.text };
    messages.push({ role: "assistant", ...said, model, state, finish_reason: finish, usage, ...signed });
  }
  return { title: wholeTitleOf(conversation), created: new Date(conversation.created).toISOString(), messages };
}

export function download(conversation) {
  const body = new Blob([JSON.stringify(exported(conversation), null, 2)], { type: "application/json" });
  const address = URL.createObjectURL(body);
  const name = titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
  element("a", { href: address, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
