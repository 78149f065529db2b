/** What stands in the question field of each conversation: the next question, or an earlier one that is being changed. */

import { holdFocus } from "./dom.js";
import { loadUnsent, saveUnsent } from "./storage.js";

export class Question {
  /** @param {import("./composer.js").Composer} composer */
  constructor(composer) {
    this.composer = composer;
    this.conversation = null;
    this.editing = null; // the turn whose question is being changed
    this.putAside = ""; // what stood in the field before that
  }

  /** Shows what was left in the field of that conversation. */
  open(conversation) {
    const { text, edit } = loadUnsent(nameOf(conversation));
    this.conversation = conversation;
    this.putAside = text;
    this.#show(conversation.turns[edit?.turn] ?? null, edit?.text);
  }

  /** Begins to change an earlier question, or with null leaves that. */
  edit(turn) {
    if (turn === this.editing) return;
    if (this.editing === null) this.putAside = this.composer.text;
    this.#show(turn, turn?.question);
    this.keep();
    if (turn === null) holdFocus(this.composer);
    else this.composer.focus();
  }

  /** It was sent: the field is empty, or has again what was put aside. */
  sent() {
    if (this.editing === null) this.putAside = "";
    this.#show(null);
    this.keep();
  }

  /** Keeps what stands in the field, for when this conversation is shown again. */
  keep() {
    const { text } = this.composer;
    const turn = this.conversation.turns.indexOf(this.editing);
    saveUnsent(nameOf(this.conversation), turn < 0 ? { text, edit: null } : { text: this.putAside, edit: { turn, text } });
  }

  /** The conversation gets its first turn, and with it a name of its own for what stands in the field. */
  forgetNew() {
    saveUnsent(nameOf(this.conversation), { text: "", edit: null });
  }

  #show(turn, text) {
    this.editing = turn;
    this.composer.text = turn === null ? this.putAside : text;
    this.composer.setEditing(turn !== null);
  }
}

function nameOf({ id, turns }) {
  return turns.length > 0 ? id : "new";
}
