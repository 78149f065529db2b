/** A short notice at the foot of the page, with at most one thing to do about it. It stays until it is read and dismissed. */

import { byId } from "./dom.js";

const SHORT_MS = 3500;

export class Toast {
  constructor() {
    this.box = byId("toast");
    this.action = byId("toast-action");
    this.run = null;
    byId("toast-close").addEventListener("click", () => this.hide());
    this.action.addEventListener("click", () => {
      const { run } = this;
      this.hide();
      run?.();
    });
  }

  /** @param {string} text @param {{name: string, run: () => void}} [action] */
  say(text, action) {
    clearTimeout(this.timer);
    byId("toast-text").textContent = text;
    this.run = action?.run ?? null;
    this.action.textContent = action?.name ?? "";
    this.action.hidden = !action;
    this.box.hidden = false;
    // Only what needs no answer goes by itself.
    if (!action && text.length < 60) this.timer = setTimeout(() => this.hide(), SHORT_MS);
  }

  hide() {
    clearTimeout(this.timer);
    this.box.hidden = true;
  }
}
