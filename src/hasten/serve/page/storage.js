/** What this browser keeps: settings and conversations in localStorage; the API key and unsent questions until the tab is closed. */

import { oneLine } from "./dom.js";
import { Tokens } from "./tokens.js";

export const SETTINGS = "hasten.settings";
export const CONVERSATION = "hasten.conversation.";
const KEY = "hasten.key";
const UNSENT = "hasten.unsent.";
const TITLE_LENGTH = 60;

// Functions, because a browser that blocks site data throws as soon as one of these names is read.
const lasting = () => localStorage;
const forTab = () => sessionStorage;
const forgetful = new Map(); // what the browser does not keep for the tab lives as long as the page

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
  return { ...DEFAULTS, ...savedSettings() };
}

/** Saves these settings and leaves the others as they are, another tab may have changed them. Returns whether the browser took it. */
export function saveSettings(changed) {
  return write(lasting, SETTINGS, JSON.stringify({ ...savedSettings(), ...changed }));
}

function savedSettings() {
  const saved = parsed(read(lasting, SETTINGS)) ?? {};
  const known = Object.keys(DEFAULTS).filter((name) => typeof saved[name] === typeof DEFAULTS[name]);
  return Object.fromEntries(known.map((name) => [name, saved[name]]));
}

export function loadKey() {
  return readForTab(KEY) ?? "";
}

export function saveKey(key) {
  writeForTab(KEY, key);
}

/** What stands in the question field of that conversation: {text, edit}; `edit` is null or {turn, text}, an earlier question being changed. */
export function loadUnsent(id) {
  const { text, edit } = parsed(readForTab(UNSENT + id)) ?? {};
  const editing = Number.isInteger(edit?.turn) && typeof edit.text === "string";
  return { text: typeof text === "string" ? text : "", edit: editing ? edit : null };
}

export function saveUnsent(id, unsent) {
  writeForTab(UNSENT + id, unsent.text === "" && unsent.edit === null ? null : JSON.stringify(unsent));
}

/**
 * A conversation: {id, title, created, updated, system, since, turns}; `since` is the first turn that is still sent. A turn:
 * {question, answer}. An answer: {tokens, thought, model, state, error, code, finish, usage, account, rate, asked, before}, its state "running",
 * "done", "stopped", "failed" or "elsewhere" (it comes in another tab); `thought` are the tokens of what the model thought first; `rate` is what the page counted, tokens a second, until the server's account comes;
 * `asked` is when, in milliseconds; `before` is the answer that it is to replace, until it has ended.
 */
export function newConversation(system) {
  const now = Date.now();
  return { id: identifier(), title: "", created: now, updated: now, system, since: 0, turns: [] };
}

export function newAnswer(model, before) {
  const tokens = new Tokens();
  const thought = new Tokens(tokens.legend);
  const told = { error: "", code: "", finish: null, usage: null, account: null, rate: null, asked: Date.now() };
  return { tokens, thought, model, state: "running", ...told, before };
}

/** Whether an answer has something that would be missed, however it ended. */
export function worth(answer) {
  return Boolean(answer?.tokens.text);
}

/** The name it was given, else its first question. */
export function wholeTitleOf(conversation) {
  return conversation.title || oneLine(conversation.turns[0]?.question ?? "") || "New conversation";
}

/** The same, short enough for a list. */
export function titleOf(conversation, most = TITLE_LENGTH) {
  const title = wholeTitleOf(conversation);
  return title.length > most ? `${title.slice(0, most).toWellFormed()}…` : title;
}

/** The saved text of each conversation, by its identifier. */
export function savedConversations() {
  try {
    const names = Object.keys(lasting()).filter((name) => name.startsWith(CONVERSATION));
    return new Map(names.map((name) => [name.slice(CONVERSATION.length), read(lasting, name)]));
  } catch {
    return new Map();
  }
}

/** The saved text of that conversation, null where there is none. */
export function savedConversation(id) {
  return read(lasting, CONVERSATION + id);
}

/** Returns whether the browser took it; false where its storage is full or forbidden. */
export function writeConversation(id, json) {
  return write(lasting, CONVERSATION + id, json);
}

export function forgetConversation(id) {
  write(lasting, CONVERSATION + id, null);
}

/**
 * The conversation of a saved text, or null where it cannot be read. `cut` is the state of an answer that had not ended: "elsewhere", or
 * "stopped"; then the answer that it was to replace stands there again.
 */
export function revived(json, cut = "stopped") {
  try {
    const { id, title, created, updated, system, since, turns } = JSON.parse(json);
    const texts = [id, title, system].every((value) => typeof value === "string");
    if (!texts || ![created, updated, since].every(Number.isFinite)) return null;
    return { id, title, created, updated, system, since, turns: turns.map((turn) => revivedTurn(turn, cut)) };
  } catch {
    return null;
  }
}

function revivedTurn({ question, answer }, cut) {
  if (typeof question !== "string") throw new TypeError("not a turn");
  return { question, answer: answer === null ? null : revivedAnswer(answer, cut) };
}

function revivedAnswer(answer, cut) {
  const { model, state, error, code, finish, usage, account, ...numbers } = answer;
  if (typeof model !== "string") throw new TypeError("not an answer");
  const ended = state !== "running" && state !== "elsewhere";
  const before = answer.before && !ended ? revivedAnswer(answer.before, "stopped") : null;
  if (before !== null && cut === "stopped") return before;
  const tokens = Tokens.from({ legend: answer.legend, ...answer.tokens }); // earlier versions kept it there
  const thought = Tokens.from({ ...(answer.thought ?? new Tokens()), legend: tokens.legend }); // earlier versions had none
  const [rate, asked] = [numbers.rate, numbers.asked].map((number) => (Number.isFinite(number) ? number : null));
  const told = { error: String(error ?? ""), code, finish, usage, account, rate, asked };
  return { tokens, thought, model, state: ended ? state : cut, ...told, before };
}

function readForTab(name) {
  return forgetful.get(name) ?? read(forTab, name);
}

function writeForTab(name, value) {
  if (write(forTab, name, value)) forgetful.delete(name);
  else forgetful.set(name, value);
}

function read(storage, name) {
  try {
    return storage().getItem(name);
  } catch {
    return null;
  }
}

/** null takes it away. */
function write(storage, name, value) {
  try {
    if (value === null) storage().removeItem(name);
    else storage().setItem(name, value);
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

export function identifier() {
  // crypto.randomUUID exists on secure origins only, and the page may be served over plain HTTP in a home network.
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
