/** The drawer of settings. Values count as soon as they are valid. */

import { byId } from "./dom.js";
import { loadKey, saveKey } from "./storage.js";

const NUMBERS = { temperature: "temperature", maxTokens: "max-tokens", seed: "seed" };

export class SettingsForm {
  /** @param {object} settings changed in place @param {(name: string) => void} onchange @param {(text: string) => void} onsystem */
  constructor(settings, onchange, onsystem) {
    this.settings = settings;
    this.dialog = byId("settings");
    this.error = byId("key-error");
    this.ranges = byId("range-error");
    for (const [name, id] of Object.entries(NUMBERS)) this.#number(name, byId(id), onchange);
    this.#box("formatted", byId("formatted"), onchange);
    this.#box("marks", byId("marks-setting"), onchange);
    this.system = byId("system");
    this.system.addEventListener("input", () => onsystem(this.system.value));
    this.key = byId("key");
    this.key.value = loadKey();
    this.key.addEventListener("change", () => {
      saveKey(this.key.value.trim());
      // Not while the field is still losing the focus: to be given it back then, it would not tell of its next change.
      setTimeout(() => onchange("key"));
    });
    byId("open-settings").addEventListener("click", () => this.open());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => this.refresh());
    byId("settings-form").noValidate = true; // Enter and the close button always close; a wrong number is told and not taken
  }

  open() {
    this.error.hidden = true;
    this.refresh();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Shows the settings that count; what was typed and is not allowed is gone. */
  refresh() {
    for (const [name, id] of Object.entries(NUMBERS)) {
      byId(id).value = this.settings[name];
      byId(id).setAttribute("aria-invalid", "false");
    }
    byId("formatted").checked = this.settings.formatted;
    byId("marks-setting").checked = this.settings.marks;
    this.ranges.hidden = true;
  }

  /** The server took the key. */
  keyTaken() {
    this.error.hidden = true;
  }

  /** The server wants another key. */
  askForKey(message) {
    if (!this.dialog.open) this.open();
    this.error.textContent = message;
    this.error.hidden = false;
    this.key.focus();
  }

  #number(name, field, onchange) {
    field.value = this.settings[name];
    field.addEventListener("input", () => {
      const valid = field.validity.valid;
      field.setAttribute("aria-invalid", String(!valid));
      this.#tellRange(name, field);
      if (!valid) return;
      this.settings[name] = field.value;
      onchange(name);
    });
  }

  #tellRange(name, field) {
    const kept = this.settings[name] === "" ? "it stays with the server's choice" : `${this.settings[name]} stays`;
    this.ranges.hidden = field.validity.valid;
    this.ranges.textContent = `${field.labels[0].textContent} is ${field.dataset.range}; ${kept}.`;
  }

  #box(name, field, onchange) {
    field.checked = this.settings[name];
    field.addEventListener("change", () => {
      this.settings[name] = field.checked;
      onchange(name);
    });
  }
}
