/** The only ways this page makes elements: never from markup, so text can never become more than text. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with properties (`class`, `on…` listeners, attributes) and children (nodes or text).
 * @param {string} tag
 * @param {Object<string, any>} [properties]
 * @param {...(Node|string|null|undefined)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An icon of the sprite in index.html, hidden from screen readers: the button around it has the name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with an icon, and its name beside it or as a tooltip. */
export function iconButton(name, label, onclick, { text = false, ...properties } = {}) {
  const named = text ? {} : { "aria-label": label, title: label };
  return element("button", { type: "button", class: "quiet", onclick, ...named, ...properties }, icon(name), text ? label : null);
}

/** Whether the key belongs to an input method that is still composing; Safari says so by the code 229 alone. */
export function composing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** Gives the focus back where what had it is gone. On touch devices not to the question field, which would bring up the keyboard. */
export function holdFocus(field) {
  const { activeElement } = document;
  if (activeElement !== document.body && activeElement?.checkVisibility()) return;
  if (window.matchMedia("(hover: none)").matches) byId("transcript").focus();
  else field.focus();
}

/** The element of that id; the page is broken without it. */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`index.html has no element '${id}'`);
  return found;
}

// Marks that change the direction of what follows them: they must never reach beyond the text that brought them.
export const DIRECTION_MARKS = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;
const ALL_DIRECTION_MARKS = new RegExp(DIRECTION_MARKS.source, "g");

/** One line for titles and notices: no line breaks, no control or direction marks. */
export function oneLine(text) {
  // eslint-disable-next-line no-control-regex
  return text.replace(ALL_DIRECTION_MARKS, "").replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\s]+/g, " ").trim();
}
