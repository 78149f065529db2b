"""A worker like those of ``bench.peers``, with an engine that does what a test wants."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src" / "hasten" / "bench" / "peers" / "workers"))
from talk import serve, settings

HOW = settings()["how"]
if HOW == "does not load":
    sys.exit("no such model")
print("a library says hello")


def answer(mode: str, prompt: list[int], count: int, heard: Callable[[int], None]) -> list[int]:
    if HOW == "crashes" and count > 8:
        os.kill(os.getpid(), signal.SIGSEGV)
    if HOW == "raises" and count > 8:
        raise ValueError("no")
    out = []
    while len(out) < count:
        time.sleep(0.002)
        more = min(2, count - len(out)) if out else 1
        out += [prompt[0] + (HOW == "other text" and len(out) > 3)] * more
        heard(0 if HOW == "unheard" else more)
    return out[: count - 1] if HOW == "short" and count > 8 else out


def losses(chunk: list[int]) -> list[float]:
    return [0.5] * (len(chunk) - 1)


serve({"engine": "test"}, answer, losses if HOW != "no logits" else None)
