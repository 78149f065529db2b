"""A client that asks and takes nothing of the answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from hasten.serve.connection import connection_of
from hasten.serve.limits import Limits

PART, PARTS = b"x" * (1 << 20), 64


async def much(scope: Any, receive: Any, send: Any) -> None:
    """Sixty-four megabytes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for at in range(PARTS):
        await send({"type": "http.response.body", "body": PART, "more_body": at < PARTS - 1})


async def taken(limits: Limits, pause: float) -> int:
    """Bytes that a client gets which first takes nothing for ``pause`` seconds and then all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(much, log_config=None, http=connection_of(limits), lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(pause)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        size = 0
        try:
            while part := await reader.read(1 << 20):
                size += len(part)
        except ConnectionError:
            pass
        writer.close()
        server.should_exit = True
        await serving
        return size


def test_who_takes_nothing_is_let_go() -> None:
    assert asyncio.run(taken(Limits(request_timeout=0.5), 2.0)) < PARTS * len(PART)


def test_who_is_slow_gets_all() -> None:
    assert asyncio.run(taken(Limits(request_timeout=20.0), 1.0)) > PARTS * len(PART)
