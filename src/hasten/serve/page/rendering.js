/** Draws a growing text: finished blocks are never touched again, and of the last one only what more text can change. */

import { readBlock } from "./blocks.js";
import { element, iconButton } from "./dom.js";
import { inlineNodes } from "./inline.js";

const MOST_DEPTH = 8; // of lists in lists

/**
 * @param {Element} host gets the blocks
 * @param {import("./tokens.js").Tokens} tokens the text; it may grow between updates, never change
 * @param {boolean} formatted false: one block with every character as it came
 */
export class Rendering {
  constructor(host, tokens, formatted) {
    this.host = host;
    this.tokens = tokens;
    this.formatted = formatted;
    this.closedEnd = 0;
    this.afterRow = false; // whether a table's row ends there
    this.open = null;
    this.lists = [];
    this.table = null;
  }

  /** Draws what is new. `finished`: no more text will come. */
  update(finished) {
    if (!this.formatted) {
      this.#plain();
      return;
    }
    const { text } = this.tokens;
    for (;;) {
      const block = readBlock(text, this.closedEnd, finished, this.afterRow);
      if (block === null) break;
      this.#draw(block, text);
      if (!block.closed) break;
      this.closedEnd = block.end;
      this.afterRow = block.kind === "row";
      this.open = null;
    }
  }

  #plain() {
    this.open ??= { target: this.host.appendChild(element("p", { class: "verbatim" })), drawn: 0 };
    this.tokens.paint(this.open.target, this.open.drawn, this.tokens.text.length);
    this.open.drawn = this.tokens.text.length;
  }

  #draw(block, text) {
    const fits = this.open === null || (sameShape(this.open.block, block) && this.open.content.fits(block.segments));
    if (!fits) this.#undo();
    this.open ??= this.#place(block);
    this.open.block = block;
    if (block.kind === "row") this.#drawRow(block, text);
    else this.#drawContent(this.open, block, text);
  }

  /** The open block turned out to be of another kind: take it away, with what was made for it alone. */
  #undo() {
    this.open.outer.remove();
    if (this.open.madeFor) this.open.madeFor.remove();
    Object.assign(this, this.open.before);
    this.open = null;
  }

  #place(block) {
    const before = { lists: [...this.lists], table: this.table };
    const { outer, target } = SHAPES[block.kind](block);
    const state = { block, outer, target, content: new Content(), drawn: 0, kept: 0, before, madeFor: null };
    if (block.kind !== "row" || block.start !== this.closedEnd) this.table = null;
    if (block.kind === "item") this.#placeItem(block, state);
    else if (block.kind === "row") this.#placeRow(state);
    else this.#parent(block).append(outer);
    return state;
  }

  /** Blocks that are indented below a list item belong to it. */
  #parent(block) {
    while (this.lists.length > 0 && this.lists.at(-1).content > block.indent + 1) this.lists.pop();
    return this.lists.at(-1)?.item ?? this.host;
  }

  #placeItem(block, state) {
    while (this.lists.length > 0 && this.lists.at(-1).indent > block.indent) this.lists.pop();
    const inner = this.lists.at(-1);
    const nested = inner && block.indent >= inner.content && this.lists.length < MOST_DEPTH;
    if (inner && !nested && inner.ordered === block.ordered) {
      inner.list.append(state.outer);
      this.lists[this.lists.length - 1] = { ...inner, item: state.outer, content: block.content };
      return;
    }
    if (inner && !nested) this.lists.pop();
    const list = element(block.ordered ? "ol" : "ul", { start: block.ordered && block.number !== 1 ? block.number : null });
    (this.lists.at(-1)?.item ?? this.host).append(list);
    list.append(state.outer);
    state.madeFor = list;
    this.lists.push({ list, item: state.outer, indent: block.indent, content: block.content, ordered: block.ordered });
  }

  #placeRow(state) {
    if (this.table === null) {
      this.lists = [];
      const body = element("tbody");
      const frame = element("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, element("table", {}, body));
      this.host.append(frame);
      state.madeFor = frame;
      this.table = { frame, body, aligned: [] };
    }
    this.table.body.append(state.outer);
  }

  #drawRow(block, text) {
    const { outer } = this.open;
    const first = outer.previousElementSibling === null;
    outer.replaceChildren();
    outer.hidden = block.divider;
    if (block.divider && block.closed) this.#align(block.aligned);
    block.segments.forEach(([start, end], index) => {
      const cell = element(first ? "th" : "td", { scope: first ? "col" : null, class: alignClass(this.table.aligned[index]) });
      outer.append(cell);
      this.#inline(cell, new Content([[start, end]], text), 0, block.closed);
    });
    if (block.closed) setDirection(this.table.frame, outer.textContent);
  }

  /** The divider says how the columns stand, those of the head above it too. */
  #align(aligned) {
    this.table.aligned = aligned;
    const head = this.table.body.firstElementChild;
    [...head.children].forEach((cell, index) => aligned[index] && cell.classList.add(alignClass(aligned[index])));
  }

  #drawContent(state, block, text) {
    const { content, target } = state;
    content.take(block.segments, text);
    if (block.kind === "item") setDirection(state.outer.parentElement, content.text);
    if (block.kind === "quote") setDirection(state.outer, content.text);
    if (block.kind === "code") {
      content.paint(this.tokens, target, state.drawn, content.text.length);
      state.drawn = content.text.length;
      return;
    }
    while (target.childNodes.length > state.kept) target.lastChild.remove();
    state.drawn = this.#inline(target, content, state.drawn, block.closed, (count) => (state.kept = count));
  }

  /** Draws from content offset `from`; returns the offset that is final, after telling how many children lie before it. */
  #inline(target, content, from, closed, keep = () => {}) {
    const { nodes, stable } = inlineNodes(content.text, from);
    this.#nodes(target, content, nodes, from, stable);
    keep(target.childNodes.length);
    const shown = closed ? nodes : nodes.map((node) => (node.growing ? { ...node, kind: "text" } : node)); // half an address leads astray
    this.#nodes(target, content, shown, stable, content.text.length);
    return stable;
  }

  #nodes(target, content, nodes, from, to) {
    for (const node of nodes) {
      if (node.kind === "text") {
        content.paint(this.tokens, target, Math.max(node.start, from), Math.min(node.end, to));
      } else if (node.before >= from && node.before < to) {
        const inner = node.kind === "link" ? linkTo(content.text.slice(node.start, node.end)) : element(...TAGS[node.kind]);
        if (node.children) this.#nodes(inner, content, node.children, node.start, node.end);
        else content.paint(this.tokens, inner, node.start, node.end);
        target.append(inner);
      }
    }
  }
}

const TAGS = { code: ["code"], maths: ["span", { class: "maths" }], strong: ["strong"], emphasis: ["em"], struck: ["s"] };

/** The address is also what is read, so a link cannot lead elsewhere than it says; inline.js finds none but http and https. */
function linkTo(address) {
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" });
}

const SHAPES = {
  paragraph: () => whole(element("p")),
  // All of one rank below the page's own two: a model that begins with ### would leave ranks out.
  heading: (block) => whole(element("h3", { class: `level-${block.level}` })),
  quote: () => within(element("blockquote"), element("p")),
  item: ({ task }) => {
    const shape = within(element("li", { class: task ? "task" : null }), element("p"));
    if (task) shape.outer.prepend(element("span", { class: "box", role: "img", "aria-label": task === "x" ? "done" : "to do" }, task === "x" ? "☑" : "☐"));
    return shape;
  },
  rule: () => whole(element("hr")),
  row: () => whole(element("tr")),
  code: (block) => {
    const code = element("code");
    const copy = iconButton("copy", "Copy code", null, { "data-copy": "code" });
    const head = element("div", { class: "code-head" }, element("span", {}, block.language.slice(0, 40) || "text"), copy);
    const body = element("pre", { tabindex: "0", role: "group", "aria-label": "Code" }, code);
    return { outer: element("div", { class: "code" }, head, body), target: code };
  },
};

function alignClass(side) {
  return side ? `align-${side}` : null;
}

const LETTER = /\p{L}/u;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** The first letter tells on which side numbers, bars and columns begin; CSS alone turns only the lines of text. */
function setDirection(box, text) {
  if (box.dir !== "") return;
  const letter = LETTER.exec(text)?.[0];
  if (letter) box.dir = RIGHT_TO_LEFT.test(letter) ? "rtl" : "ltr";
}

function whole(made) {
  return { outer: made, target: made };
}

function within(outer, inner) {
  outer.append(inner);
  return { outer, target: inner };
}

function sameShape(one, other) {
  return ["kind", "start", "level", "ordered", "number", "indent", "content", "task", "language"].every((name) => one[name] === other[name]);
}

/** The content of a block without its markers, and the way back from its offsets to those of the whole text. */
class Content {
  constructor(segments = [], text = "") {
    this.text = "";
    this.starts = []; // of each segment, in the content
    this.sources = []; // and in the whole text
    this.take(segments, text);
  }

  /** Whether `segments` only go on from those it has. They do not where a line that grew became the start of another block. */
  fits(segments) {
    const last = this.starts.length - 1;
    return last < 0 || (segments.length > last && segments[last][1] >= this.sources[last] + this.text.length - this.starts[last]);
  }

  /** Takes the segments of a text that has grown: those it has are the same, but the last one may be longer. */
  take(segments, text) {
    const known = this.starts.length - 1;
    for (let index = Math.max(0, known); index < segments.length; index += 1) {
      const [start, end] = segments[index];
      const have = index === known ? this.text.length - this.starts[index] : 0;
      if (index > known) this.starts.push(this.text.length);
      if (have === 0) this.sources[index] = start; // behind a marker that may have grown: it has no text yet
      this.text += text.slice(start + have, end);
    }
  }

  paint(tokens, parent, from, to) {
    for (let index = this.#segmentAt(from); from < to && index < this.starts.length; index += 1) {
      const stop = Math.min(this.starts[index + 1] ?? this.text.length, to);
      const shift = this.sources[index] - this.starts[index];
      tokens.paint(parent, from + shift, stop + shift);
      from = stop;
    }
  }

  #segmentAt(offset) {
    let low = 0;
    let high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
