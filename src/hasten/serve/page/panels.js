/** The two side panels: beside the conversation where there is room, over it where there is not. */

import { byId } from "./dom.js";

export class Panel {
  /** @param {string} id of the panel @param {string} button id of its button @param {string} roomy media query for "beside" */
  constructor(id, button, roomy, onchange = () => {}) {
    this.element = byId(id);
    this.button = byId(button);
    this.roomy = window.matchMedia(roomy);
    this.onchange = onchange;
    this.button.addEventListener("click", () => this.toggle());
    this.element.querySelector("[data-close]").addEventListener("click", () => this.set(false));
    byId("scrim").addEventListener("click", () => !this.roomy.matches && this.set(false));
    this.roomy.addEventListener("change", () => this.set(this.roomy.matches));
    this.set(this.roomy.matches);
  }

  get over() {
    return this.opened && !this.roomy.matches;
  }

  toggle() {
    this.set(!this.opened);
    if (this.over) this.element.querySelector("button, a, [tabindex]")?.focus();
  }

  set(opened) {
    const within = this.element.contains(document.activeElement);
    this.opened = opened;
    this.element.inert = !opened;
    this.element.dataset.open = String(opened);
    document.documentElement.toggleAttribute(`data-${this.element.id}`, opened);
    this.button.setAttribute("aria-expanded", String(opened));
    if (!opened && within) this.button.focus();
    this.onchange();
  }
}
