/** Web addresses that stand in a text. Only http and https count, and nothing that would lead elsewhere than it seems to. */

const LONGEST = 2000; // characters
// No quotes, brackets, bars, backslashes or marks that nobody sees: those stand around an address, or hide where it leads.
const RUN = /^https?:\/\/[\p{L}\p{N}\p{M}\-._~:/?#@!$&'()*+,;=%]*/u;
const AROUND = /[.,;:!?'*_~]+$/;
const HOST = /^https?:\/\/[a-z0-9][a-z0-9.-]*(?::\d{1,5})?/i;
// What may follow the host: a path, a sentence's mark, or the next word where words have no spaces between them. Not the "@" of a name and
// not other letters: to stop there would give another host than the one that is meant.
const AFTER_HOST = /^(?:$|[/?#,;!'()*]|\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}|\p{Script=Hangul})/u;
const SCHEMES = ["https://", "http://"];

/**
 * The address at offset `at`, where its scheme begins, before `end`.
 * @returns {{end: number, runEnd: number}} where it ends, `at` where it is none; and where the characters end that decided this
 */
export function addressAt(text, at, end) {
  const [run] = RUN.exec(text.slice(at, Math.min(end, at + LONGEST + 1)));
  const found = run.length > LONGEST ? "" : addressOf(withoutOuterBracket(run).replace(AROUND, ""));
  return { end: URL.canParse(found) ? at + found.length : at, runEnd: at + run.length };
}

/** How many characters at the end of the text may be the beginning of a scheme. */
export function begunScheme(text) {
  for (let length = SCHEMES[0].length - 1; length > 0; length -= 1) {
    if (SCHEMES.some((scheme) => text.endsWith(scheme.slice(0, length)))) return length;
  }
  return 0;
}

function addressOf(run) {
  const host = HOST.exec(run)?.[0] ?? "";
  const rest = run.slice(host.length);
  if (!AFTER_HOST.test(rest)) return "";
  return /^[/?#]/.test(rest) ? run : host;
}

/** Up to a closing bracket that was not opened within: it belongs to the words around. */
function withoutOuterBracket(run) {
  let depth = 0;
  for (let at = 0; at < run.length; at += 1) {
    if (run[at] === "(") depth += 1;
    if (run[at] === ")") depth -= 1;
    if (depth < 0) return run.slice(0, at);
  }
  return run;
}
