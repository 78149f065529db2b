/** Who guesses: names, what each guesses from, and the mark (a colour and a line) that its tokens wear. */

/** The model's own tokens stay plain. */
export const MODEL_CODE = "m";

const ABOUT = {
  model: "Written by the model itself; nobody guessed it.",
  suffix: "Copied from where the same words stood before.",
  lm: "Guessed by a smaller model.",
  recycling: "What the model found likely here before.",
  prediction: "From the text that the caller expects.",
  trie: "From earlier answers.",
  memory: "From a memory built beforehand.",
  hierarchy: "From several memories, best first.",
};

// Marks 1 to 8 of answer.css, in Okabe and Ito's order; a name keeps its mark everywhere. Others share what is left.
const MARKS = { model: 0, suffix: 1, lm: 2, recycling: 3, prediction: 4, trie: 5, memory: 6, hierarchy: 7 };
const OTHERS = 8;

let legend = { m: "model" };

/** Takes the server's {code: name}. */
export function learnLegend(told) {
  legend = { ...legend, ...told };
}

export function nameOf(code) {
  return legend[code] ?? code;
}

export function markOf(code) {
  return MARKS[nameOf(code)] ?? OTHERS;
}

export function about(code) {
  return ABOUT[nameOf(code)] ?? "A drafter of another package.";
}

export function codeOf(name) {
  return Object.keys(legend).find((code) => legend[code] === name) ?? name;
}
