/** The two side panels: beside the conversation where there is room, over it where there is not. */

import { byId } from "./dom.js";

/** Both of them; while one lies over the rest, the rest cannot be reached. */
export function sidePanels() {
  const panels = {};
  const changed = () => {
    const over = Object.values(panels).some((panel) => panel.over);
    byId("scrim").hidden = !over;
    for (const selector of [".bar", ".main"]) document.querySelector(selector).inert = over;
  };
  panels.side = new Panel("conversations", "toggle-conversations", "(min-width: 56rem)", changed);
  panels.drafts = new Panel("drafts", "toggle-drafts", "(min-width: 78rem)", changed);
  return panels;
}

class Panel {
  /** @param {string} id of the panel @param {string} button id of its button @param {string} roomy media query for "beside" */
  constructor(id, button, roomy, onchange) {
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
    this.onchange();
    if (!opened && within) this.button.focus();
  }
}
