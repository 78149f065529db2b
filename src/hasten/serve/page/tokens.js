/** The text of an answer with the owner of every token, and how it is painted. */

import { DIRECTION_MARKS, element } from "./dom.js";
import { markOf } from "./drafters.js";

/** Grows while the answer streams. A token without text (it waits for the rest of its character) counts, but paints nothing. */
export class Tokens {
  constructor(legend = {}) {
    this.text = "";
    /** Where each token ends in `text`, and the short code of who guessed it; "" where the server did not say. */
    this.ends = [];
    this.codes = [];
    this.legend = legend; // the server's {code: name}; another server, or the same with other drafters, gives the letters to others
  }

  /** The name of the drafter with that code, "" for "". */
  ownerOf(code) {
    return this.legend[code] ?? code;
  }

  /** @param {string} text @param {string[]} codes @param {string[]} pieces one text a code, which together are `text` */
  append(text, codes, pieces) {
    const told = codes.length === pieces.length && pieces.join("") === text;
    if (told) codes.forEach((code, index) => this.#push(pieces[index], code));
    else this.#push(text, "");
  }

  #push(piece, code) {
    if (piece === "" && code === "") return;
    this.text += piece;
    this.ends.push(this.text.length);
    this.codes.push(code);
  }

  /** How many tokens are whose, by name, added to `counts`; those that nobody signed are left out. */
  counts(counts = new Map()) {
    for (const name of this.codes.map((code) => this.ownerOf(code))) if (name !== "") counts.set(name, (counts.get(name) ?? 0) + 1);
    return counts;
  }

  /** Appends characters [start, end) to `parent`, one element a token. */
  paint(parent, start, end) {
    for (let index = this.#tokenAt(start); start < end; index += 1) {
      const stop = Math.min(this.ends[index], end);
      if (stop <= start) continue;
      parent.append(this.#painted(this.text.slice(start, stop), this.codes[index]));
      start = stop;
    }
  }

  #painted(text, code) {
    const hidden = DIRECTION_MARKS.test(text);
    if (code === "" && !hidden) return document.createTextNode(text);
    const mark = code === "" ? "" : ` mark-${markOf(this.ownerOf(code))}`;
    return element("span", { class: `token${mark}${hidden ? " direction" : ""}`, "data-by": code || null }, text);
  }

  #tokenAt(offset) {
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  toJSON() {
    return { text: this.text, ends: this.ends, codes: this.codes, legend: this.legend };
  }

  /** From what `toJSON` gave; throws TypeError for anything else. */
  static from(saved) {
    const { text, ends, codes } = saved;
    const legend = Object.fromEntries(Object.entries(saved.legend ?? {}).filter(([, name]) => typeof name === "string"));
    const rising = Array.isArray(ends) && ends.every((end, index) => Number.isInteger(end) && end >= (ends[index - 1] ?? 0));
    const whole = rising && (ends.at(-1) ?? 0) === text?.length && Array.isArray(codes) && codes.length === ends.length;
    if (!whole || !codes.every((code) => typeof code === "string")) throw new TypeError("not the tokens of an answer");
    return Object.assign(new Tokens(), { text, ends, codes, legend });
  }
}
