/** What a model thinks before it answers: open while it does, folded away when the answer begins, kept with the answer. */

import { element } from "./dom.js";
import { Rendering } from "./rendering.js";

/** Tokens of an answer so far, those of its thought included. */
export function countOf({ thought, tokens }) {
  return thought.ends.length + tokens.ends.length;
}

/** Whether the answer itself has not begun, and the thought has. */
export function thinks({ state, thought, tokens }) {
  return state === "running" && tokens.text === "" && thought.text !== "";
}

export class ThoughtView {
  /**
   * @param {Element} before what it is put before once there is a thought
   * @param {object} answer @param {boolean} formatted see rendering.js
   */
  constructor(before, answer, formatted) {
    this.before = before;
    this.answer = answer;
    this.name = element("summary");
    const body = element("div", { class: "body" });
    this.element = element("details", { class: "thought" }, this.name, body);
    this.rendering = new Rendering(body, answer.thought, formatted);
    this.thinking = null;
    // Closed it is not drawn: thoughts are long.
    this.element.addEventListener("toggle", () => this.#draw());
  }

  /** Draws what is new. It opens and closes by itself once each; in between the reader decides. */
  update() {
    if (this.answer.thought.text === "") return;
    if (!this.element.isConnected) this.before.before(this.element);
    const thinking = thinks(this.answer);
    if (thinking !== this.thinking) {
      this.thinking = thinking;
      this.element.open = thinking;
      this.element.classList.toggle("thinking", thinking);
      this.name.textContent = thinking ? "Thinking" : "Thought";
    }
    this.#draw();
  }

  #draw() {
    if (this.element.open) this.rendering.update(!this.thinking);
  }
}
