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
    this.top = 0; // where the reader was when last heard of
    this.drawing = false;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // A small step upwards would be undone by the next jump before the browser has scrolled it.
    this.scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.#leave(), { passive: true });
    this.scroller.addEventListener("touchmove", () => this.#leave(), { passive: true });
    this.scroller.addEventListener("touchend", () => this.#left <= 1 && this.follow(), { passive: true });
    this.toEnd.addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.following && this.#jump()).observe(this.scroller);
  }

  /** Shows these turns. What is on the screen of them already stays as it is; the reader stays at the end or where they are. */
  show(turns, formatted) {
    const drawn = (view, index) => formatted === this.formatted && view.turn === turns[index] && view.answer === turns[index].answer;
    const changed = this.views.findIndex((view, index) => !drawn(view, index));
    for (const view of changed < 0 ? [] : this.views.splice(changed)) view.element.remove();
    this.formatted = formatted;
    for (const turn of turns.slice(this.views.length)) {
      const view = new TurnView(turn, { formatted, act: this.act });
      this.views.push(view);
      this.turns.append(view.element);
    }
    this.views.forEach((view, index) => view.setLast(index === turns.length - 1));
    byId("empty").hidden = turns.length > 0;
    if (this.following) this.#jump();
    this.#showWay();
  }

  /** Who guessed the token of that element on the screen. */
  ownerOf(element) {
    const { answer } = this.views.find((view) => view.element.contains(element));
    return answer.tokens.ownerOf(element.dataset.by);
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

  /** Goes to the end, or to the top of an empty page, and stays at the end as it moves. */
  follow() {
    this.following = true;
    this.#jump();
    this.#showWay();
  }

  #jump() {
    this.scroller.scrollTop = this.views.length > 0 ? this.scroller.scrollHeight : 0;
    this.top = this.scroller.scrollTop;
  }

  /** Pixels below what is seen. */
  get #left() {
    return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight;
  }

  #leave() {
    if (this.scroller.scrollHeight > this.scroller.clientHeight) this.following = false;
  }

  /** Upwards, however little, means leaving; downwards to about the end means following again. */
  #scrolled() {
    const { scrollTop } = this.scroller;
    if (scrollTop < this.top - 1 && this.#left > 1) this.following = false;
    else if (scrollTop > this.top && this.#left < NEAR_END) this.following = true;
    this.top = scrollTop;
    this.#showWay();
  }

  #showWay() {
    this.toEnd.hidden = this.following || this.views.length === 0;
  }
}
