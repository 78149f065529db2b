/** How fast tokens come, against plain decoding: a number, a meter, and a tape of what arrived together. */

import { byId, element } from "./dom.js";
import { markOf } from "./drafters.js";

const WINDOW_MS = 2500;
const TAPE_LENGTH = 48;
const TAPE_HEIGHT = 10; // tokens; a taller step is cut and says so by its edge
const TELL_EVERY_MS = 1000; // how often assistive technology gets a new value

export function decimal(value, digits = 1) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function whole(value) {
  return value.toLocaleString("en");
}

/** Tokens a second of an answer: the server's own number, else what the page counted, else null. */
export function rateOf(answer) {
  return answer?.account?.tokens_per_second ?? answer?.rate ?? null;
}

/** Tokens a second over the last moments. What the first event brings came out of reading the prompt and starts the clock. */
export class SpeedMeter {
  constructor() {
    this.arrivals = [];
  }

  add(tokens, now) {
    this.arrivals.push({ tokens, now });
    while (this.arrivals.length > 2 && this.arrivals[1].now < now - WINDOW_MS) this.arrivals.shift();
  }

  /** null before two events. */
  rate() {
    const first = this.arrivals[0];
    const last = this.arrivals.at(-1);
    if (!first || last.now <= first.now) return null;
    const tokens = this.arrivals.slice(1).reduce((sum, arrival) => sum + arrival.tokens, 0);
    return (1000 * tokens) / (last.now - first.now);
  }
}

/** The gauge in the panel and its small twin above the composer. */
export class Gauge {
  constructor() {
    const ids = { box: "speed", rate: "rate", note: "rate-note", meter: "meter", small: "small-rate", smallMeter: "small-meter", tape: "tape" };
    this.parts = Object.fromEntries(Object.entries(ids).map(([name, id]) => [name, byId(id)]));
    this.told = 0;
    this.show(null, null, false);
  }

  /** @param {?number} rate tokens a second @param {?number} plain the same, plain @param {boolean} live still streaming @param {string} model named beside the numbers, or "" */
  show(rate, plain, live, model = "") {
    const { parts } = this;
    const gain = rate && plain ? rate / plain : null;
    parts.rate.textContent = rate ? decimal(rate) : "";
    parts.box.dataset.measured = String(Boolean(rate));
    parts.note.textContent = noteOf(rate, plain, gain, model);
    parts.small.textContent = rate ? `${decimal(rate)} tok/s${gain ? ` · ${decimal(gain, 2)}× plain` : ""}` : "";
    for (const meter of [parts.meter, parts.smallMeter]) this.#bar(meter, rate, plain);
    const now = performance.now();
    if (live && now - this.told < TELL_EVERY_MS) return;
    this.told = now;
    const spoken = rate ? `${decimal(rate)} tokens per second${gain ? `, ${decimal(gain, 2)} times plain decoding` : ""}` : "nothing measured yet";
    parts.meter.setAttribute("aria-valuenow", String(Math.round((rate ?? 0) * 10) / 10));
    parts.meter.setAttribute("aria-valuemax", String(Math.ceil(scaleOf(rate, plain))));
    parts.meter.setAttribute("aria-valuetext", spoken);
  }

  #bar(meter, rate, plain) {
    const scale = scaleOf(rate, plain);
    meter.classList.toggle("measured", Boolean(rate));
    meter.classList.toggle("compared", Boolean(plain));
    meter.style.setProperty("--rate", String((rate ?? 0) / scale));
    meter.style.setProperty("--plain", String((plain ?? 0) / scale));
  }

  /** One event's tokens as a column of the tape, oldest at the bottom. @param {string[]} owners one name a token */
  step(owners) {
    const column = element("span", { class: owners.length > TAPE_HEIGHT ? "step tall" : "step" });
    for (const name of owners.slice(0, TAPE_HEIGHT)) column.append(element("i", { class: `mark-${markOf(name)}` }));
    this.parts.tape.append(column);
    while (this.parts.tape.childElementCount > TAPE_LENGTH) this.parts.tape.firstElementChild.remove();
  }

  clearTape() {
    this.parts.tape.replaceChildren();
  }
}

function scaleOf(rate, plain) {
  return Math.max(1, 3 * (plain ?? 0), 1.15 * (rate ?? 0));
}

function noteOf(rate, plain, gain, model) {
  const which = model ? `With ${model}. ` : "";
  if (gain) return `${which}${decimal(gain, 2)}× plain decoding (${decimal(plain)} here)`;
  if (rate) return `${which}Plain decoding has not been measured here yet.`;
  return "Measured with the first answer: tokens a second, against plain decoding on this machine.";
}
