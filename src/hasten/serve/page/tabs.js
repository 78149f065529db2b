/** What other tabs of this browser do to the settings and the conversations. */

import { CONVERSATION, SETTINGS, savedConversation } from "./storage.js";

/**
 * @param {import("./conversations.js").Conversations} conversations
 * @param {{settings: Function, removed: Function, replaced: Function, copied: Function, heard: Function}} acts the middle three take a
 *   conversation; `heard` comes last, after any change
 */
export function installTabs(conversations, acts) {
  const told = (id) => {
    const news = conversations.hear(id, savedConversation(id));
    if (news === null) return;
    if (news.change !== "added") acts[news.change](news.conversation);
    acts.heard(news.conversation);
  };
  window.addEventListener("storage", ({ key }) => {
    if (key === SETTINGS || key === null) acts.settings();
    if (key === null) [...conversations.list].forEach(({ id }) => told(id)); // the storage was emptied
    else if (key.startsWith(CONVERSATION)) told(key.slice(CONVERSATION.length));
  });
}
