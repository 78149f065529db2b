/** What can be taken back. Each thing is offered by a notice of its own, for as long as it can be done. */

import { titleOf } from "./storage.js";

const TITLE_LENGTH = 32; // several notices stand one upon the other

export class WaysBack {
  /**
   * @param {import("./toast.js").Toast} toast @param {import("./conversations.js").Conversations} conversations
   * @param {{stop: Function, save: Function, open: Function, edit: Function}} acts each takes a conversation; `edit` the turn and the words as well
   */
  constructor(toast, conversations, acts) {
    this.toast = toast;
    this.conversations = conversations;
    this.acts = acts;
  }

  /** Offers to bring a conversation back that was deleted, here or in another tab. */
  deleted(conversation, elsewhere) {
    const title = `“${titleOf(conversation, TITLE_LENGTH)}”`;
    const [told, name] = elsewhere ? [`${title} was deleted in another tab.`, "Keep it"] : [`Deleted ${title}.`, "Undo"];
    const stands = () => this.conversations.find(conversation.id) === null; // another tab may have brought it back
    const back = () => {
      this.acts.save(conversation);
      this.acts.open(conversation);
    };
    this.toast.withdraw(conversation);
    this.toast.review();
    this.toast.offer(told, name, back, { stands });
  }

  /** Offers what stood there before, until something else is said there: another tab's words would go with the new ones. */
  replaced(conversation, told, name, before) {
    const made = [...conversation.turns];
    const there = () => made.length === conversation.turns.length && made.every((turn, index) => turn === conversation.turns[index]);
    const stands = () => this.conversations.includes(conversation) && there();
    const back = () => {
      this.acts.stop(conversation);
      Object.assign(conversation, before);
      this.acts.save(conversation);
      this.acts.open(conversation);
    };
    this.toast.offer(told, name, back, { subject: conversation, stands });
  }

  /** Offers the words that an earlier question was to be changed to, until that question is gone. */
  left(conversation, turn, text) {
    const stands = () => this.conversations.includes(conversation) && conversation.turns.includes(turn);
    const back = () => this.acts.edit(conversation, turn, text);
    this.toast.offer("The question stays as it was.", "Undo", back, { subject: turn, stands });
  }
}
