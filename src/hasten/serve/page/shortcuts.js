/** Keyboard shortcuts: one table, from which both the handler and the list on the page are made. */

import { element } from "./dom.js";

// Alt and Shift together are free in browsers and screen readers; the key's place counts, as Alt changes its letter on some systems.
const TABLE = [
  { keys: ["Enter"], does: "Send the question" },
  { keys: ["Shift", "Enter"], does: "New line in the question" },
  { keys: ["Esc"], does: "Stop the answer, or close what is open" },
  { keys: ["Alt", "Shift", "N"], does: "New conversation", action: "new" },
  { keys: ["Alt", "Shift", "Q"], does: "To the question field", action: "question" },
  { keys: ["Alt", "Shift", "R"], does: "Answer again", action: "again" },
  { keys: ["Alt", "Shift", "C"], does: "Copy the last answer", action: "copy" },
  { keys: ["Alt", "Shift", "M"], does: "Marks on or off", action: "marks" },
  { keys: ["Alt", "Shift", "L"], does: "Conversations", action: "conversations" },
  { keys: ["Alt", "Shift", "D"], does: "Speed and drafters", action: "drafts" },
  { keys: ["Alt", "Shift", "S"], does: "Settings", action: "settings" },
  { keys: ["Alt", "Shift", "K"], does: "This list", action: "shortcuts" },
];

/** @param {Element} list a dl @param {Object<string, () => void>} actions one a name of the table */
export function installShortcuts(list, actions) {
  for (const { keys, does } of TABLE) {
    list.append(element("div", {}, element("dt", {}, ...keys.map((key) => element("kbd", {}, key))), element("dd", {}, does)));
  }
  const byCode = new Map(TABLE.filter((row) => row.action).map((row) => [`Key${row.keys.at(-1)}`, actions[row.action]]));
  document.addEventListener("keydown", (event) => {
    const action = event.altKey && event.shiftKey && !event.ctrlKey && !event.metaKey ? byCode.get(event.code) : undefined;
    if (!action) return;
    event.preventDefault();
    if (document.querySelector("dialog[open]")) return; // what lies behind it is out of reach for the pointer too
    action();
  });
}
