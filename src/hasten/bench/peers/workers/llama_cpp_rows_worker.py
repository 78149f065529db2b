"""Steps of so many rows behind a text, through llama-cpp-python. Runs in that engine's own environment."""

from __future__ import annotations

import json
import sys
import time

from llama_cpp import Llama
from talk import say, settings

ASKED = settings()
CONTEXT, TEXT, THREADS = ASKED["context"], ASKED["text"], ASKED["threads"]


def seconds(model: Llama, rows: int) -> float:
    """Of the decode call alone, the logits of every row computed; what came behind the context before is forgotten."""
    model._ctx.kv_cache_seq_rm(-1, CONTEXT, -1)
    model._batch.set_batch(batch=TEXT[CONTEXT : CONTEXT + rows], n_past=CONTEXT, logits_all=True)
    started = time.perf_counter()
    model._ctx.decode(model._batch)
    return time.perf_counter() - started


def main() -> None:
    model = Llama(ASKED["gguf"], n_ctx=len(TEXT), n_threads=THREADS, n_threads_batch=THREADS, logits_all=True, verbose=False)
    model.eval(TEXT[:CONTEXT])
    say({"about": {}})
    for line in sys.stdin:
        say({"seconds": seconds(model, json.loads(line)["rows"])})


main()
