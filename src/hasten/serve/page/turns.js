/** One turn on the screen: the question, the answer as it grows, its account and what can be done with it. */

import { about } from "./drafters.js";
import { element, iconButton } from "./dom.js";
import { Rendering } from "./rendering.js";
import { decimal, rateOf, whole } from "./speed.js";
import { worth } from "./storage.js";
import { ThoughtView, countOf, thinks } from "./thought.js";

const LONG_WAIT_MS = 3000; // without a token
const SILENT_MS = 10_000; // after which the other tab, in which an answer was coming, may be gone; it keeps what comes every second
const TOO_LONG = "context_length_exceeded";
const MOST_RUNS = 1000; // rows of the token list; more would only slow the page down

export class TurnView {
  /**
   * @param {object} turn see storage.js
   * @param {{formatted: boolean, act: (action: string, turn: object) => void}} options
   */
  constructor(turn, { formatted, act }) {
    this.turn = turn;
    this.answer = turn.answer;
    this.act = act;
    this.made = Date.now();
    this.last = true;
    this.forLast = []; // buttons
    this.body = element("div", { class: "body" });
    this.status = element("p", { class: "status", hidden: true });
    this.foot = element("div", { class: "foot" });
    this.heading = element("h2", { class: "who" }, element("bdi", {}, turn.answer?.model ?? ""));
    this.element = element("article", { class: "turn" }, this.#question(), this.#answer());
    this.rendering = turn.answer === null ? null : new Rendering(this.body, turn.answer.tokens, formatted);
    this.thought = turn.answer === null ? null : new ThoughtView(this.body, turn.answer, formatted);
    this.update();
    // Nothing may come that would draw it then.
    if (turn.answer?.state === "running") this.#drawAt(turn.answer.asked + LONG_WAIT_MS);
    if (turn.answer?.state === "elsewhere") this.#drawAt(this.made + SILENT_MS);
  }

  #drawAt(time) {
    setTimeout(() => this.turn.answer === this.answer && this.update(), Math.max(0, time - Date.now()));
  }

  /** Whether nothing came from the other tab for long. */
  get #silent() {
    return this.turn.answer.state === "elsewhere" && Date.now() - this.made >= SILENT_MS;
  }

  /** Draws what is new of the answer. */
  update() {
    const { answer } = this.turn;
    if (answer === null) return;
    const running = answer.state === "running";
    this.drawn = { state: answer.state, tokens: countOf(answer) };
    this.thought.update();
    this.rendering.update(!running);
    this.element.classList.toggle("running", running);
    this.#tell(answer);
    if (!running && (answer.state !== "elsewhere" || this.#silent)) this.#close(answer);
  }

  /** Whether something came since the last drawing. */
  get behind() {
    const { answer } = this.turn;
    return answer !== null && (answer.state !== this.drawn?.state || countOf(answer) !== this.drawn.tokens);
  }

  /** Only the last turn can be asked for again. */
  setLast(last) {
    this.last = last;
    for (const button of this.forLast) button.hidden = !last;
  }

  #question() {
    const said = element("p", { class: "said", dir: "auto" }, this.turn.question);
    const edit = iconButton("edit", "Edit this question", () => this.act("edit", this.turn));
    const copy = iconButton("copy", "Copy this question", () => this.act("copy-question", this.turn));
    const tools = element("div", { class: "tools" }, edit, copy);
    return element("div", { class: "question" }, element("h2", { class: "who" }, "You"), said, tools);
  }

  #answer() {
    return element("div", { class: "answer" }, this.heading, this.body, this.status, this.foot);
  }

  #tell(answer) {
    const waiting = answer.state === "running" && answer.tokens.text === "" && !thinks(answer);
    const long = Date.now() - answer.asked >= LONG_WAIT_MS;
    const wait = long ? "Still waiting: the model may be loading, and a long text takes its time" : "Reading what you wrote";
    const said = waiting ? wait : (STATES[this.#silent ? "silent" : answer.state]?.(answer) ?? "");
    this.status.className = `status ${waiting ? "waiting" : answer.state}`;
    this.status.hidden = said === "";
    if (this.status.textContent !== said) this.status.textContent = said;
  }

  #close(answer) {
    if (this.foot.childElementCount > 0) return;
    this.forLast = [iconButton("again", "Answer again", () => this.act("again", this.turn), { text: true })];
    if (answer.code === TOO_LONG) this.forLast.push(this.#button("Ask without the oldest turns", "shorten"), this.#button("New conversation", "new"));
    this.setLast(this.last);
    const copy = worth(answer) ? [iconButton("copy", "Copy", () => this.act("copy-answer", this.turn), { text: true })] : [];
    const actions = element("div", { class: "actions" }, ...copy, ...this.forLast);
    this.foot.append(element("p", { class: "account" }, accountLine(answer)), actions);
    const signed = [answer.thought, answer.tokens].filter(({ codes }) => codes.some((code) => code !== ""));
    if (signed.length > 0) this.foot.append(this.#runs(signed));
  }

  #button(label, action) {
    return element("button", { type: "button", class: "quiet", onclick: () => this.act(action, this.turn) }, label);
  }

  /** Who guessed what, as a list: what the colours say, for those who do not see them. */
  #runs(parts) {
    const list = element("ol", { class: "runs", tabindex: "0", "aria-label": "Who guessed what" });
    const details = element("details", {}, element("summary", {}, "Who guessed what"), list);
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      if (list.childElementCount === 0) parts.forEach((tokens) => fill(list, tokens));
      details.scrollIntoView({ block: "nearest" });
    });
    return details;
  }
}

/** Which bound ended an answer, and what can be done about it. */
const CUTS = {
  max_tokens: "the most tokens of an answer were reached; ask to go on, or raise “Most tokens” in the settings",
  cache_tokens: "the conversation is as long as this server has room for; begin a new one",
  context_length: "the conversation is as long as this server allows; begin a new one",
  model: "the conversation is as long as the model can follow; begin a new one",
};

const STATES = {
  stopped: () => "Stopped here.",
  elsewhere: () => "This answer is coming in another tab.",
  silent: () => "This answer was coming in another tab; no more of it has come for a while.",
  failed: (answer) => answer.error,
  done: (answer) => (answer.finish === "length" ? `Cut here: ${CUTS[answer.account?.cut_by] ?? "the limit of tokens was reached"}.` : ""),
};

/** The account in one line, as the command line tells it. */
export function accountLine(answer) {
  const { usage, account } = answer;
  const count = usage?.completion_tokens ?? countOf(answer);
  const parts = [];
  if (count > 0 || answer.state === "done") parts.push(`${whole(count)} token${count === 1 ? "" : "s"}`); // else something else was told
  const rate = rateOf(answer);
  if (rate) parts.push(`${decimal(rate)} a second`);
  if (account?.speedup) parts.push(`${decimal(account.speedup, 2)}× plain`);
  const counts = Object.values(account?.by_drafter ?? {});
  const drafted = counts.reduce((sum, each) => sum + each.drafted, 0);
  const accepted = counts.reduce((sum, each) => sum + each.accepted, 0);
  if (drafted > 0) parts.push(`${whole(accepted)} of ${whole(drafted)} guesses right`);
  if (account?.exact === true) parts.push("exact");
  if (account?.exact === false) parts.push("exact up to rounding");
  return parts.join("\u2002·\u2002");
}

function fill(list, tokens) {
  const runs = runsOf(tokens);
  for (const run of runs.slice(0, MOST_RUNS)) {
    const name = tokens.ownerOf(run.code);
    const who = element("span", { class: "run-who", title: about(name) }, name || "unknown");
    const box = element("span", { class: "run-text" });
    tokens.paint(box, run.start, run.end);
    list.append(element("li", {}, who, element("bdi", {}, box)));
  }
  if (runs.length > MOST_RUNS) list.append(element("li", {}, `and ${whole(runs.length - MOST_RUNS)} more`));
}

/** Neighbouring tokens of one owner together. */
function runsOf({ ends, codes }) {
  const runs = [];
  codes.forEach((code, index) => {
    if (runs.at(-1)?.code === code) runs.at(-1).end = ends[index];
    else runs.push({ code, start: ends[index - 1] ?? 0, end: ends[index] });
  });
  return runs.filter((run) => run.end > run.start);
}
