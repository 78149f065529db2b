"""A server with the page and just enough of the chat API to try the page against, its answers written by the test.

It streams as the real one does (role chunk, tokens with their codes and pieces, account, usage, ``[DONE]``), without a model.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import hasten

PAGE = Path(hasten.__file__).parent / "serve" / "page"
LEGEND = {"m": "model", "s": "suffix", "l": "lm", "r": "recycling", "p": "prediction", "u": "speculator"}
NAMES = {name: code for code, name in LEGEND.items()}


@dataclass
class Reply:
    """``tokens``: (piece, code) each; ``thought``: those before them. ``raw`` replaces the whole body of the stream. ``hold``
    keeps the stream open at its end."""

    tokens: list[tuple[str, str]]
    at_a_time: int = 3
    delay: float = 0.0
    finish: str = "stop"
    error_after: str | None = None
    hold: bool = False
    raw: list[bytes] | None = None
    status: int = 200
    refusal: str = ""
    code: str | None = None
    thought: list[tuple[str, str]] = field(default_factory=list)


def words(text: str, codes: str = "mssl") -> list[tuple[str, str]]:
    """The text in tokens that begin with a space, signed by the codes in turn."""
    pieces = [text[0]]
    for character in text[1:]:
        if character == " " or (character == "\n") != (pieces[-1][-1] == "\n"):
            pieces.append("")
        pieces[-1] += character
    return [(piece, codes[at % len(codes)]) for at, piece in enumerate(pieces)]


@dataclass
class FakeChat:
    """What the test says and sees: replies by question, the requests that came, and how many streams the client left."""

    replies: dict[str, Reply] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left: int = 0
    key: str = ""
    models: list[str] = field(default_factory=lambda: ["smollm2-135m", "qwen2.5-coder-1.5b"])
    address: str = ""

    def reply(self, question: str) -> Reply:
        return self.replies.get(question) or Reply(words(f"You said: {question}"))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
        return Starlette(routes=routes)

    def _refused(self, request: Request) -> Response | None:
        sent = request.headers.get("Authorization", "")
        self.keys.append(sent)
        return error(401, "This server wants an API key.") if self.key and sent != f"Bearer {self.key}" else None

    async def _models(self, request: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "hasten"} for name in self.models]
        return self._refused(request) or JSONResponse({"object": "list", "data": listed})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        reply = self.reply(body["messages"][-1]["content"])
        refused = self._refused(request)
        if refused is not None:
            return refused
        if reply.status != 200:
            return error(reply.status, reply.refusal, reply.code)
        return StreamingResponse(self._stream(reply, body["model"]), media_type="text/event-stream")

    async def _stream(self, reply: Reply, model: str) -> AsyncIterator[bytes]:
        try:
            async for part in _parts(reply, model):
                yield part
        except asyncio.CancelledError:
            self.left += 1
            raise


async def _parts(reply: Reply, model: str) -> AsyncIterator[bytes]:
    if reply.raw is not None:
        for part in reply.raw:
            yield part
            await asyncio.sleep(reply.delay)
        return
    yield chunk(model, {"role": "assistant", "content": ""})
    for name, tokens in (("reasoning_content", reply.thought), ("content", reply.tokens)):
        for start in range(0, len(tokens), reply.at_a_time):
            part = tokens[start : start + reply.at_a_time]
            pieces = [piece for piece, _ in part]
            signed = {"provenance": "".join(code for _, code in part), "pieces": pieces, "legend": LEGEND}
            yield chunk(model, {name: "".join(pieces)}, hasten=signed)
            yield b": still at work\n\n"
            await asyncio.sleep(reply.delay)
    while reply.hold:
        await asyncio.sleep(0.05)
    if reply.error_after is not None:
        yield event({"error": {"message": reply.error_after, "type": "server_error", "param": None, "code": None}})
        return
    yield chunk(model, {}, finish=reply.finish)
    yield chunk(model, None, hasten=account(reply.thought + reply.tokens), usage=usage(reply.thought + reply.tokens))
    yield b"data: [DONE]\n\n"


def account(tokens: list[tuple[str, str]]) -> dict[str, Any]:
    counts = {name: sum(signed == code for _, signed in tokens) for code, name in LEGEND.items() if code != "m"}
    by_drafter = {name: {"drafted": 2 * count, "accepted": count} for name, count in counts.items() if count}
    return {
        "exact": True,
        "precision": "int8",
        "speedup": 2.5,
        "tokens_per_second": 50.0,
        "plain_tokens_per_second": 20.0,
        "by_drafter": by_drafter,
        "legend": LEGEND,
        "decisions": {
            "suffix": "suffix: on, it has not cost more here than it may; asked in 20 of 24 rounds, +0.31 s saved",
            "lm": "lm: on, its guesses are expected to be right 0.71 of the time, best 4 deep; asked in 8 of 24, +0.12 s saved",
            "recycling": "recycling: off, expected to be right 0.12 of the time it does not pay; it is tried again in 16 rounds",
        },
    }


def usage(tokens: list[tuple[str, str]]) -> dict[str, int]:
    return {"prompt_tokens": 12, "completion_tokens": len(tokens), "total_tokens": 12 + len(tokens)}


def chunk(model: str, delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    """One chat.completion.chunk; without a delta it has no choices, as the usage chunk has none."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": choices, **more})


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def error(status: int, message: str, code: str | None = None) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers={"Retry-After": "3"} if status in (429, 503) else None)


@contextmanager
def running(chat: FakeChat) -> Iterator[FakeChat]:
    """The server on a free port of this machine, in a thread, while the block runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(chat.app(), host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    chat.address = f"http://127.0.0.1:{port}/"
    chat.wait_until(lambda: server.started)
    try:
        yield chat
    finally:
        server.should_exit = True
        thread.join(10)
