/** Short notices at the foot of the page, one with something to do about it and one without: neither takes the other's place. */

import { byId } from "./dom.js";

const SHORT_MS = 3500;

class Notice {
  constructor(id) {
    this.box = byId(id);
    this.text = byId(`${id}-text`);
    byId(`${id}-close`).addEventListener("click", () => this.hide());
  }

  show(text, forMs = null) {
    clearTimeout(this.timer);
    this.text.textContent = text;
    this.box.hidden = false;
    if (forMs !== null) this.timer = setTimeout(() => this.hide(), forMs);
  }

  hide() {
    clearTimeout(this.timer);
    this.box.hidden = true;
  }
}

export class Toast {
  constructor() {
    this.box = document.querySelector(".toasts");
    for (const dialog of document.querySelectorAll("dialog")) {
      new MutationObserver(() => this.#place()).observe(dialog, { attributeFilter: ["open"] });
    }
    this.notice = new Notice("toast");
    this.offered = new Notice("offer");
    this.subject = null;
    this.stands = () => true;
    this.action = byId("offer-action");
    this.action.addEventListener("click", () => {
      this.offered.hide();
      this.box.closest("dialog")?.close(); // what is done is done behind it
      this.run();
    });
  }

  /** What lies behind an open dialog can be neither seen well nor reached, so notices lie in it. */
  #place() {
    const place = document.querySelector("dialog[open]") ?? document.body;
    if (this.box.parentElement !== place) place.append(this.box);
  }

  /** What needs no answer; it goes by itself where it is short. */
  say(text) {
    this.notice.show(text, text.length < 60 ? SHORT_MS : null);
  }

  /**
   * Something that can be done about what happened; it stays until it is done, dismissed, withdrawn or replaced.
   * @param {string} text @param {string} name of what can be done @param {() => void} run
   * @param {{subject?: object, stands?: () => boolean}} about what it concerns, and whether it can still be done
   */
  offer(text, name, run, { subject = null, stands = () => true } = {}) {
    this.run = run;
    this.subject = subject;
    this.stands = stands;
    this.action.textContent = name;
    this.offered.show(text);
  }

  /** What was offered about that subject cannot be done any more. */
  withdraw(subject) {
    if (subject === this.subject) this.offered.hide();
  }

  /** Something changed: an offer that cannot be kept any more goes. */
  review() {
    if (!this.stands()) this.offered.hide();
  }
}
