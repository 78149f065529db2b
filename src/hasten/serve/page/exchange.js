/** One answer as it comes from the server. It writes into the answer; whoever looks at the answer draws it. */

import { ApiError, streamChat } from "./api.js";
import { SpeedMeter } from "./speed.js";
import { newAnswer, worth } from "./storage.js";

export class Exchange {
  /**
   * @param {object} conversation
   * @param {object} turn whose answer it makes, replacing what was there
   * @param {object} settings
   */
  constructor(conversation, turn, settings) {
    this.conversation = conversation;
    this.turn = turn;
    this.request = requestOf(conversation, turn, settings);
    const old = turn.answer?.before ?? turn.answer; // one whose tab is gone replaces nothing
    this.replaced = worth(old) ? old : null;
    this.saved = performance.now(); // when what came was last kept
    this.answer = turn.answer = newAnswer(settings.model, this.replaced);
    this.meter = new SpeedMeter();
    this.aborter = new AbortController();
    this.left = false;
  }

  stop() {
    this.aborter.abort();
  }

  /** Stops because the page goes: nobody has seen that this answer is better than the one it replaces. */
  leave() {
    this.left = true;
    this.stop();
  }

  /** Runs to the end, whatever that is; `onevent` hears of each event's codes. Returns an ApiError where it failed. */
  async run(key, onevent) {
    const { answer } = this;
    try {
      for await (const event of streamChat(this.request, key, this.aborter.signal)) this.#take(event, onevent);
      answer.state = "done";
      return null;
    } catch (problem) {
      if (this.aborter.signal.aborted) {
        answer.state = "stopped";
        return null;
      }
      const told = problem instanceof ApiError ? problem : new ApiError("Something on this page broke; please report it.");
      if (told !== problem) console.error(problem);
      Object.assign(answer, { state: "failed", error: told.message, code: told.code });
      return told;
    } finally {
      answer.before = null;
      this.conversation.updated = Date.now();
    }
  }

  #take(event, onevent) {
    const { answer } = this;
    Object.assign(answer.tokens.legend, event.legend);
    if (event.thought === null) answer.tokens.append(event.text, event.codes, event.pieces);
    else answer.thought.append(event.thought, event.codes, event.pieces);
    answer.finish = event.finish ?? answer.finish;
    answer.usage = event.usage ?? answer.usage;
    if (event.account) answer.account = { ...answer.account, ...event.account };
    if (event.codes.length > 0) this.meter.add(event.codes.length, performance.now());
    answer.rate = this.meter.rate();
    onevent(event.codes);
  }
}

function requestOf(conversation, turn, settings) {
  const messages = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  for (const { question, answer } of sentWith(conversation, turn)) {
    messages.push({ role: "user", content: question }, { role: "assistant", content: answer.tokens.text });
  }
  messages.push({ role: "user", content: turn.question });
  // Halves of surrogate pairs cannot be sent as UTF-8.
  const sound = messages.map(({ role, content }) => ({ role, content: content.toWellFormed() }));
  return { model: settings.model, messages: sound, ...sampling(settings) };
}

/** The earlier turns that go along with that one. A question that was refused would be refused again with every one that follows. */
function sentWith({ turns, since }, turn) {
  return turns.slice(since, turns.indexOf(turn)).filter(({ answer }) => worth(answer));
}

function sampling({ temperature, maxTokens, seed }) {
  const chosen = { temperature, max_tokens: maxTokens, seed };
  return Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
}

/** From now on the older half of what was sent with the last question is left out. Returns false where there is nothing to leave out. */
export function leaveOutOldest(conversation) {
  const { turns } = conversation;
  const sent = sentWith(conversation, turns.at(-1));
  if (sent.length === 0) return false;
  conversation.since = turns.indexOf(sent[Math.ceil(sent.length / 2) - 1]) + 1;
  return true;
}
