/** The question field: grows with its text, sends on Enter, and has one button that sends or stops. */

import { byId } from "./dom.js";

const MOST_HEIGHT = 260; // pixels

export class Composer {
  /** @param {{send: (question: string) => void, stop: () => void, leave: () => void}} acts `leave` ends the changing of an earlier question */
  constructor(acts) {
    this.acts = acts;
    this.field = byId("question");
    this.send = byId("send");
    this.stop = byId("stop");
    this.busy = false;
    this.field.addEventListener("input", () => this.#changed());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.stop.addEventListener("click", () => acts.stop());
    byId("cancel-edit").addEventListener("click", () => acts.leave());
    this.#changed();
  }

  focus() {
    this.field.focus();
  }

  fill(text) {
    this.field.value = text;
    this.#changed();
    this.focus();
    this.field.setSelectionRange(text.length, text.length);
  }

  /** @param {boolean} busy an answer is coming */
  setBusy(busy) {
    const focused = document.activeElement === this.send || document.activeElement === this.stop;
    this.busy = busy;
    this.send.hidden = busy;
    this.stop.hidden = !busy;
    if (focused) (busy ? this.stop : this.field).focus(); // the button that had the focus is gone
    this.#changed();
  }

  setEditing(editing) {
    byId("editing").hidden = !editing;
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.altKey) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const question = this.field.value;
    if (this.busy || question.trim() === "") return;
    this.acts.send(question);
  }

  clear() {
    this.field.value = "";
    this.#changed();
  }

  #changed() {
    this.send.disabled = this.field.value.trim() === "";
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, MOST_HEIGHT)}px`;
  }
}
