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
    // A selection may end outside that began in a field.
    this.dialog.addEventListener("pointerdown", (event) => (this.pressedOutside = this.#outside(event)));
    this.dialog.addEventListener("click", (event) => this.pressedOutside && this.#outside(event) && this.dialog.close());
    this.dialog.addEventListener("close", () => this.refresh());
    byId("settings-form").noValidate = true; // Enter and the close button always close; a wrong number is told and not taken
  }

  open() {
    this.error.hidden = true;
    this.refresh();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Whether that is beside the drawer: the dialog's own edge has the same target. */
  #outside({ target, clientX, clientY }) {
    const { left, right, top, bottom } = this.dialog.getBoundingClientRect();
    return target === this.dialog && (clientX < left || clientX > right || clientY < top || clientY > bottom);
  }

  /** Shows the settings of these names, as they count; what was typed there and is not allowed is gone. */
  refresh(names = Object.keys(this.settings)) {
    for (const [name, id] of Object.entries(NUMBERS).filter(([name]) => names.includes(name))) {
      byId(id).value = this.settings[name];
      byId(id).setAttribute("aria-invalid", "false");
    }
    byId("formatted").checked = this.settings.formatted;
    byId("marks-setting").checked = this.settings.marks;
    this.#tellRanges();
  }

  /** The server took the key. */
  keyTaken() {
    this.error.hidden = true;
  }

  /** The server wants another key, or (with another status) does not want this page. */
  askForKey({ code, message }) {
    if (!this.dialog.open) this.open();
    const asked = this.key.value ? "The server does not know this API key; enter another one." : "This server asks for an API key; enter it here.";
    this.error.textContent = code === "invalid_api_key" ? asked : message;
    this.error.hidden = false;
    this.key.focus();
  }

  #number(name, field, onchange) {
    field.value = this.settings[name];
    field.addEventListener("input", () => {
      const valid = field.validity.valid;
      field.setAttribute("aria-invalid", String(!valid));
      if (valid) this.settings[name] = field.value;
      this.#tellRanges();
      if (valid) onchange(name);
    });
  }

  #tellRanges() {
    const wrong = Object.entries(NUMBERS).filter(([, id]) => !byId(id).validity.valid);
    this.ranges.hidden = wrong.length === 0;
    this.ranges.textContent = wrong.map(([name, id]) => rangeOf(byId(id), this.settings[name])).join(" ");
  }

  #box(name, field, onchange) {
    field.checked = this.settings[name];
    field.addEventListener("change", () => {
      this.settings[name] = field.checked;
      onchange(name);
    });
  }
}

function rangeOf(field, kept) {
  const stays = kept === "" ? "it stays with the server's choice" : `${kept} stays`;
  return `${field.labels[0].textContent} is ${field.dataset.range}; ${stays}.`;
}
