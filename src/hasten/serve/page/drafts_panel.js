/** The panel beside the conversation: each drafter with its mark, what it guesses from, its share, and why it is on or off. */

import { byId, element, oneLine } from "./dom.js";
import { MODEL, about, markOf } from "./drafters.js";
import { decimal, rateOf, whole } from "./speed.js";
import { countOf } from "./thought.js";

/**
 * Tells of the answer that is coming, else of the last one that was measured.
 * @param {import("./speed.js").Gauge} gauge @param {object[]} turns of the conversation that is shown
 * @param {?object} exchange the one that runs there @param {object[]} conversations all of them @param {string} model the chosen one
 */
export function showSpeed(gauge, turns, exchange, conversations, model) {
  const last = (wanted) => turns.findLast(({ answer }) => answer !== null && wanted(answer))?.answer ?? null;
  const measured = exchange?.answer ?? last(rateOf);
  const told = exchange?.answer ?? last((answer) => countOf(answer) > 0);
  const plain = measured?.account?.plain_tokens_per_second ?? plainOf(measured?.model, conversations);
  const other = measured !== null && measured.model !== model ? oneLine(measured.model) : "";
  gauge.show(rateOf(measured), plain, exchange !== null, other);
  showDrafters(byId("drafter-list"), told);
  const { exact, precision } = told?.account ?? {};
  byId("promise").textContent = promiseOf(exact, precision);
}

/** What plain decoding last made with that model on this machine, from the newest account that says so. */
function plainOf(model, conversations) {
  for (const { turns } of conversations) {
    const told = turns.findLast(({ answer }) => answer?.model === model && answer.account?.plain_tokens_per_second);
    if (told) return told.answer.account.plain_tokens_per_second;
  }
  return null;
}

function promiseOf(exact, precision) {
  const bits = precision ? ` The weights are in the precision ${precision}.` : "";
  if (exact === true) return `Exact: token by token what plain decoding would have given.${bits}`;
  if (exact === false) return `Exact up to rounding: the server has no native kernels, or a GPU, whose rounding depends on what is computed together.${bits}`;
  return "";
}

/**
 * @param {Element} list gets one item a drafter
 * @param {?object} answer the answer that is told about, or null
 */
function showDrafters(list, answer) {
  const counts = answer?.tokens.counts(answer.thought.counts()) ?? new Map();
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  const names = new Set([MODEL, ...counts.keys(), ...Object.keys(answer?.account?.decisions ?? {})]);
  // In the order of their marks, so that nothing jumps while shares change.
  const ordered = [...names].sort((one, other) => markOf(one) - markOf(other) || one.localeCompare(other));
  const rows = ordered.map((name) => row(name, counts.get(name) ?? 0, total, answer?.account ?? {}));
  list.replaceChildren(...rows);
}

function row(name, count, total, account) {
  const share = total > 0 ? count / total : 0;
  const decision = decisionOf(account.decisions?.[name]);
  const bar = element("span", { class: `share mark-${markOf(name)}`, "aria-hidden": "true" });
  bar.style.setProperty("--share", String(share));
  const head = element(
    "div",
    { class: "drafter-head" },
    element("span", { class: `swatch token mark-${markOf(name)}`, "aria-hidden": "true" }, "abc"),
    element("span", { class: "drafter-name" }, name),
    decision.state ? element("span", { class: `state ${decision.state}` }, decision.state) : null,
    total > 0 ? element("span", { class: "drafter-share" }, `${decimal(100 * share, 0)} %`) : null,
  );
  const guesses = account.by_drafter?.[name];
  const right = guesses ? `${whole(guesses.accepted)} of ${whole(guesses.drafted)} guesses right.` : null;
  const why = [about(name), right, decision.reason].filter(Boolean);
  return element("li", { class: "drafter" }, head, total > 0 ? bar : null, ...why.map((line) => element("p", {}, line)));
}

/** The server says "NAME: on, REASON" or "NAME: off, REASON". */
function decisionOf(sentence = "") {
  const [, state = "", reason = sentence] = /^[^:]*: (on|off), (.*)$/s.exec(sentence) ?? [];
  return { state, reason: reason && `${reason[0].toUpperCase()}${reason.slice(1)}.` };
}
