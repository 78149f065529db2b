/** Theme and marks, as the settings have them. */

import { byId } from "./dom.js";
import { saveSettings } from "./storage.js";

const THEMES = ["system", "light", "dark"];
const NAMES = { system: "as the system has it", light: "light", dark: "dark" };

export class Look {
  /** @param {object} settings changed in place @param {import("./toast.js").Toast} toast */
  constructor(settings, toast) {
    this.settings = settings;
    this.toast = toast;
    byId("marks").addEventListener("click", () => this.toggleMarks());
    byId("theme").addEventListener("click", () => this.#nextTheme());
    this.show();
  }

  show() {
    const { theme, marks } = this.settings;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").setAttribute("aria-label", `Theme: ${NAMES[theme]}`);
    byId("theme").title = `Theme: ${NAMES[theme]}`;
    document.documentElement.dataset.marks = marks ? "on" : "off";
    byId("marks").setAttribute("aria-pressed", String(marks));
  }

  toggleMarks() {
    const marks = !this.settings.marks;
    this.#take({ marks });
    this.toast.say(marks ? "Tokens wear the mark of who guessed them." : "Marks are off.");
  }

  #nextTheme() {
    this.#take({ theme: THEMES[(THEMES.indexOf(this.settings.theme) + 1) % THEMES.length] });
  }

  #take(changed) {
    Object.assign(this.settings, changed);
    saveSettings(changed);
    this.show();
  }
}
