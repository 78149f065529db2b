/** The page: shows one of the conversations, runs the answers, and connects the parts. */

import { addressed, setAddress } from "./address.js";
import { Announcements } from "./announcements.js";
import { copyText, installCodeCopy } from "./clipboard.js";
import { Composer } from "./composer.js";
import { Conversations } from "./conversations.js";
import { byId, composing, holdFocus, oneLine } from "./dom.js";
import { showSpeed } from "./drafts_panel.js";
import { showExamples } from "./examples.js";
import { Exchange, leaveOutOldest } from "./exchange.js";
import { download } from "./export.js";
import { Look } from "./look.js";
import { Models } from "./models.js";
import { sidePanels } from "./panels.js";
import { Question } from "./question.js";
import { SettingsForm } from "./settings_form.js";
import { installShortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { Gauge } from "./speed.js";
import * as storage from "./storage.js";
import { installTabs } from "./tabs.js";
import { Toast } from "./toast.js";
import { installTokenTip } from "./token_tip.js";
import { Transcript } from "./transcript.js";
import { accountLine } from "./turns.js";
import { WaysBack } from "./way_back.js";

const SAVE_EVERY_MS = 1000;
const REFUSED = new Set([401, 403]);
const CHANGED_SERVER = new Set([0, 404]); // gone, or it does not know the model: it may have come back with another one

class Page {
  constructor() {
    this.settings = storage.loadSettings();
    this.exchanges = new Map(); // the answers that are coming, by conversation
    this.conversations = new Conversations((each) => this.exchanges.has(each));
    this.current = storage.newConversation(this.settings.system);
    this.refused = null; // the conversation and the turn that failed for want of a key
    this.toldUnsaved = new WeakSet();
    this.toast = new Toast();
    this.look = new Look(this.settings, this.toast);
    this.live = new Announcements(byId("live"));
    this.gauge = new Gauge();
    this.transcript = new Transcript((action, turn) => this.act(action, turn), () => this.drawn());
    this.sidebar = new Sidebar({
      open: (each) => this.open(each),
      rename: (each, title) => this.rename(each, title),
      exportIt: (each) => download(each),
      remove: (each) => this.remove(each),
    });
    this.composer = new Composer({
      send: (text) => this.send(text),
      stop: () => this.exchange?.stop(),
      leave: () => this.question.edit(null),
      typed: () => this.question.keep(),
    });
    this.question = new Question(this.composer, (turn, text) => this.waysBack.left(this.current, turn, text));
    this.waysBack = new WaysBack(this.toast, this.conversations, {
      stop: (each) => this.exchanges.get(each)?.stop(),
      save: (each) => this.save(each),
      open: (each) => this.open(each),
      edit: (each, turn, text) => {
        if (each !== this.current) this.open(each);
        this.question.edit(turn, text);
      },
    });
    this.models = new Models(this.settings, { failed: (problem) => this.unlisted(problem), listed: () => this.listed(), chosen: () => this.showSpeed() });
    this.form = new SettingsForm(this.settings, (name) => this.changed(name), (text) => this.setSystem(text));
    this.panels = sidePanels();
    const { unreadable } = this.conversations;
    if (unreadable > 0) this.toast.say(`${unreadable} saved conversation${unreadable > 1 ? "s" : ""} could not be read.`);
    this.#wire();
    showExamples(byId("examples"), (prompt) => this.ask(prompt));
    this.arrive();
    this.models.load();
  }

  /** The answer that is coming in the conversation that is shown, or null. */
  get exchange() {
    return this.exchanges.get(this.current) ?? null;
  }

  #wire() {
    byId("new").addEventListener("click", () => this.begin());
    byId("open-shortcuts").addEventListener("click", () => byId("shortcuts").showModal());
    installCodeCopy(this.toast, byId("turns"));
    // Without this the way there would take the conversation out of the address.
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      this.composer.focus();
    });
    installTokenTip(byId("tip"), (token) => this.transcript.ownerOf(token));
    const last = () => this.current.turns.at(-1);
    installShortcuts(byId("shortcut-list"), {
      new: () => this.begin(),
      question: () => this.composer.focus(),
      again: () => last() && this.act("again", last()),
      copy: () => last()?.answer && this.act("copy-answer", last()),
      marks: () => this.look.toggleMarks(),
      conversations: () => this.panels.side.toggle(),
      drafts: () => this.panels.drafts.toggle(),
      settings: () => this.form.open(),
      shortcuts: () => byId("shortcuts").showModal(),
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && !composing(event) && this.escape());
    installTabs(this.conversations, {
      settings: () => this.takeSettings(),
      removed: (each) => this.#deleted(each),
      replaced: (each) => each === this.current && this.#replaced(),
      copied: (each) => {
        this.save(each);
        this.#copied(each);
      },
      heard: () => {
        this.toast.review();
        this.showList();
      },
    });
    window.addEventListener("popstate", () => addressed() !== null && this.arrive());
    // Else the fetch that dies with the page would be kept as a failure.
    window.addEventListener("beforeunload", () => this.exchanges.forEach((each) => each.leave()));
    window.addEventListener("pagehide", () => this.exchanges.forEach((each) => this.#keep(each)));
  }

  unlisted(problem) {
    if (REFUSED.has(problem.status)) this.form.askForKey(problem);
    else this.toast.offer(problem.message, "Try again", () => this.models.load(), { subject: this.models });
  }

  /** The server told its models, so it takes the key. */
  listed() {
    const { refused } = this;
    this.refused = null;
    this.toast.withdraw(this.models);
    this.form.keyTaken();
    if (refused === null) return;
    const { conversation, turn } = refused;
    const stands = () => this.conversations.includes(conversation) && conversation.turns.at(-1) === turn;
    const again = () => {
      if (conversation !== this.current) this.open(conversation);
      this.act("again", turn);
    };
    if (stands()) this.toast.offer("The server takes the key.", "Ask again", again, { subject: conversation, stands });
  }

  // Conversations

  /** Opens what the address names, else the newest conversation. */
  arrive() {
    const id = addressed();
    const fresh = () => (this.current.turns.length === 0 ? this.current : storage.newConversation(this.settings.system));
    const named = id === "" ? fresh() : this.conversations.find(id);
    this.open(named ?? this.conversations.list[0] ?? fresh(), false);
  }

  begin() {
    if (this.current.turns.length > 0) this.open(storage.newConversation(this.settings.system));
    if (this.panels.side.over) this.panels.side.set(false);
    this.composer.focus();
  }

  /** @param {object} conversation @param {boolean} step whether the way back leads to the one before */
  open(conversation, step = true) {
    this.current = conversation;
    this.question.open(conversation);
    this.composer.setBusy(this.exchange !== null);
    this.live.begin(this.exchange?.answer.tokens.text.length);
    this.form.system.value = conversation.system;
    this.showTurns();
    this.transcript.follow();
    this.gauge.clearTape();
    if (this.panels.side.over) this.panels.side.set(false);
    setAddress(conversation, step);
    this.showList();
    this.showSpeed();
  }

  rename(conversation, title) {
    if (title !== null && this.conversations.includes(conversation)) {
      conversation.title = oneLine(title);
      this.save(conversation);
    }
    this.showList();
  }

  remove(conversation) {
    this.conversations.remove(conversation);
    this.#left(conversation, false);
  }

  /** It is off the list: its answer ends, another one is shown, and it can be brought back. */
  #left(conversation, elsewhere) {
    this.exchanges.get(conversation)?.stop();
    if (conversation === this.current) this.open(this.conversations.list[0] ?? storage.newConversation(this.settings.system), false);
    this.showList();
    holdFocus(this.composer);
    this.waysBack.deleted(conversation, elsewhere);
  }

  save(conversation) {
    const exchange = this.exchanges.get(conversation);
    if (exchange) exchange.saved = performance.now();
    const outcome = this.conversations.save(conversation);
    this.toast.review();
    if (outcome === "gone") this.#deleted(conversation);
    if (outcome === "copied") this.#copied(conversation);
    if (outcome !== "full" || this.toldUnsaved.has(conversation)) return;
    this.toldUnsaved.add(conversation);
    this.toast.say("This browser's storage is full or closed to this page: the conversation will be lost with the tab. Export it, or delete others.");
  }

  /** Another tab deleted it. What this tab does not show goes without a word. */
  #deleted(conversation) {
    if (conversation === this.current) this.#left(conversation, true);
    else this.exchanges.get(conversation)?.stop();
  }

  /** Another tab went on with the conversation that is shown. */
  #replaced() {
    const { current } = this;
    this.question.review();
    if (document.activeElement !== this.form.system) this.form.system.value = current.system;
    this.showTurns();
    this.showSpeed();
  }

  #copied(conversation) {
    if (conversation === this.current) {
      setAddress(conversation, false);
      this.question.keep();
    }
    this.toast.say(`Another tab went on with the same conversation; what was said in this one is kept as “${storage.titleOf(conversation)}”.`);
    this.showList();
  }

  showTurns() {
    this.transcript.show(this.current.turns, this.settings.formatted);
  }

  showList() {
    this.conversations.sort();
    this.sidebar.show(this.conversations.list, this.current, (each) => this.exchanges.has(each));
    const title = storage.titleOf(this.current);
    byId("title").textContent = title;
    document.title = this.current.turns.length > 0 ? `${oneLine(title)} · Hasten` : "Hasten";
  }

  // Questions and answers

  /** Sends what stands in the question field: as the next question, or instead of the one that is being changed. */
  send(question) {
    const { current } = this;
    const { editing } = this.question;
    const before = { turns: [...current.turns], since: current.since };
    const from = editing === null ? current.turns.length : current.turns.indexOf(editing);
    this.question.sent();
    current.turns.splice(from);
    current.since = Math.min(current.since, from);
    this.ask(question);
    if (editing === null) return;
    this.waysBack.replaced(current, "The changed question replaced the old one and what followed it.", "Undo", before);
  }

  ask(question) {
    if (this.exchange !== null) return;
    const turn = { question, answer: null };
    if (!this.conversations.includes(this.current)) this.question.forgetNew();
    this.current.turns.push(turn);
    this.question.keep();
    this.answer(turn);
  }

  /** Asks for the answer of that turn, the conversation's last. */
  async answer(turn) {
    const conversation = this.current;
    const exchange = new Exchange(conversation, turn, this.settings);
    this.exchanges.set(conversation, exchange);
    conversation.updated = Date.now();
    this.save(conversation);
    this.toast.withdraw(conversation);
    if (exchange.replaced !== null) {
      const old = { turns: [...conversation.turns.slice(0, -1), { ...turn, answer: exchange.replaced }] };
      this.waysBack.replaced(conversation, "Answering again.", "Keep the old answer", old);
    }
    this.showTurns();
    this.transcript.follow();
    setAddress(conversation, false);
    this.gauge.clearTape();
    this.composer.setBusy(this.exchange !== null);
    this.showList();
    holdFocus(this.composer);
    this.live.begin();
    this.live.say("The answer is coming.");
    const problem = await exchange.run(storage.loadKey(), (codes) => this.came(exchange, codes));
    this.ended(exchange, problem);
  }

  came(exchange, codes) {
    if (exchange === this.exchange) {
      if (codes.length > 0) this.gauge.step(codes.map((code) => exchange.answer.tokens.ownerOf(code)));
      this.transcript.schedule();
    }
    if (performance.now() - exchange.saved > SAVE_EVERY_MS) this.#keep(exchange);
  }

  /** Saves what has come, but where the conversation was deleted: that would bring it back. */
  #keep({ conversation }) {
    if (this.conversations.includes(conversation)) this.save(conversation);
  }

  ended(exchange, problem) {
    const { conversation, turn, answer, replaced } = exchange;
    this.exchanges.delete(conversation);
    let told = answer.error || (answer.state === "stopped" ? "Stopped." : accountLine(answer));
    if (replaced !== null && (problem || exchange.left || answer.tokens.text === "")) {
      turn.answer = replaced;
      told = problem ? `${problem.message} The old answer is kept.` : "The old answer is kept.";
      this.toast.withdraw(conversation);
      this.toast.say(told);
    }
    this.#keep(exchange);
    this.composer.setBusy(this.exchange !== null);
    this.showList();
    if (conversation === this.current) {
      this.showTurns();
      this.transcript.draw();
      this.live.finish(answer.tokens.text, told);
    }
    if (problem && REFUSED.has(problem.status)) {
      this.refused = { conversation, turn };
      this.form.askForKey(problem);
    }
    if (problem && CHANGED_SERVER.has(problem.status)) this.models.load(true);
  }

  act(action, turn) {
    if (action === "copy-answer") copyText(this.toast, turn.answer.tokens.text, "Answer copied.");
    else if (action === "copy-question") copyText(this.toast, turn.question, "Question copied.");
    else if (action === "new") {
      this.begin();
      this.question.add(turn.question); // it was too long for the old conversation, and may fit a new one
    }
    else if (this.exchange !== null) this.toast.say("An answer is coming here: wait for it, or stop it.");
    else if (action === "edit") this.question.edit(turn);
    else if (turn !== this.current.turns.at(-1)) return;
    else if (action === "again" || leaveOutOldest(this.current)) this.answer(turn);
    else this.toast.say("No older turn is sent with this question; it is too long by itself.");
  }

  drawn() {
    this.showSpeed();
    if (this.exchange !== null) this.live.hear(this.exchange.answer);
  }

  showSpeed() {
    showSpeed(this.gauge, this.current.turns, this.exchange, this.conversations.list, this.settings.model);
  }

  // Settings and the rest

  changed(name) {
    if (name === "key") this.models.load();
    else storage.saveSettings({ [name]: this.settings[name] });
    if (name === "formatted") this.showTurns();
    this.look.show();
  }

  /** Another tab changed the settings. The model stays: two tabs may well ask two models. */
  takeSettings() {
    const { model, ...others } = storage.loadSettings();
    const changed = Object.keys(others).filter((name) => others[name] !== this.settings[name]);
    Object.assign(this.settings, others);
    this.form.refresh(changed);
    this.showTurns();
    this.look.show();
  }

  setSystem(text) {
    this.current.system = text;
    this.settings.system = text;
    if (this.current.turns.length > 0) this.save(this.current);
    storage.saveSettings({ system: text });
  }

  escape() {
    const over = Object.values(this.panels).find((panel) => panel.over);
    if (document.querySelector("dialog[open]")) return;
    if (over) over.set(false);
    else if (this.exchange !== null) this.exchange.stop();
    else this.question.edit(null);
  }
}

new Page();
