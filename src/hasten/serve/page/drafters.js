/** Who guesses: names, what each guesses from, and the mark (a colour and a line) that its tokens wear. */

/** The model's own tokens stay plain. */
export const MODEL = "model";

const ABOUT = {
  model: "Written by the model itself; nobody guessed it.",
  suffix: "Copied from where the same words stood before.",
  lm: "Guessed by a smaller model.",
  speculator: "Guessed from the model's own state.",
  recycling: "What the model found likely here before.",
  prediction: "From the text that the caller expects.",
  trie: "From earlier answers.",
  memory: "From a memory built beforehand.",
  hierarchy: "From several memories, best first.",
};

// Marks 1 to 9 of answer.css, in Okabe and Ito's order; a name keeps its mark everywhere. Others share mark 8.
const MARKS = { model: 0, suffix: 1, lm: 2, recycling: 3, prediction: 4, speculator: 5, memory: 6, hierarchy: 7, trie: 9 };
const OTHERS = 8;

export function markOf(name) {
  return MARKS[name] ?? OTHERS;
}

export function about(name) {
  return ABOUT[name] ?? "A drafter of another package.";
}
