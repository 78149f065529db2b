/** The conversation on the screen: its turns, drawn at most once a frame, followed while the reader is at its end. */

import { byId } from "./dom.js";
import { TurnView } from "./turns.js";

const NEAR_END = 80; // pixels from the end that still count as there
const LARGEST_SHARE = 3; // a drawing that took t is followed by the next one after at least this many t
const QUICK_MS = 25;
const LONGEST_REST_MS = 1000;

export class Transcript {
  /** @param {(action: string, turn: object) => void} act @param {() => void} ondraw called after each drawing */
  constructor(act, ondraw) {
    this.act = act;
    this.ondraw = ondraw;
    this.scroller = byId("transcript");
    this.turns = byId("turns");
    this.toEnd = byId("to-end");
    this.views = [];
    this.following = true;
    this.drawing = false;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.toEnd.addEventListener("click", () => this.follow());
  }

  /** Shows these turns from scratch. */
  show(turns, formatted) {
    this.formatted = formatted;
    this.views = [];
    this.turns.replaceChildren();
    byId("empty").hidden = turns.length > 0;
    this.toEnd.hidden = true;
    for (const turn of turns) this.add(turn);
    if (turns.length === 0) this.scroller.scrollTop = 0;
  }

  add(turn) {
    byId("empty").hidden = true;
    this.views.at(-1)?.setLast(false);
    const view = new TurnView(turn, true, { formatted: this.formatted, act: this.act });
    this.views.push(view);
    this.turns.append(view.element);
    this.follow();
  }

  /** Draws the last turn's news in the next frame; slow drawings leave the page time to breathe. */
  schedule() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame((began) => {
      this.draw();
      // The frame after next tells what style and layout took as well.
      requestAnimationFrame(() => this.#rest(performance.now() - began));
    });
  }

  /** Draws at once, however busy it has been: for the end of an answer. */
  draw() {
    this.views.at(-1)?.update();
    if (this.following) this.#jump();
    this.ondraw();
  }

  #rest(took) {
    const ready = () => {
      this.drawing = false;
      if (this.views.at(-1)?.behind) this.schedule();
    };
    if (took < QUICK_MS) ready();
    else setTimeout(ready, Math.min(LONGEST_REST_MS, LARGEST_SHARE * took));
  }

  follow() {
    this.following = true;
    this.toEnd.hidden = true;
    this.#jump();
  }

  #jump() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #scrolled() {
    const left = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight;
    this.following = left < NEAR_END;
    this.toEnd.hidden = this.following || this.views.length === 0;
  }
}
