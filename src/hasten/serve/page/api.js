/** The server, as its OpenAI-compatible interface shows it. Addresses are relative, so that a proxy may mount the page anywhere. */

import { eventData } from "./sse.js";

/** What went wrong, in one sentence for people. `status` is 0 where no answer came, `code` the server's word for it. */
export class ApiError extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Names of the models that the server offers. */
export async function listModels(key) {
  const answer = await ask("v1/models", { headers: headers(key) });
  const body = await answer.json();
  return body.data.map((model) => model.id);
}

/**
 * Streams one answer.
 * @param {object} request a body of /v1/chat/completions without its stream fields
 * @param {string} key the API key, or ""
 * @param {AbortSignal} signal
 * @yields {{text: string, thought: ?string, codes: string[], pieces: string[], finish: ?string, usage: ?object, account: ?object, legend: ?object}}
 */
export async function* streamChat(request, key, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true }, provenance: true };
  const answer = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  try {
    for await (const data of eventData(answer.body)) {
      if (data === "[DONE]") return;
      yield event(JSON.parse(data));
    }
  } catch (problem) {
    if (problem instanceof ApiError || signal.aborted) throw problem;
    throw new ApiError(`The connection broke before the answer was complete (${problem.message}).`);
  }
  throw new ApiError("The connection ended before the answer was complete.");
}

function event(chunk) {
  if (chunk.error) throw new ApiError(sentence(chunk.error) || "The server gave up on this answer.");
  const choice = chunk.choices?.[0];
  const { provenance = "", pieces = [], legend = null, ...account } = chunk.hasten ?? {};
  return {
    text: choice?.delta?.content ?? "",
    thought: choice?.delta?.reasoning_content ?? null, // then codes and pieces are its own
    codes: [...provenance], // one letter a token
    pieces,
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
    account: Object.keys(account).length > 0 ? account : null,
    legend,
  };
}

function headers(key) {
  const strange = /[^\x21-\x7e]/.exec(key)?.[0];
  // The browser would refuse to send it, with an error like that of a server that is gone.
  if (strange) throw new ApiError(`The API key has a character that no key can have (“${strange}”). Copy it once more.`, 401);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), { credentials: "omit", cache: "no-store", ...options });
  } catch (problem) {
    if (options.signal?.aborted) throw problem;
    throw new ApiError("The server cannot be reached. Is hasten serve still running?");
  }
  if (answer.ok) return answer;
  throw await refusal(answer);
}

async function refusal(answer) {
  const wait = answer.headers.get("Retry-After");
  const later = wait ? ` Try again in ${wait} s.` : "";
  const body = await answer.json().catch(() => null); // a proxy's error page is no JSON; the status line must do
  const told = sentence(body?.error);
  const message = (told || `The server answered ${answer.status} ${answer.statusText}.`) + later;
  return new ApiError(message, answer.status, body?.error?.code ?? "");
}

function sentence(error) {
  return typeof error === "string" ? error : typeof error?.message === "string" ? error.message : "";
}
