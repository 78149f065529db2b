/**
 * Cuts a text into blocks of a small Markdown: code fences, headings, list items, quotes, table rows, rules, paragraphs.
 * No HTML, no images: those stay the characters they are.
 *
 * A block is {kind, start, end, segments, closed, indent, …}. `segments` are the [start, end) pieces of the text that are its
 * content, without its markers; `closed` says that more text cannot change it, which is so once a complete line after it
 * decided where it ends. So a growing text is cut again from its last open block only.
 */

// The look-aheads keep a long line of fence characters from being tried at every length.
const FENCE = /^( *)(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])(?:[ \t]+|$)/;
const QUOTE = /^ {0,3}>[ \t]?/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const ROW = /^ {0,3}\|(?:.*\|[ \t]*)?$/;
const BEGUN_ROW = /^ {0,3}\|/;
const DIVIDER = /^[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*$/;
const BARE_DIVIDER = /^ {0,3}:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+$/; // of a table without bars at its sides
const TASK = /^\[([ xX])\][ \t]+/;
const DISPLAY = [["\\[", "\\]"], ["$$", "$$"]]; // maths that has lines of its own
const MOST_CELLS = 64; // of a table's line; the last one takes the rest
const BLANK = /^\s*$/;

/**
 * The block that begins at or after `start`, or null where only blank lines are left. `finished`: no more text will come; `afterRow`: what
 * ends at `start` is a table's row.
 */
export function readBlock(text, start, finished, afterRow = false) {
  let line = readLine(text, start);
  while (line !== null && BLANK.test(line.text)) line = readLine(text, line.next);
  if (line === null) return null;
  const goesOn = afterRow && line.start === start && line.text.includes("|");
  const kind = goesOn ? "row" : kindOf(text, line, finished);
  return READERS[kind](text, line, finished);
}

function kindOf(whole, line, finished) {
  const { text, complete } = line;
  if (FENCE.test(text)) return "code";
  if (HEADING.test(text)) return "heading";
  if (RULE.test(text)) return "rule";
  if (ITEM.test(text)) return "item";
  if (QUOTE.test(text)) return "quote";
  if (ROW.test(text) || (!complete && !finished && BEGUN_ROW.test(text))) return "row";
  if (text.includes("|") && isBareHead(whole, line, finished)) return "row";
  return "paragraph";
}

/** Whether the line below says that this one is the head of a table. */
function isBareHead(text, line, finished) {
  const below = readLine(text, line.next);
  return below !== null && (below.complete || finished) && BARE_DIVIDER.test(below.text);
}

const READERS = { code, heading, rule, item, quote, row, paragraph };

/** {text, start, end, next, complete} of the line at `start`; `next` is where the following one begins. */
function readLine(text, start) {
  if (start >= text.length) return null;
  const found = text.indexOf("\n", start);
  const complete = found >= 0;
  const end = complete ? found : text.length;
  return { text: text.slice(start, end), start, end, next: complete ? end + 1 : end, complete };
}

function indentOf(line) {
  return line.text.length - line.text.trimStart().length;
}

function code(text, first, finished) {
  const [, spaces, fence, info] = FENCE.exec(first.text);
  const language = info.trim().split(/\s/)[0];
  const segments = [];
  let line = readLine(text, first.next);
  for (; line !== null; line = readLine(text, line.next)) {
    if (isClosing(line.text, fence)) {
      return block("code", first, line, segments, line.complete || finished, { language });
    }
    const cut = Math.min(spaces.length, indentOf(line));
    // The last, incomplete line may yet become the closing fence.
    if (line.complete || finished || !couldClose(line.text, fence)) segments.push([line.start + cut, line.next]);
  }
  return { kind: "code", start: first.start, end: text.length, segments, closed: finished, indent: spaces.length, language };
}

function isClosing(line, fence) {
  const bare = line.trim();
  return bare.length >= fence.length && bare === fence[0].repeat(bare.length);
}

function couldClose(line, fence) {
  const bare = line.trim();
  return bare === fence[0].repeat(bare.length);
}

function heading(text, line, finished) {
  const [marker, hashes] = HEADING.exec(line.text);
  const content = [[line.start + marker.length, line.end]];
  return block("heading", line, line, content, line.complete || finished, { level: hashes.length });
}

function rule(text, line, finished) {
  return block("rule", line, line, [], line.complete || finished, {});
}

function item(text, first, finished) {
  const [marker, , bullet, number] = ITEM.exec(first.text);
  const more = { ordered: bullet === undefined, number: Number(number ?? 0), content: marker.length };
  const [box, task] = TASK.exec(first.text.slice(marker.length)) ?? ["", undefined];
  more.task = task?.toLowerCase();
  const segments = [[first.start + marker.length + box.length, first.next]];
  return gather(text, "item", first, segments, finished, indentOf, more);
}

function quote(text, first, finished) {
  const content = (line) => QUOTE.exec(line.text)?.[0].length ?? 0;
  return gather(text, "quote", first, [[first.start + content(first), first.next]], finished, content, {}, "quote");
}

function paragraph(text, first, finished) {
  return gather(text, "paragraph", first, [[first.start + indentOf(first), first.next]], finished, indentOf, {});
}

/** The block goes on over lines of text, and over lines of the kind `own`, until a blank line or another kind of block. */
function gather(text, kind, first, segments, finished, content, more, own = "paragraph") {
  let last = first;
  let maths = openMaths(first.text);
  for (let line = readLine(text, first.next); ; line = readLine(text, line.next)) {
    if (line === null) return block(kind, first, last, segments, finished, more);
    const next = maths ? own : kindOf(text, line, finished);
    if (BLANK.test(line.text) || (next !== "paragraph" && next !== own)) {
      return block(kind, first, last, segments, line.complete || finished, more);
    }
    segments.push([line.start + (maths ? 0 : content(line)), line.next]);
    last = line;
    maths = maths ? !line.text.includes(maths) && maths : openMaths(line.text);
  }
}

/** What closes the maths that begins a line and is not closed in it; false where none does. A minus in it begins no list. */
function openMaths(line) {
  const bare = line.trim();
  const [open, close] = DISPLAY.find(([mark]) => bare.startsWith(mark)) ?? [];
  return open !== undefined && !bare.includes(close, open.length) && close;
}

function row(text, line, finished) {
  const divider = DIVIDER.test(line.text) || BARE_DIVIDER.test(line.text);
  const cells = cellsOf(line);
  const aligned = divider ? cells.map(([start, end]) => alignment(text.slice(start, end))) : null;
  return block("row", line, line, divider ? [] : cells, line.complete || finished, { divider, aligned });
}

function alignment(dashes) {
  if (dashes.endsWith(":")) return dashes.startsWith(":") ? "center" : "right";
  return dashes.startsWith(":") ? "left" : null;
}

/** Ranges between the bars of a table's line, which needs none at its sides; a bar behind a backslash belongs to its cell, and the last bar may not be there yet. */
function cellsOf(line) {
  const bars = line.text.trimStart().startsWith("|") ? [] : [-1];
  for (let at = 0; at < line.text.length; at += 1) {
    if (line.text[at] === "\\") at += 1;
    else if (line.text[at] === "|" && bars.length <= MOST_CELLS) bars.push(at);
  }
  if (bars.length > MOST_CELLS) bars[MOST_CELLS] = line.text.length;
  if (bars.length === 0 || !BLANK.test(line.text.slice(bars.at(-1) + 1))) bars.push(line.text.length);
  return bars.slice(0, -1).map((bar, index) => trimmed(line, bar + 1, bars[index + 1]));
}

function trimmed(line, from, to) {
  const inner = line.text.slice(from, to);
  const start = from + inner.length - inner.trimStart().length;
  return [line.start + start, line.start + Math.max(start, from + inner.trimEnd().length)];
}

function block(kind, first, last, segments, closed, more) {
  return { kind, start: first.start, end: last.next, segments, closed, indent: indentOf(first), ...more };
}
