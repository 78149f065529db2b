/** Tells screen readers of a growing answer in whole sentences and not too often: a live region that got every token would never end. */

import { thinks } from "./thought.js";

const THINKING = "The model is thinking.";
const EVERY_MS = 4000;
const SENTENCE_END = /[.!?:;。！？]["')\]]?\s|\n/g;

export class Announcements {
  /** @param {Element} region an aria-live="polite" element */
  constructor(region) {
    this.region = region;
    this.begin();
  }

  /** @param {number} heard how much of the answer was heard, or seen, before */
  begin(heard = 0) {
    this.heard = heard;
    this.last = performance.now();
  }

  say(sentence) {
    this.region.textContent = sentence;
  }

  /** An answer so far; what became whole sentences since the last time is said, of a thought only that it comes. */
  hear(answer) {
    const { text } = answer.tokens;
    if (thinks(answer) && this.region.textContent !== THINKING) this.say(THINKING);
    const now = performance.now();
    if (now - this.last < EVERY_MS) return;
    const end = lastSentenceEnd(text, this.heard);
    if (end <= this.heard) return;
    this.say(text.slice(this.heard, end));
    this.heard = end;
    this.last = now;
  }

  finish(text, account) {
    this.say(`${text.slice(this.heard)} — ${account}`);
  }
}

function lastSentenceEnd(text, from) {
  let end = from;
  SENTENCE_END.lastIndex = from;
  for (let found = SENTENCE_END.exec(text); found !== null; found = SENTENCE_END.exec(text)) end = SENTENCE_END.lastIndex;
  return end;
}
