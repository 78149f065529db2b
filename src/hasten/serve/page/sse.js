/** Server-sent events (the WHATWG standard, section 9.2) from a response body: the data of each event, in order. */

const MOST_EVENT = 8 * 1024 * 1024; // characters of one event; a server that never ends one must not fill the memory

/**
 * @param {ReadableStream<Uint8Array>} body
 * @yields {string} the data of one event; comments (keep-alives) and other fields are dropped
 */
export async function* eventData(body) {
  // A stream decoder: a character cut by the network is put together again; bytes that are no UTF-8 become U+FFFD.
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (waiting + value).split(/\r\n|\n|\r(?!$)/);
      waiting = lines.pop();
      if (waiting.length > MOST_EVENT) throw new Error("The server sent an event without end.");
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line.charAt(5) === " " ? 6 : 5));
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // an aborted stream refuses to be cancelled again; it is gone all the same
  }
}
