"""Requests with megabytes of text: refused after little work, counted in pieces, a few at a time, and none holds up the end."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hasten.core.config import EngineConfig
from hasten.core.errors import PromptTooLong
from hasten.model import tokenizer as tokenizing
from hasten.model.long_texts import PIECE, read_within_bounds
from hasten.model.tokenizer import Tokenizer
from hasten.serve import basics
from hasten.serve.body import LARGE_BODY, body_size
from hasten.serve.errors import ApiError
from hasten.serve.limits import Limits
from hasten.serve.models import Host, Models
from hasten.serve.server import HUGE_AT_ONCE, HUGE_BODY, LARGE_AT_ONCE, Server
from serving_here import serving_here

LONG = "7 8 " * 60_000
MESSAGES = [{"role": "user", "content": LONG}]


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the texts that tokenizers read at once."""
    found: list[int] = []
    read = tokenizing._ids

    def noted(backend: Any, text: str) -> list[int]:
        found.append(len(text))
        return read(backend, text)

    monkeypatch.setattr(tokenizing, "_ids", noted)
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": LONG, "max_tokens": 1}),
        ("/v1/completions", {"prompt": ["short", LONG], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}),
        ("/v1/responses", {"input": LONG}),
        ("/v1/messages", {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}),
        ("/v1/embeddings", {"input": ["short", LONG]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_context_cannot_hold_is_refused_after_little_work(
    tiny_model: Path, lengths: list[int], path: str, body: dict[str, Any]
) -> None:
    async def scene() -> Any:
        async with serving_here(f"tiny={tiny_model}") as client:
            lengths.clear()
            return await client.post(path, json=body)

    answer = asyncio.run(scene())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith("Prompt is too long: more than ")
    assert " tokens > 2047 maximum; shorten it" in error["message"]
    assert error.get("code") == (None if path == "/v1/messages" else "context_length_exceeded")
    assert max(lengths) <= PIECE
    assert sum(lengths) < 2 * PIECE


def test_a_prediction_that_cannot_fit_is_called_one(tiny_model: Path) -> None:
    async def scene() -> Any:
        async with serving_here(f"tiny={tiny_model}") as client:
            prediction = {"type": "content", "content": LONG}
            body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "prediction": prediction}
            return await client.post("/v1/chat/completions", json=body)

    answer = asyncio.run(scene())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("The prediction has more than ")


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens", "/v1/responses/input_tokens"])
def test_what_is_only_counted_is_read_in_pieces(tiny_model: Path, lengths: list[int], path: str) -> None:
    async def scene() -> tuple[int, Any]:
        async with serving_here(f"tiny={tiny_model}") as client:
            short = {"/tokenize": {"prompt": "7 8 " * 60}, "/v1/responses/input_tokens": {"input": "7 8 " * 60}}
            long = {"/tokenize": {"prompt": LONG}, "/v1/responses/input_tokens": {"input": LONG}}
            asked = {"model": "tiny", "messages": MESSAGES}
            few = await client.post(path, json=short.get(path, asked | {"messages": [{"role": "user", "content": "7 8 " * 60}]}))
            lengths.clear()
            many = await client.post(path, json=long.get(path, asked))
            return few.json(), many.json()

    few, many = asyncio.run(scene())
    name = "count" if path == "/tokenize" else "input_tokens"
    assert many[name] - few[name] == 4 * (60_000 - 60)  # type: ignore[index]
    assert max(lengths) <= PIECE
    if path == "/tokenize":
        assert many["tokens"][:200] == few["tokens"][:200]  # type: ignore[index]
        assert len(many["tokens"]) == many["count"]


def test_strings_of_tokens_are_made_off_the_loop(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    spell = Tokenizer.token_text
    monkeypatch.setattr(basics, "PART", 3)

    def noted(self: Tokenizer, token: int) -> str:
        threads.add(threading.get_ident())
        return spell(self, token)

    async def scene() -> Any:
        async with serving_here(f"tiny={tiny_model}") as client:
            monkeypatch.setattr(Tokenizer, "token_text", noted)
            return [
                (await client.post("/tokenize", json={"prompt": text, "return_token_strs": strings})).json()
                for text, strings in (('one "two"\n u', True), ("", True), ("one", False))
            ]

    told, nothing, plain = asyncio.run(scene())
    assert "".join(told["token_strs"]) == 'one "two"\n u'
    assert len(told["token_strs"]) == len(told["tokens"]) == told["count"] > 3
    assert (nothing["tokens"], nothing["token_strs"], nothing["max_model_len"]) == ([], [], 2048)
    assert set(plain) == {"count", "max_model_len", "tokens"}
    assert threads
    assert threading.get_ident() not in threads


class Busy:
    """Work that lasts until it is let go, and how much of it there is at once."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.running = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.free.wait(20)
        with self._lock:
            self.running -= 1
        return "done"


class Short:
    context_length = 100


LLM: Any = Short()


def plain_server(**limits: Any) -> Server:
    return Server(Models([Host("tiny", EngineConfig())]), Limits(**limits))


@pytest.mark.parametrize(
    ("size", "refuse", "most"),
    [(LARGE_BODY + 1, True, LARGE_AT_ONCE), (LARGE_BODY + 1, False, LARGE_AT_ONCE), (HUGE_BODY + 1, False, HUGE_AT_ONCE)],
)
def test_a_few_large_ones_at_a_time_and_small_ones_pass(size: int, refuse: bool, most: int) -> None:
    async def scene() -> None:
        server, busy = plain_server(), Busy()

        async def large() -> str:
            body_size.set(size)
            return await server.prepared(LLM, busy, refuse=refuse)

        tasks = [asyncio.ensure_future(large()) for _ in range(40)]
        async with asyncio.timeout(10):
            while busy.running < most:
                await asyncio.sleep(0.01)
            for _ in range(5):
                assert await server.prepared(LLM, lambda: "small") == "small"
            busy.free.set()
            assert await asyncio.gather(*tasks) == ["done"] * 40
        assert busy.most == most

    asyncio.run(scene())


def test_counting_for_long_holds_up_no_prompt() -> None:
    async def scene() -> None:
        server, busy = plain_server(), Busy()
        body_size.set(HUGE_BODY + 1)
        counting = [asyncio.ensure_future(server.prepared(LLM, busy, refuse=False)) for _ in range(5)]
        async with asyncio.timeout(10):
            assert await server.prepared(LLM, lambda: "prompt") == "prompt"
            busy.free.set()
            await asyncio.gather(*counting)

    asyncio.run(scene())


def test_what_nobody_waits_for_ends_with_its_piece_and_frees_its_turn() -> None:
    """So the end of the process, which waits for all threads, is not held up."""
    read: list[int] = []

    def slowly(text: str) -> list[int]:
        read.append(len(text))
        time.sleep(0.05)
        return [7]

    async def scene() -> None:
        server = plain_server()
        body_size.set(LARGE_BODY + 1)
        text = "7 " * (PIECE * 200)
        asked = [asyncio.ensure_future(server.prepared(LLM, lambda: read_within_bounds(text, slowly))) for _ in range(6)]
        while len(read) < 8:
            await asyncio.sleep(0.01)
        for one in asked:
            one.cancel()
        assert all(isinstance(found, asyncio.CancelledError) for found in await asyncio.gather(*asked, return_exceptions=True))
        assert await server.prepared(LLM, lambda: "next") == "next"

    began = time.monotonic()
    asyncio.run(scene())
    assert time.monotonic() - began < 10
    assert len(read) < 100


def test_waiting_for_a_turn_ends_with_the_time_of_a_request() -> None:
    async def scene() -> None:
        server, busy = plain_server(request_timeout=0.3), Busy()
        body_size.set(LARGE_BODY + 1)
        asked = [asyncio.ensure_future(server.prepared(LLM, busy)) for _ in range(LARGE_AT_ONCE + 1)]
        for found in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(found, ApiError)
            assert (found.status, found.code) == (408, "timeout")
        busy.free.set()

    asyncio.run(scene())


def test_what_the_work_raises_is_raised() -> None:
    def refused() -> None:
        raise PromptTooLong("No.")

    async def scene() -> None:
        for size in (1, LARGE_BODY + 1):
            body_size.set(size)
            with pytest.raises(PromptTooLong, match="No"):
                await plain_server().prepared(LLM, refused)

    asyncio.run(scene())
