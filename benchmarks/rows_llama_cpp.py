"""Steps of llama.cpp behind a context, timed for ``rows_against.py``, which runs this in that engine's own environment: an object
of settings as the argument, a number of rows a line, seconds a line back."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    from llama_cpp import Llama  # there is none in ours

    asked: dict[str, Any] = json.loads(sys.argv[1])
    context, text, threads = asked["context"], asked["text"], asked["threads"]
    model = Llama(asked["gguf"], n_ctx=len(text), n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False)
    model.eval(text[:context])
    print("ready", flush=True)
    for line in sys.stdin:
        model._ctx.kv_cache_seq_rm(-1, context, -1)
        model._batch.set_batch(batch=text[context : context + int(line)], n_past=context, logits_all=True)
        started = time.perf_counter()
        model._ctx.decode(model._batch)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
