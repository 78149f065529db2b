"""The other end of ``peers.process``: what every worker does but for its engine. Imports nothing of Hasten."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

# Mode, prompt, count and ``heard``, which is called as tokens arrive; returns the tokens.
Answer = Callable[[str, list[int], int, Callable[[int], None]], list[int]]
Losses = Callable[[list[int]], list[float]]


def settings() -> dict[str, Any]:
    """What the worker was started with."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found


def say(answer: dict[str, Any]) -> None:
    print("@@" + json.dumps(answer), flush=True)


def serve(about: dict[str, Any], answer: Answer, losses: Losses | None) -> None:
    """Answer lines until there are no more. An engine's exception is told; the process goes on."""
    say({"about": about})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "chunks" in question:
                say({"perplexity": _perplexity(question["chunks"], losses)})
            else:
                say(_timed(question, answer))
        except Exception as problem:
            say({"error": f"{type(problem).__name__}: {problem}"})


def _timed(question: dict[str, Any], answer: Answer) -> dict[str, Any]:
    heard: list[float] = []
    started = time.perf_counter()

    def hear(tokens: int) -> None:
        heard.extend([time.perf_counter()] * tokens)

    tokens = answer(question["mode"], question["prompt"], question["max_tokens"], hear)
    if not tokens or len(heard) < len(tokens):
        raise RuntimeError(f"{len(heard)} of {len(tokens)} tokens were heard of in time")
    ended, rounds = heard[len(tokens) - 1], len(set(heard[1 : len(tokens)]))
    lumps = question["mode"] == "plain" or rounds < len(tokens) - 1  # an engine may hand out a round's tokens one by one
    return {
        "tokens": tokens,
        "first_s": heard[0] - started,
        "decode_s": ended - heard[0],
        "rounds": rounds if lumps else 0,
    }


def _perplexity(chunks: list[list[int]], losses: Losses | None) -> float:
    if losses is None:
        raise NotImplementedError("this engine does not give the logits of a text")
    found = [loss for chunk in chunks for loss in losses(chunk)]
    return math.exp(sum(found) / len(found))
