/**
 * Marks inside a paragraph: `code`, **strong**, *emphasis*, ~~struck~~, and characters behind a backslash; maths as LaTeX writes it stays
 * as it came, and so do addresses, which are links. Linear in the text's length.
 *
 * Nodes are {kind: "text" | "code" | "maths" | "link" | "strong" | "emphasis" | "struck", start, end, children?}; what lies between them is
 * markers. A link that reaches the text's end is `growing`: more text may make it longer.
 */

import { addressAt, begunScheme } from "./address_in_text.js";

const SPECIAL = /[\\`*_~$]|https?:\/\//g;
const MATHS = new Map([["\\(", "\\)"], ["\\[", "\\]"], ["$$", "$$"]]);
const KINDS = { "*": "emphasis", _: "emphasis", "**": "strong", __: "strong", "~~": "struck" };
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;
const FARTHEST = 2000; // characters to a closing marker; farther away the opening one is text
const DEEPEST = 4;

/**
 * @param {string} text
 * @param {number} start where to begin; nothing before it is looked at but one character
 * @returns {{nodes: object[], stable: number}} nodes up to the end, and the offset before which more text cannot change them
 */
export function inlineNodes(text, start = 0) {
  const scan = { text, openEnded: text.length, closers: new Map() };
  const nodes = scanned(scan, start, text.length, 0);
  const last = nodes.at(-1);
  let stable = Math.min(scan.openEnded, lastRun(text, start));
  if (last && last.kind !== "text" && last.after === text.length) stable = Math.min(stable, last.before);
  // A node is final as a whole or not at all; plain text can be cut anywhere.
  for (let index = nodes.length - 1; index >= 0 && nodes[index].after > stable; index -= 1) {
    const node = nodes[index];
    if (node.before < stable && (node.kind !== "text" || node.before !== node.start)) stable = node.before;
  }
  return { nodes, stable: Math.max(stable, start) };
}

/** Where markers, or the first letters of a link, begin that stand at the very end: they may grow, and what they do depends on what follows. */
function lastRun(text, start) {
  const marker = text.at(-1) ?? "x";
  let from = text.length;
  if (marker === "\\") from -= 1;
  else if ("`*_~$".includes(marker)) while (from > start && text[from - 1] === marker) from -= 1;
  else from -= begunScheme(text);
  return Math.max(from, start);
}

function scanned(scan, start, end, depth) {
  const nodes = [];
  let from = start;
  let at = nextSpecial(scan.text, start);
  const flush = (to) => to > from && nodes.push({ kind: "text", start: from, end: to, before: from, after: to });
  while (at < end) {
    const found = scan.text[at] === "h" ? link(scan, at, end) : (maths(scan, at, end) ?? marked(scan, at, end, depth));
    if (found.node) {
      flush(at);
      nodes.push(found.node);
      from = found.next;
    }
    at = nextSpecial(scan.text, found.next);
  }
  flush(end);
  return nodes;
}

function nextSpecial(text, start) {
  SPECIAL.lastIndex = start;
  return SPECIAL.exec(text)?.index ?? text.length;
}

/** An address: its characters are no marks. */
function link(scan, at, end) {
  const { text } = scan;
  if (/\w/.test(text[at - 1] ?? " ")) return { next: at + 1 }; // "xhttp://" is another scheme; words of other scripts need no space
  const address = addressAt(text, at, end);
  const growing = address.runEnd === text.length;
  if (growing) leftOpen(scan, at, end);
  if (address.end === at) return { next: at + 1 };
  return { node: { kind: "link", start: at, end: address.end, before: at, after: address.end, growing }, next: address.end };
}

/** From an opening mark of maths to its closing one, all of it as it came: a backslash there is no escape. */
function maths(scan, at, end) {
  const close = MATHS.get(scan.text.slice(at, at + 2));
  if (close === undefined) return null;
  const found = nearest(scan, close, at + 2, () => true);
  if (found < 0 || found + 2 > end) {
    leftOpen(scan, at, end);
    return null;
  }
  return { node: { kind: "maths", start: at, end: found + 2, before: at, after: found + 2 }, next: found + 2 };
}

function marked(scan, at, end, depth) {
  return scan.text[at] === "\\" ? escaped(scan.text, at, end) : spanned(scan, at, end, depth);
}

/** A backslash vanishes before punctuation: the character behind it is text. */
function escaped(text, at, end) {
  if (at + 1 >= end || !ESCAPABLE.test(text[at + 1])) return { next: at + 1 };
  return { node: { kind: "text", start: at + 1, end: at + 2, before: at, after: at + 2 }, next: at + 2 };
}

function spanned(scan, at, end, depth) {
  const { text } = scan;
  const run = runLength(text, at);
  if (text[at] === "`") return coded(scan, at, end, run);
  const width = run >= 2 ? 2 : 1;
  if (text[at] === "$" || (text[at] === "~" && run !== 2)) return { next: at + run };
  const marker = text[at].repeat(width);
  if (depth >= DEEPEST || run > 3 || !opens(text, at, width, end)) return { next: at + run };
  const close = closing(scan, marker, at + width, end);
  if (close < 0) return { next: at + run };
  const children = scanned(scan, at + width, close, depth + 1);
  return { node: { kind: KINDS[marker], start: at + width, end: close, children, before: at, after: close + width }, next: close + width };
}

function coded(scan, at, end, run) {
  const close = nearest(scan, "`".repeat(run), at + run, (found) => runLength(scan.text, found) === run && scan.text[found - 1] !== "`");
  if (close < 0 || close + run > end) {
    leftOpen(scan, at, end);
    return { next: at + run };
  }
  // One space on both sides only keeps a backtick apart from the fence.
  const spaced = close - at - run > 2 && scan.text[at + run] === " " && scan.text[close - 1] === " ";
  const node = { kind: "code", start: at + run + (spaced ? 1 : 0), end: close - (spaced ? 1 : 0), before: at, after: close + run };
  return { node, next: close + run };
}

function opens(text, at, width, end) {
  if (at + width >= end) return false;
  const before = text[at - 1] ?? " ";
  return !/\s/.test(text[at + width]) && !(text[at] === "_" && WORD.test(before));
}

function closing(scan, marker, start, end) {
  const { text } = scan;
  const closes = (found) => {
    const run = runLength(text, found);
    const whole = run === marker.length || run === 3;
    const after = text[found + run] ?? " ";
    return whole && text[found - 1] !== marker[0] && !/[\s\\]/.test(text[found - 1]) && !(marker[0] === "_" && WORD.test(after));
  };
  const found = nearest(scan, marker, start, closes);
  if (found < 0 || found >= end) {
    leftOpen(scan, start - marker.length, end);
    return -1;
  }
  const run = Math.min(runLength(text, found), end - found);
  const close = found + run - marker.length; // of three markers at the end, the outer ones are ours
  return close > start ? close : -1;
}

/** Where the first marker that closes begins at or after `start`, -1 where none does within reach. Found once, kept for others. */
function nearest(scan, marker, start, closes) {
  let found = scan.closers.get(marker) ?? -1;
  if (found < start) {
    found = scan.text.indexOf(marker, start);
    while (found >= 0 && !closes(found)) found = scan.text.indexOf(marker, found + runLength(scan.text, found));
    if (found < 0) found = Infinity;
    scan.closers.set(marker, found);
  }
  return found - start > FARTHEST ? -1 : found;
}

/** An opening marker without its partner: text that comes may bring it, if it is near enough and nothing closed around it. */
function leftOpen(scan, at, end) {
  if (end === scan.text.length && end - at <= FARTHEST + 4) scan.openEnded = Math.min(scan.openEnded, at);
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}
