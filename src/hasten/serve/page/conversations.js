/** The conversations of this browser, which other tabs may change at any time: whatever two tabs do, no words are lost. */

import { forgetConversation, identifier, revived, savedConversation, savedConversations, wholeTitleOf, writeConversation } from "./storage.js";

export class Conversations {
  /** @param {(conversation: object) => boolean} busy whether this tab is adding to it */
  constructor(busy) {
    this.busy = busy;
    this.known = new Map(); // the saved text that this tab knows of, by identifier
    this.unsaved = new Set(); // conversations that the browser did not take
    const saved = [...savedConversations()];
    const read = saved.map(([id, json]) => this.#met(id, json)).filter((conversation) => conversation !== null);
    this.unreadable = saved.length - read.length;
    this.list = read;
    this.sort();
  }

  sort() {
    this.list.sort((one, other) => other.updated - one.updated);
  }

  find(id) {
    return this.list.find((each) => each.id === id) ?? null;
  }

  includes(conversation) {
    return this.list.includes(conversation);
  }

  /**
   * Saves it, with what another tab has done to it meanwhile. Returns "saved"; "full" where the browser did not take it; "gone" where
   * another tab deleted it, then nothing is written; or "copied" where both tabs said something: then this one is saved under a name of its own.
   */
  save(conversation) {
    if (!this.includes(conversation)) this.list.unshift(conversation);
    const saved = savedConversation(conversation.id);
    const known = this.known.get(conversation.id) ?? null;
    if (saved === null && known !== null) {
      this.#drop(conversation);
      return "gone";
    }
    const copied = saved !== known && !this.#merge(conversation, saved, known);
    const json = JSON.stringify(conversation);
    const taken = writeConversation(conversation.id, json);
    if (taken) this.known.set(conversation.id, json);
    this.unsaved[taken ? "delete" : "add"](conversation);
    return copied ? "copied" : taken ? "saved" : "full";
  }

  /** Takes it off the list and out of the storage. `save` brings it back. */
  remove(conversation) {
    this.#drop(conversation);
    forgetConversation(conversation.id);
  }

  /**
   * Another tab wrote or deleted (`json` null) the conversation of that identifier.
   * Returns {conversation, change}: "removed", "replaced", "added", or "copied" as `save` does; null where nothing changed here.
   */
  hear(id, json) {
    const mine = this.find(id);
    if (json === this.known.get(id)) return null;
    if (json === null) {
      if (mine === null) return null;
      this.#drop(mine);
      return { conversation: mine, change: "removed" };
    }
    if (mine === null) {
      const added = this.#met(id, json, "elsewhere");
      if (added !== null) this.list.push(added);
      return added && { conversation: added, change: "added" };
    }
    if (this.busy(mine) || this.unsaved.has(mine)) {
      const merged = this.#merge(mine, json, this.known.get(id) ?? null);
      return { conversation: mine, change: merged ? "replaced" : "copied" };
    }
    const theirs = this.#met(id, json, "elsewhere");
    if (theirs === null) return null;
    theirs.turns = theirs.turns.map((turn, index) => (same(turn, mine.turns[index]) ? mine.turns[index] : turn));
    Object.assign(mine, theirs);
    return { conversation: mine, change: "replaced" };
  }

  #drop(conversation) {
    this.list = this.list.filter((each) => each !== conversation);
    this.known.delete(conversation.id);
  }

  #met(id, json, cut = "stopped") {
    const conversation = revived(json, cut);
    if (conversation === null || conversation.id !== id) return null;
    this.known.set(id, json);
    return conversation;
  }

  /** Brings `mine` and the saved text of another tab together, from the `base` that both began with. Where both have words that the
   * other has not, `mine` becomes a copy under a new name, and theirs joins the list. Returns whether they are one. */
  #merge(mine, json, base) {
    const theirs = revived(json);
    if (theirs === null) return true; // nobody can read it; ours is better
    const before = revived(base);
    const changed = (one) => Object.fromEntries(["title", "system"].filter((name) => one[name] !== before?.[name]).map((name) => [name, one[name]]));
    const covers = (one, other) => holds(one, other) || (before !== null && holds(before, other));
    this.known.set(theirs.id, json);
    if (covers(mine, theirs)) {
      Object.assign(mine, changed(theirs));
      return true;
    }
    if (!this.busy(mine) && covers(theirs, mine)) {
      Object.assign(mine, theirs, changed(mine));
      return true;
    }
    this.list.push(theirs);
    Object.assign(mine, { id: identifier(), title: `Copy of ${wholeTitleOf(mine)}` });
    return false;
  }
}

/** Whether all that was said in `less` was said in `more` too, though an answer may have gone on there. */
function holds(more, less) {
  return less.turns.every((turn, index) => {
    const other = more.turns[index];
    return other?.question === turn.question && (other.answer?.tokens.text ?? "").startsWith(turn.answer?.tokens.text ?? "");
  });
}

function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}
