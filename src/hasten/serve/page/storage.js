/** What this browser keeps: settings and conversations in localStorage, the API key until the tab is closed. Nothing goes elsewhere. */

import { oneLine } from "./dom.js";
import { Tokens } from "./tokens.js";

const SETTINGS = "hasten.settings";
const CONVERSATION = "hasten.conversation.";
const KEY = "hasten.key";
const TITLE_LENGTH = 60;

/** Numbers are kept as typed; "" leaves the choice to the server, whose temperature of 1 makes small models ramble. */
export const DEFAULTS = {
  theme: "system",
  marks: true,
  formatted: true,
  model: "",
  system: "",
  temperature: "0.7",
  maxTokens: "",
  seed: "",
};

export function loadSettings() {
  const saved = parsed(read(localStorage, SETTINGS)) ?? {};
  const known = Object.keys(DEFAULTS).filter((name) => typeof saved[name] === typeof DEFAULTS[name]);
  return { ...DEFAULTS, ...Object.fromEntries(known.map((name) => [name, saved[name]])) };
}

/** Returns whether the browser took it. */
export function saveSettings(settings) {
  return write(localStorage, SETTINGS, JSON.stringify(settings));
}

export function loadKey() {
  return read(sessionStorage, KEY) ?? "";
}

export function saveKey(key) {
  return write(sessionStorage, KEY, key);
}

/**
 * A conversation: {id, title, created, updated, system, turns}. A turn: {question, answer}. An answer: {tokens, model, state,
 * error, finish, usage, account}, its state "running", "done", "stopped" or "failed".
 */
export function newConversation(system) {
  const now = Date.now();
  return { id: identifier(), title: "", created: now, updated: now, system, turns: [] };
}

export function newAnswer(model) {
  return { tokens: new Tokens(), model, state: "running", error: "", finish: null, usage: null, account: null };
}

export function titleOf(conversation) {
  const title = conversation.title || oneLine(conversation.turns[0]?.question ?? "");
  return title.length > TITLE_LENGTH ? `${title.slice(0, TITLE_LENGTH).toWellFormed()}…` : title || "New conversation";
}

/** All that can be read, newest first, and how many could not. */
export function loadConversations() {
  const all = storedNames().map((name) => revived(read(localStorage, name)));
  const readable = all.filter((conversation) => conversation !== null);
  return { conversations: readable.sort((one, other) => other.updated - one.updated), unreadable: all.length - readable.length };
}

/** Returns whether the browser took it; false where its storage is full or forbidden. */
export function saveConversation(conversation) {
  return write(localStorage, CONVERSATION + conversation.id, JSON.stringify(conversation));
}

export function forgetConversation(id) {
  try {
    localStorage.removeItem(CONVERSATION + id);
  } catch {
    // Storage is forbidden here, so there is nothing to forget.
  }
}

/** What "Export" writes: messages as the API has them, each answer with the owner of every token. */
export function exported(conversation) {
  const messages = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  for (const { question, answer } of conversation.turns) {
    messages.push({ role: "user", content: question });
    if (answer === null) continue;
    const { text, ends, codes } = answer.tokens;
    const pieces = ends.map((end, index) => text.slice(ends[index - 1] ?? 0, end));
    const { model, state, finish, usage, account } = answer;
    messages.push({ role: "assistant", content: text, model, state, finish_reason: finish, usage, pieces, provenance: codes, hasten: account });
  }
  return { title: titleOf(conversation), created: new Date(conversation.created).toISOString(), messages };
}

function revived(json) {
  try {
    const { id, title, created, updated, system, turns } = JSON.parse(json);
    const texts = [id, title, system].every((value) => typeof value === "string");
    if (!texts || !Number.isFinite(created) || !Number.isFinite(updated)) return null;
    return { id, title, created, updated, system, turns: turns.map(revivedTurn) };
  } catch {
    return null;
  }
}

function revivedTurn({ question, answer }) {
  if (typeof question !== "string") throw new TypeError("not a turn");
  if (answer === null) return { question, answer };
  const { model, state, error, finish, usage, account } = answer;
  if (typeof model !== "string") throw new TypeError("not an answer");
  // The page was closed while this answer came.
  const cut = state === "running";
  const tokens = Tokens.from(answer.tokens);
  return { question, answer: { tokens, model, state: cut ? "stopped" : state, error: String(error ?? ""), finish, usage, account } };
}

function storedNames() {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(CONVERSATION));
  } catch {
    return [];
  }
}

function read(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null;
  }
}

function write(storage, name, value) {
  try {
    storage.setItem(name, value);
    return true;
  } catch {
    return false;
  }
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}

function identifier() {
  // crypto.randomUUID exists on secure origins only, and the page may be served over plain HTTP in a home network.
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
