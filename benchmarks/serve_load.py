"""Load on a running server: many requests in parallel, some cancelled, some malformed; every good answer has to be what the same
request says alone.

    hasten serve -m smollm2-135m --max-queue 512 &
    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --requests 2000 --parallel 32 --out load.json

Ends with status 1 when an answer differs, an error is not the one expected, blocks are not free at the end, or the server's memory
(read from /proc where --pid is given) grew by more than 5 % over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

WORDS = (
    "the",
    "a",
    "river",
    "stone",
    "light",
    "walks",
    "over",
    "under",
    "seven",
    "green",
    "def",
    "return",
    "while",
    "data",
    "cloud",
)
MALFORMED: list[tuple[bytes, int]] = [
    (b"{", 400),
    (b'{"messages": []}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": -3}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "unknown": 1}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "model": "none-such"}', 404),
    (b"[" * 5000, 400),
]


def body_of(seed: int, longest: int) -> dict[str, Any]:
    """A request that depends on its number only."""
    dice = random.Random(seed)
    words = " ".join(dice.choices(WORDS, k=dice.randint(3, 120)))
    return {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": dice.randint(4, longest),
        "temperature": dice.choice([0.0, 0.7, 1.0]),
        "seed": seed,
        "stream": dice.random() < 0.5,
        "speculation": dice.choice(["auto", "auto", "on", "off"]),
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any], stop_after: int | None = None) -> str:
    """The answer's text. With ``stop_after`` the client goes away after that many chunks."""
    if not body["stream"]:
        answer = await client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])
    text, chunks = "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
            chunks += 1
            if stop_after is not None and chunks >= stop_after:
                return text
    return text


async def metric(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


def resident(pid: int | None) -> int | None:
    if pid is None:
        return None
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096


async def load(options: argparse.Namespace) -> dict[str, Any]:
    dice = random.Random(options.seed)
    kinds = dice.choices(["good", "cancelled", "malformed"], weights=[85, 10, 5], k=options.requests)
    bodies = [body_of(options.seed * 1_000_003 + at % options.distinct, options.longest) for at in range(options.requests)]
    answers: dict[int, str] = {}
    problems: list[str] = []
    memory: list[int] = []
    counts: Counter[str] = Counter()
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    limits = httpx.Limits(max_connections=options.parallel, max_keepalive_connections=options.parallel)
    async with httpx.AsyncClient(base_url=options.url, timeout=600, limits=limits, headers=headers) as client:
        waiting = iter(range(options.requests))

        async def one(at: int) -> None:
            kind, body = kinds[at], bodies[at]
            if kind == "malformed":
                content, expected = MALFORMED[at % len(MALFORMED)]
                answer = await client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
                if answer.status_code != expected:
                    problems.append(f"malformed request {at}: status {answer.status_code}, expected {expected}")
            elif kind == "cancelled":
                await ask(client, {**body, "stream": True, "max_tokens": options.longest * 4}, stop_after=1 + at % 5)
            else:
                answers[at] = await ask(client, body)
            counts[kind] += 1
            if (found := resident(options.pid)) is not None:
                memory.append(found)

        async def work() -> None:
            for at in waiting:
                try:
                    await one(at)
                except Exception as problem:
                    problems.append(f"{kinds[at]} request {at}: {problem!r}")

        written = await metric(client, "hasten:generation_tokens_total")
        began = time.monotonic()
        await asyncio.gather(*(work() for _ in range(options.parallel)))
        seconds = time.monotonic() - began
        problems += await left_behind(client)
        written = await metric(client, "hasten:generation_tokens_total") - written
        compared, differing = await compare(client, {at: (bodies[at], text) for at, text in answers.items()}, options.distinct)
    return {"tokens": int(written), **report(counts, problems + differing, memory, seconds, compared)}


async def left_behind(client: httpx.AsyncClient) -> list[str]:
    """What the server still holds once nothing runs."""
    for _ in range(200):
        if not await metric(client, "hasten:num_requests_running") + await metric(client, "hasten:num_requests_waiting"):
            break
        await asyncio.sleep(0.1)
    return [] if await metric(client, "hasten:kv_cache_usage_perc") == 0.0 else ["blocks are not free at the end"]


async def compare(
    client: httpx.AsyncClient, answers: dict[int, tuple[dict[str, Any], str]], distinct: int
) -> tuple[int, list[str]]:
    """Ask each different request alone: how many there were, and which answers under load were others."""
    alone: dict[int, str] = {}
    differing: list[str] = []
    for at, (body, text) in sorted(answers.items()):
        number = at % distinct
        if number not in alone:
            alone[number] = await ask(client, body)
        if text != alone[number]:
            differing.append(f"request {at} under load says other than alone")
    return len(alone), differing


def report(counts: Counter[str], problems: list[str], memory: list[int], seconds: float, compared: int) -> dict[str, Any]:
    growth = None
    if len(memory) >= 20:
        half, tenth = len(memory) // 2, max(1, len(memory) // 10)
        growth = max(memory[-tenth:]) / max(memory[half : half + tenth]) - 1.0
        if growth > 0.05:
            problems.append(f"memory grew by {growth:.1%} over the second half")
    return {
        "requests": dict(counts),
        "seconds": round(seconds, 1),
        "compared_alone": compared,
        "memory_growth": growth,
        "problems": problems[:50],
        "problem_count": len(problems),
    }


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--url", default="http://127.0.0.1:8000")
    add("--key", default="")
    add("--requests", type=int, default=2000)
    add("--parallel", type=int, default=32)
    add("--distinct", type=int, default=400, help="different requests; each answer is compared with its request alone")
    add("--longest", type=int, default=64, help="most tokens of an answer")
    add("--seed", type=int, default=1)
    add("--pid", type=int, help="the server's process, to watch its memory")
    add("--out", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = options_of(arguments)
    found = asyncio.run(load(options))
    text = json.dumps(found, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if found["problem_count"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
