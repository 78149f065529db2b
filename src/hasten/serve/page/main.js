/** The page: holds the conversations, runs one answer at a time, and connects the parts. */

import { Announcements } from "./announcements.js";
import { listModels } from "./api.js";
import { Composer } from "./composer.js";
import { byId, element, oneLine } from "./dom.js";
import { about, learnLegend, nameOf } from "./drafters.js";
import { showDrafters } from "./drafts_panel.js";
import { EXAMPLES } from "./examples.js";
import { Exchange } from "./exchange.js";
import { Panel } from "./panels.js";
import { SettingsForm } from "./settings_form.js";
import { installShortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { Gauge } from "./speed.js";
import * as storage from "./storage.js";
import { Toast } from "./toast.js";
import { installTokenTip } from "./token_tip.js";
import { Transcript } from "./transcript.js";
import { accountLine } from "./turns.js";

const SAVE_EVERY_MS = 1000;
const THEMES = ["system", "light", "dark"];
const THEME_NAMES = { system: "as the system has it", light: "light", dark: "dark" };
const REFUSED = new Set([401, 403]);

class Page {
  constructor() {
    this.settings = storage.loadSettings();
    const { conversations, unreadable } = storage.loadConversations();
    this.conversations = conversations;
    this.current = storage.newConversation(this.settings.system);
    this.exchange = null;
    this.editing = null;
    this.saved = 0;
    this.toast = new Toast();
    this.live = new Announcements(byId("live"));
    this.gauge = new Gauge(gaugeParts());
    this.transcript = new Transcript((action, turn) => this.act(action, turn), () => this.drawn());
    this.sidebar = new Sidebar({
      open: (each) => this.open(each),
      rename: (each, title) => this.rename(each, title),
      exportIt: (each) => download(each),
      remove: (each) => this.remove(each),
    });
    this.composer = new Composer({ send: (text) => this.send(text), stop: () => this.stop(), leave: () => this.edit(null) });
    this.form = new SettingsForm(this.settings, (name) => this.changed(name), (text) => this.setSystem(text));
    this.panels = this.#panels();
    for (const each of conversations) for (const { answer } of each.turns) learnLegend(answer?.account?.legend);
    if (unreadable > 0) this.toast.say(`${unreadable} saved conversation${unreadable > 1 ? "s" : ""} could not be read.`);
    this.#wire();
    this.#examples();
    this.open(conversations[0] ?? this.current);
    this.loadModels();
  }

  #panels() {
    const scrim = () => (byId("scrim").hidden = !Object.values(this.panels ?? {}).some((panel) => panel.over));
    const side = new Panel("conversations", "toggle-conversations", "(min-width: 56rem)", scrim);
    const drafts = new Panel("drafts", "toggle-drafts", "(min-width: 78rem)", scrim);
    return { side, drafts };
  }

  #wire() {
    byId("new").addEventListener("click", () => this.begin());
    byId("marks").addEventListener("click", () => this.toggleMarks());
    byId("theme").addEventListener("click", () => this.nextTheme());
    byId("speed-strip").addEventListener("click", () => this.panels.drafts.toggle());
    byId("model").addEventListener("change", (event) => {
      this.settings.model = event.target.value;
      this.saveSettings();
    });
    byId("open-shortcuts").addEventListener("click", () => byId("shortcuts").showModal());
    byId("turns").addEventListener("click", (event) => {
      const button = event.target.closest("[data-copy]");
      if (button) this.copy(button.closest(".code").querySelector("code").textContent, "Code copied.");
    });
    installTokenTip(byId("tip"), (code) => `${nameOf(code)} · ${about(code)}`);
    installShortcuts(byId("shortcut-list"), {
      new: () => this.begin(),
      question: () => this.composer.focus(),
      again: () => this.current.turns.length > 0 && this.act("again", this.current.turns.at(-1)),
      copy: () => this.current.turns.at(-1)?.answer && this.act("copy-answer", this.current.turns.at(-1)),
      marks: () => this.toggleMarks(),
      conversations: () => this.panels.side.toggle(),
      drafts: () => this.panels.drafts.toggle(),
      settings: () => this.form.open(),
      shortcuts: () => byId("shortcuts").showModal(),
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && this.escape());
    // Else the fetch that dies with the page would be kept as a failure.
    window.addEventListener("beforeunload", () => this.stop());
    window.addEventListener("pagehide", () => this.exchange && this.save(this.exchange.conversation));
    this.showTheme();
    this.showMarks();
  }

  #examples() {
    for (const { title, prompt } of EXAMPLES) {
      const name = element("strong", {}, title);
      const button = element("button", { type: "button", class: "example", onclick: () => this.send(prompt) }, name, element("span", {}, prompt));
      byId("examples").append(element("li", {}, button));
    }
  }

  async loadModels() {
    const select = byId("model");
    try {
      const names = await listModels(storage.loadKey());
      select.replaceChildren(...names.map((name) => element("option", { value: name }, oneLine(name))));
      select.disabled = names.length === 0;
      if (!names.includes(this.settings.model)) this.settings.model = names[0] ?? "";
      select.value = this.settings.model;
    } catch (problem) {
      if (REFUSED.has(problem.status)) this.form.askForKey(problem.message);
      else this.toast.say(problem.message, { name: "Try again", run: () => this.loadModels() });
    }
  }

  // Conversations

  begin() {
    this.open(storage.newConversation(this.settings.system));
    this.composer.focus();
  }

  open(conversation) {
    this.current = conversation;
    this.edit(null);
    this.form.system.value = conversation.system;
    this.transcript.show(conversation.turns, this.settings.formatted);
    this.gauge.clearTape();
    if (this.panels?.side.over) this.panels.side.set(false);
    this.showList();
    this.showSpeed();
  }

  rename(conversation, title) {
    if (title !== null) {
      conversation.title = oneLine(title);
      this.save(conversation);
    }
    this.showList();
  }

  remove(conversation) {
    if (this.exchange?.conversation === conversation) this.stop();
    this.conversations = this.conversations.filter((each) => each !== conversation);
    storage.forgetConversation(conversation.id);
    if (conversation === this.current) this.open(this.conversations[0] ?? storage.newConversation(this.settings.system));
    this.showList();
    const back = () => {
      this.save(conversation);
      this.open(conversation);
    };
    this.toast.say(`Deleted “${storage.titleOf(conversation)}”.`, { name: "Undo", run: back });
  }

  save(conversation) {
    this.saved = performance.now();
    if (!this.conversations.includes(conversation)) this.conversations.unshift(conversation);
    if (storage.saveConversation(conversation)) return;
    this.toast.say("This browser's storage is full or closed to this page: the conversation will be lost with the tab. Export it, or delete others.");
  }

  showList() {
    this.conversations.sort((one, other) => other.updated - one.updated);
    this.sidebar.show(this.conversations, this.current.id, this.exchange?.conversation.id);
    const title = storage.titleOf(this.current);
    byId("title").textContent = title;
    document.title = this.current.turns.length > 0 ? `${oneLine(title)} · Hasten` : "Hasten";
  }

  // Questions and answers

  send(question) {
    if (this.exchange !== null) return;
    const turn = { question, answer: null };
    const { turns } = this.current;
    if (this.editing !== null) turns.splice(turns.indexOf(this.editing));
    turns.push(turn);
    this.composer.clear();
    this.answer(turn);
  }

  stop() {
    this.exchange?.stop();
  }

  /** Asks for the answer of that turn, the conversation's last. */
  async answer(turn) {
    const conversation = this.current;
    const exchange = new Exchange(conversation, turn, this.settings);
    this.exchange = exchange;
    conversation.updated = Date.now();
    this.edit(null);
    this.save(conversation);
    this.transcript.show(conversation.turns, this.settings.formatted);
    this.gauge.clearTape();
    this.composer.setBusy(true);
    this.showList();
    this.live.begin();
    this.live.say("The answer is coming.");
    const problem = await exchange.run(storage.loadKey(), (codes) => this.came(exchange, codes));
    this.ended(exchange, problem);
  }

  came(exchange, codes) {
    if (exchange.conversation === this.current) {
      if (codes.length > 0) this.gauge.step(codes);
      this.transcript.schedule();
    }
    if (performance.now() - this.saved > SAVE_EVERY_MS) this.save(exchange.conversation);
  }

  ended(exchange, problem) {
    const { conversation, answer } = exchange;
    this.exchange = null;
    if (this.conversations.includes(conversation)) this.save(conversation);
    this.composer.setBusy(false);
    this.showList();
    if (conversation === this.current) {
      this.transcript.draw();
      this.live.finish(answer.tokens.text, answer.error || (answer.state === "stopped" ? "Stopped." : accountLine(answer)));
    }
    if (problem && REFUSED.has(problem.status)) this.form.askForKey(problem.message);
  }

  act(action, turn) {
    if (action === "copy-answer") this.copy(turn.answer.tokens.text, "Answer copied.");
    if (action === "copy-question") this.copy(turn.question, "Question copied.");
    if (this.exchange !== null) return;
    if (action === "again" && turn === this.current.turns.at(-1)) this.answer(turn);
    if (action === "edit") this.edit(turn);
  }

  /** Begins to change an earlier question, or with null leaves that. */
  edit(turn) {
    if (turn !== null) this.composer.fill(turn.question);
    else if (this.editing !== null) this.composer.clear();
    this.editing = turn;
    this.composer.setEditing(turn !== null);
  }

  drawn() {
    this.showSpeed();
    if (this.exchange?.conversation === this.current) this.live.hear(this.exchange.answer.tokens.text);
  }

  showSpeed() {
    const running = this.exchange?.conversation === this.current ? this.exchange : null;
    const answer = running?.answer ?? this.current.turns.findLast((turn) => turn.answer?.account)?.answer ?? null;
    const plain = answer?.account?.plain_tokens_per_second ?? this.plainOf(answer?.model);
    this.gauge.show(running ? running.rate : (answer?.account?.tokens_per_second ?? null), plain, running !== null);
    showDrafters(byId("drafter-list"), answer);
    const { exact, precision } = answer?.account ?? {};
    byId("promise").textContent = promiseOf(exact, precision);
  }

  /** What plain decoding last made with that model on this machine, from the newest account that says so. */
  plainOf(model) {
    for (const { turns } of this.conversations) {
      const told = turns.findLast(({ answer }) => answer?.model === model && answer.account?.plain_tokens_per_second);
      if (told) return told.answer.account.plain_tokens_per_second;
    }
    return null;
  }

  // Settings and the rest

  changed(name) {
    if (name === "key") this.loadModels();
    if (name === "formatted") this.transcript.show(this.current.turns, this.settings.formatted);
    if (name === "marks") this.showMarks();
    this.saveSettings();
  }

  setSystem(text) {
    this.current.system = text;
    this.settings.system = text;
    if (this.current.turns.length > 0) this.save(this.current);
    this.saveSettings();
  }

  saveSettings() {
    storage.saveSettings(this.settings);
  }

  toggleMarks() {
    this.settings.marks = !this.settings.marks;
    this.changed("marks");
    this.toast.say(this.settings.marks ? "Tokens wear the mark of who guessed them." : "Marks are off.");
  }

  showMarks() {
    document.documentElement.dataset.marks = this.settings.marks ? "on" : "off";
    byId("marks").setAttribute("aria-pressed", String(this.settings.marks));
  }

  nextTheme() {
    this.settings.theme = THEMES[(THEMES.indexOf(this.settings.theme) + 1) % THEMES.length];
    this.showTheme();
    this.saveSettings();
  }

  showTheme() {
    const { theme } = this.settings;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").setAttribute("aria-label", `Theme: ${THEME_NAMES[theme]}`);
    byId("theme").title = `Theme: ${THEME_NAMES[theme]}`;
  }

  escape() {
    const over = Object.values(this.panels).find((panel) => panel.over);
    if (document.querySelector("dialog[open]")) return;
    if (over) over.set(false);
    else if (this.exchange !== null) this.stop();
    else if (this.editing !== null) this.edit(null);
  }

  async copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
      this.toast.say(done);
    } catch {
      this.toast.say("This browser does not let the page copy (it wants HTTPS or localhost); select the text instead.");
    }
  }
}

function promiseOf(exact, precision) {
  const bits = precision ? `Precision ${precision}. ` : "";
  if (exact === true) return `${bits}Exact: token by token what plain decoding would have given.`;
  if (exact === false) return `${bits}Not exact: approximate speculation was asked for.`;
  return "";
}

function gaugeParts() {
  const ids = { box: "speed", rate: "rate", note: "rate-note", meter: "meter", small: "small-rate", smallMeter: "small-meter", tape: "tape" };
  return Object.fromEntries(Object.entries(ids).map(([name, id]) => [name, byId(id)]));
}

function download(conversation) {
  const body = new Blob([JSON.stringify(storage.exported(conversation), null, 2)], { type: "application/json" });
  const address = URL.createObjectURL(body);
  const name = storage.titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
  element("a", { href: address, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

new Page();
