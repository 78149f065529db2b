/** The question field: grows with its text, sends on Enter, and has one button that sends or stops. */

import { byId, composing } from "./dom.js";

const MOST_HEIGHT = 260; // pixels
const MOST_SHARE = 0.4; // of the window's height, so that some of the conversation is seen
const TOUCH = window.matchMedia("(hover: none) and (pointer: coarse)"); // no Shift there: Enter makes a line, the button sends

export class Composer {
  /** @param {{send: (question: string) => void, stop: () => void, leave: () => void, typed: () => void}} acts `leave` ends the changing of an earlier question */
  constructor(acts) {
    this.acts = acts;
    this.field = byId("question");
    this.send = byId("send");
    this.stop = byId("stop");
    this.busy = false;
    this.field.addEventListener("input", () => {
      this.#changed();
      acts.typed();
    });
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.enterKeyHint = TOUCH.matches ? "enter" : "send";
    window.addEventListener("resize", () => this.#changed());
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.stop.addEventListener("click", () => acts.stop());
    byId("cancel-edit").addEventListener("click", () => acts.leave());
    this.#changed();
  }

  get text() {
    return this.field.value;
  }

  set text(text) {
    this.field.value = text;
    this.#changed();
  }

  focus() {
    this.field.focus();
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
    if (event.key !== "Enter" || event.shiftKey || event.altKey || composing(event) || TOUCH.matches) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    if (this.busy || this.text.trim() === "") return;
    this.acts.send(this.text);
  }

  #changed() {
    this.send.disabled = this.text.trim() === "";
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, MOST_HEIGHT, MOST_SHARE * window.innerHeight)}px`;
  }
}
