/** The conversation that is shown, in the page's address: a reload, a bookmark and the way back find it again. */

const PREFIX = "#c=";
const NEW = "new"; // one that nothing was said in yet

/** Identifier of the conversation that the address names; "" for a new one, null where it names none. */
export function addressed() {
  const { hash } = window.location;
  if (!hash.startsWith(PREFIX)) return null;
  return hash === PREFIX + NEW ? "" : hash.slice(PREFIX.length);
}

/** @param {object} conversation @param {boolean} step whether the way back leads to what the address named before */
export function setAddress(conversation, step) {
  const hash = PREFIX + (conversation.turns.length > 0 ? conversation.id : NEW);
  if (hash !== window.location.hash) window.history[step ? "pushState" : "replaceState"](null, "", hash);
}
