/** The list of conversations: open, rename in place, export, delete with a way back. */

import { byId, composing, element, iconButton } from "./dom.js";
import { titleOf, wholeTitleOf } from "./storage.js";

export class Sidebar {
  /** @param {{open: Function, rename: Function, exportIt: Function, remove: Function}} acts each takes a conversation */
  constructor(acts) {
    this.acts = acts;
    this.list = byId("conversation-list");
    this.rows = new Map(); // by conversation: what is on the list, and what it was made of
    this.renaming = false;
  }

  /** @param {object[]} conversations @param {object} current @param {(conversation: object) => boolean} busy whether an answer is coming there */
  show(conversations, current, busy) {
    if (this.renaming) return; // the list is shown again when that has ended
    const focused = this.list.contains(document.activeElement) ? document.activeElement.closest("li") : null;
    const place = [...this.list.children].indexOf(focused);
    this.#place(conversations.map((each) => this.#rowOf(each, each === current, busy(each))));
    if (focused === null || this.list.contains(document.activeElement)) return;
    const same = this.list.querySelector(`[data-id="${CSS.escape(focused.dataset.id)}"]`);
    const near = same ?? this.list.children[Math.min(place, conversations.length - 1)];
    (near?.querySelector("button") ?? byId("new")).focus();
  }

  /** Rows that stay are not touched: one that went while the pointer is down on it would get no click. */
  #place(rows) {
    const staying = new Set(rows);
    for (const row of [...this.list.children]) if (!staying.has(row)) row.remove();
    rows.forEach((row, index) => {
      const there = this.list.children[index] ?? null;
      if (there !== row) this.list.insertBefore(row, there);
    });
    for (const [conversation, { row }] of this.rows) if (!staying.has(row)) this.rows.delete(conversation);
  }

  #rowOf(conversation, current, running) {
    const look = JSON.stringify([conversation.id, titleOf(conversation), current, running]);
    const known = this.rows.get(conversation);
    if (known?.look === look) return known.row;
    const row = this.#row(conversation, current, running);
    this.rows.set(conversation, { row, look });
    return row;
  }

  #row(conversation, current, running) {
    const title = titleOf(conversation);
    const open = element(
      "button",
      { type: "button", class: "conversation", "aria-current": current ? "true" : null, onclick: () => this.acts.open(conversation) },
      element("bdi", {}, title),
      running ? element("span", { class: "pulse", role: "img", "aria-label": "answering" }) : null,
    );
    const tools = element(
      "span",
      { class: "conversation-tools" },
      iconButton("edit", `Rename ${title}`, () => this.#rename(row, conversation)),
      iconButton("export", `Export ${title} as JSON`, () => this.acts.exportIt(conversation)),
      iconButton("delete", `Delete ${title}`, () => this.acts.remove(conversation)),
    );
    const row = element("li", { "data-id": conversation.id }, open, tools);
    return row;
  }

  #rename(row, conversation) {
    const field = element("input", { class: "rename", "aria-label": "New name", maxlength: "200", dir: "auto" });
    const before = wholeTitleOf(conversation);
    field.value = before;
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      this.renaming = false;
      this.rows.delete(conversation);
      this.acts.rename(conversation, keep && field.value !== before ? field.value : null);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.stopPropagation();
      if (!composing(event)) finish(event.key === "Enter");
    });
    field.addEventListener("blur", () => finish(true));
    this.renaming = true;
    row.replaceChildren(field);
    field.select();
  }
}
