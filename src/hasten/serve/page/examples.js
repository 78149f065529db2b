/** Questions to begin with, chosen for what drafters can do with them: much to copy, something to reason, plain prose. */

import { element } from "./dom.js";

const EXAMPLES = [
  {
    title: "Turn a list into JSON",
    prompt:
      "Write these as a JSON array of objects with the fields name, born and field:\n\nAda Lovelace, 1815, mathematics\nGrace Hopper, 1906, computing\nEmmy Noether, 1882, algebra\nRosalind Franklin, 1920, chemistry\nLise Meitner, 1878, physics",
  },
  { title: "Change some code", prompt: "Add type hints and a docstring to this function and show all of it:\n\ndef merge(a, b):\n    out = []\n    i = j = 0\n    while i < len(a) and j < len(b):\n        if a[i] <= b[j]:\n            out.append(a[i])\n            i += 1\n        else:\n            out.append(b[j])\n            j += 1\n    return out + a[i:] + b[j:]" },
  { title: "Explain something", prompt: "Why is the sky blue, and why are sunsets red? Explain it to a curious ten-year-old." },
  { title: "Work it out", prompt: "A train leaves at 9:40 and arrives at 13:05 after two stops of 12 minutes each. How long was it moving? Show each step." },
];

/** @param {Element} list @param {(prompt: string) => void} ask */
export function showExamples(list, ask) {
  for (const { title, prompt } of EXAMPLES) {
    const name = element("strong", {}, title);
    const button = element("button", { type: "button", class: "example", onclick: () => ask(prompt) }, name, element("span", {}, prompt));
    list.append(element("li", {}, button));
  }
}
