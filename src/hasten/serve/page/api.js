/** The server, as its OpenAI-compatible interface shows it. Addresses are relative, so that a proxy may mount the page anywhere. */

import { eventData } from "./sse.js";

/** What went wrong, in one sentence for people. `status` is 0 where no answer came. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
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
 * @yields {{text: string, codes: string[], pieces: string[], finish: ?string, usage: ?object, account: ?object}}
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
  const { provenance = "", pieces = [], ...account } = chunk.hasten ?? {};
  return {
    text: choice?.delta?.content ?? "",
    codes: [...provenance], // one letter a token
    pieces,
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
    account: Object.keys(account).length > 0 ? account : null,
  };
}

function headers(key) {
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
  throw new ApiError(await refusal(answer), answer.status);
}

async function refusal(answer) {
  const wait = answer.headers.get("Retry-After");
  const later = wait ? ` Try again in ${wait} s.` : "";
  const body = await answer.json().catch(() => null); // a proxy's error page is no JSON; the status line must do
  const told = sentence(body?.error);
  return (told || `The server answered ${answer.status} ${answer.statusText}.`) + later;
}

function sentence(error) {
  return typeof error === "string" ? error : typeof error?.message === "string" ? error.message : "";
}
