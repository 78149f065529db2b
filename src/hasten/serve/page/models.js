/** Which models the server offers, and which one of them is asked. */

import { listModels } from "./api.js";
import { byId, element, oneLine } from "./dom.js";
import { loadKey, saveSettings } from "./storage.js";

export class Models {
  /** @param {object} settings its `model` is changed in place @param {{failed: (problem: Error) => void, listed: () => void, chosen: () => void}} acts */
  constructor(settings, acts) {
    this.settings = settings;
    this.acts = acts;
    this.select = byId("model");
    this.select.addEventListener("change", () => {
      settings.model = this.select.value;
      saveSettings({ model: settings.model });
      acts.chosen();
    });
    // The server may have come back with another model while nobody looked.
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.load(true));
  }

  /** Asks the server. `quiet`: it was not the reader who wanted that, so a failure is not told. */
  async load(quiet = false) {
    try {
      this.#show(await listModels(loadKey()));
    } catch (problem) {
      if (!quiet) this.acts.failed(problem);
      return;
    }
    this.acts.listed();
    this.acts.chosen();
  }

  #show(names) {
    const { select, settings } = this;
    const shown = [...select.options].map((option) => option.value);
    if (select.disabled || shown.join("\n") !== names.join("\n")) {
      select.replaceChildren(...names.map((name) => element("option", { value: name }, oneLine(name))));
    }
    select.disabled = names.length === 0;
    if (!names.includes(settings.model)) settings.model = names[0] ?? "";
    select.value = settings.model;
  }
}
