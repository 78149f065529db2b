/** What stands in the question field of each conversation: the next question, or an earlier one that is being changed. */

import { holdFocus } from "./dom.js";
import { loadUnsent, saveUnsent } from "./storage.js";

export class Question {
  /**
   * @param {import("./composer.js").Composer} composer
   * @param {(turn: object, text: string) => void} left hears of a question that was being changed, and of the words that are not sent
   */
  constructor(composer, left) {
    this.composer = composer;
    this.left = left;
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

  /** Begins to change an earlier question, or with null leaves that. `text`: what stands in the field then. */
  edit(turn, text = turn?.question) {
    const { editing, composer } = this;
    if (turn === editing && text === turn?.question) return;
    if (editing === null) this.putAside = composer.text;
    else if (![editing.question, text, ""].includes(composer.text)) this.left(editing, composer.text);
    this.#show(turn, text);
    this.keep();
    if (turn === null) holdFocus(this.composer);
    else this.composer.focus();
  }

  /** Puts a question into the field, below what stands there already. */
  add(text) {
    const there = this.composer.text;
    if (!there.includes(text)) this.composer.text = there === "" ? text : `${there}\n\n${text}`;
    this.keep();
  }

  /** Another tab may have replaced the turns. Words for a question that is gone stand as the next one's. */
  review() {
    const { editing, composer } = this;
    const { turns } = this.conversation;
    if (editing === null || turns.includes(editing)) return;
    this.editing = turns.find(({ question }) => question === editing.question) ?? null;
    if (this.editing === null) {
      const { text } = composer;
      this.#show(null);
      if (text !== editing.question) this.add(text);
    }
    this.keep();
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
