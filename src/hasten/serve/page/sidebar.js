/** The list of conversations: open, rename in place, export, delete with a way back. */

import { byId, element, iconButton } from "./dom.js";
import { titleOf } from "./storage.js";

export class Sidebar {
  /** @param {{open: Function, rename: Function, exportIt: Function, remove: Function}} acts each takes a conversation */
  constructor(acts) {
    this.acts = acts;
    this.list = byId("conversation-list");
  }

  show(conversations, currentId, runningId) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    this.list.replaceChildren(...conversations.map((each) => this.#row(each, each.id === currentId, each.id === runningId)));
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"] button`)?.focus();
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
    field.value = titleOf(conversation);
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      this.acts.rename(conversation, keep ? field.value : null);
      this.list.querySelector(`[data-id="${CSS.escape(conversation.id)}"] button`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) finish(true);
      if (event.key === "Escape") finish(false);
      if (event.key === "Enter" || event.key === "Escape") event.stopPropagation();
    });
    field.addEventListener("blur", () => finish(true));
    row.replaceChildren(field);
    field.select();
  }
}
