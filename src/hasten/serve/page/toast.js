/**
 * Short notices above the question field: one that only tells, and any number with something to do about what happened. None takes the
 * place of another, and none covers what lies around it but the brief ones, which go by themselves.
 */

import { byId, element, holdFocus, iconButton } from "./dom.js";

const SHORT_MS = 3500;
const SHORT_TEXT = 60; // characters
const MOST_SHOWN = 3; // offers; older ones come up again when newer ones are gone

export class Toast {
  constructor() {
    this.box = byId("notices");
    this.home = this.box.parentElement;
    this.told = byId("toast");
    this.text = byId("toast-text");
    this.offers = []; // {box, subject, stands}, the oldest first
    byId("toast-close").addEventListener("click", () => this.#hide());
    byId("dismiss-offers").addEventListener("click", () => this.#drop(() => true));
    for (const over of document.querySelectorAll("dialog, .side, .drafts")) {
      new MutationObserver(() => this.#place()).observe(over, { attributeFilter: ["open", "data-over"] });
    }
  }

  /** What lies behind an open dialog or panel can be neither seen well nor reached, so notices lie in it. */
  #place() {
    const place = document.querySelector("dialog[open]") ?? document.querySelector("[data-over]") ?? this.home;
    if (this.box.parentElement !== place) place.append(this.box);
  }

  /** What needs no answer; it goes by itself where it is short. */
  say(text) {
    const brief = text.length < SHORT_TEXT;
    clearTimeout(this.timer);
    this.text.textContent = text;
    this.told.classList.toggle("brief", brief);
    this.told.hidden = false;
    if (brief) this.timer = setTimeout(() => this.#hide(), SHORT_MS);
  }

  #hide() {
    clearTimeout(this.timer);
    this.#keepFocus(() => (this.told.hidden = true));
  }

  /**
   * Something that can be done about what happened; it stays until it is done, dismissed, withdrawn, or replaced by another about the same.
   * @param {string} text @param {string} name of what can be done @param {() => void} run
   * @param {{subject?: object, stands?: () => boolean}} about what it concerns, and whether it can still be done
   */
  offer(text, name, run, { subject = null, stands = () => true } = {}) {
    const mine = (each) => each.box === box;
    const act = () => {
      this.box.closest("dialog")?.close(); // what is done is done behind it
      this.#drop(mine);
      run();
    };
    const box = element(
      "div",
      { class: "toast offer" },
      element("span", { class: "offer-text" }, text),
      element("button", { type: "button", class: "link", onclick: act }, name),
      iconButton("close", "Dismiss", () => this.#drop(mine)),
    );
    this.withdraw(subject);
    this.offers.push({ box, subject, stands });
    byId("offers").append(box);
    this.#show();
  }

  /** What was offered about that subject cannot be done any more. */
  withdraw(subject) {
    this.#drop((each) => subject !== null && each.subject === subject);
  }

  /** Something changed: offers that cannot be kept any more go. */
  review() {
    this.#drop(({ stands }) => !stands());
  }

  #drop(goes) {
    const going = this.offers.filter(goes);
    if (going.length === 0) return;
    this.offers = this.offers.filter((each) => !going.includes(each));
    this.#keepFocus(() => going.forEach(({ box }) => box.remove()));
    this.#show();
  }

  #show() {
    const behind = this.offers.length - MOST_SHOWN;
    this.offers.forEach(({ box }, index) => (box.hidden = index < behind));
    byId("behind").hidden = behind <= 0;
    byId("behind-text").textContent = `${behind} more behind these.`;
  }

  /** The button that was pressed may go with its notice. */
  #keepFocus(change) {
    const within = this.box.contains(document.activeElement);
    change();
    if (within) holdFocus(byId("question"));
  }
}
