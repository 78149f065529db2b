"""Server-sent events, and answers that end when the client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from hasten.serve.errors import ApiError, api_error, openai_body, stopping

Result = TypeVar("Result")
KEEP_ALIVE = b": still at work\n\n"
LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})  # JSON lets them be, splitlines() does not
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]


def data(value: Any) -> bytes:
    """One unnamed event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(LINE_ENDS).encode() + b"\n\n"


def named(event: str, value: Any) -> bytes:
    """One event with a name."""
    return b"event: " + event.encode() + b"\n" + data(value)


class EventStream:
    """An ASGI response that sends ``parts`` as they come, and a comment whenever nothing came for ``keep_alive`` seconds.

    ``on_end`` is called once, however it ends: all sent, the client gone, or an error. An error after the first part becomes
    what ``describe`` makes of it; so does being cancelled, which is the server's end.
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        keep_alive: float,
        on_end: Callable[[], None],
        describe: Callable[[ApiError], bytes],
        report: Callable[[BaseException], None],
    ) -> None:
        self._parts = parts
        self._keep_alive = keep_alive
        self._on_end = on_end
        self._describe = describe
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            begun = True
            await until_gone(self._send_all(send), receive)
        except asyncio.CancelledError:
            if begun:
                self._report(stopping())
                await send_last(send, self._describe(stopping()))
            raise
        finally:
            self._on_end()

    async def _send_all(self, send: Send) -> None:
        async def body(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        upcoming = asyncio.ensure_future(anext(self._parts, None))
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=self._keep_alive)
                if not done:
                    await body(KEEP_ALIVE)
                    continue
                part = upcoming.result()
                if part is None:
                    break
                upcoming = asyncio.ensure_future(anext(self._parts, None))
                await body(part)
        except Exception as problem:
            self._report(problem)
            await body(self._describe(api_error(problem)))
        finally:
            upcoming.cancel()
        await send_last(send, b"")


async def send_last(send: Send, part: bytes) -> None:
    """The last part of an answer that has begun."""
    with suppress(OSError):
        await send({"type": "http.response.body", "body": part, "more_body": False})


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """``work``'s result, unless the client goes away first: then it is cancelled. The body must have been read."""
    result = await until_gone(work, request.receive)
    if result is GONE:
        raise ApiError(499, "The client went away.", code="client_left")
    return result  # type: ignore[return-value]


GONE = object()


async def until_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result | object:
    """``work``'s result, or GONE when the client goes away first; ``work`` is cancelled then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else GONE
    finally:
        for one in (task, gone):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def openai_error(error: ApiError) -> bytes:
    """An error inside a stream, as OpenAI's clients expect it."""
    return data(openai_body(error))
