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
  panels.side = new Panel("conversations", ["toggle-conversations"], "(min-width: 56rem)", changed);
  panels.drafts = new Panel("drafts", ["toggle-drafts", "speed-strip"], "(min-width: 78rem)", changed);
  return panels;
}

class Panel {
  /** @param {string} id of the panel @param {string[]} buttons ids of those that open it @param {string} roomy media query for "beside" */
  constructor(id, buttons, roomy, onchange) {
    this.element = byId(id);
    this.buttons = buttons.map(byId);
    this.opener = this.buttons[0]; // which gets the focus back
    this.roomy = window.matchMedia(roomy);
    this.onchange = onchange;
    for (const button of this.buttons) button.addEventListener("click", () => this.toggle(button));
    this.element.querySelector("[data-close]").addEventListener("click", () => this.set(false));
    byId("scrim").addEventListener("click", () => !this.roomy.matches && this.set(false));
    this.roomy.addEventListener("change", () => this.set(this.roomy.matches));
    this.set(this.roomy.matches);
  }

  get over() {
    return this.opened && !this.roomy.matches;
  }

  toggle(opener = this.buttons[0]) {
    if (!this.opened) this.opener = opener;
    this.set(!this.opened);
    if (this.over) this.element.querySelector("button, a, [tabindex]")?.focus();
    else if (!opener.checkVisibility()) this.element.focus(); // beside the panel the speed is told once
  }

  set(opened) {
    const within = this.element.contains(document.activeElement);
    this.opened = opened;
    this.element.inert = !opened;
    this.element.dataset.open = String(opened);
    this.element.toggleAttribute("data-over", this.over);
    document.documentElement.toggleAttribute(`data-${this.element.id}`, opened);
    for (const button of this.buttons) button.setAttribute("aria-expanded", String(opened));
    this.onchange();
    if (!opened && within) this.opener.focus();
  }
}
