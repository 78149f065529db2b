"""Clients that ask and take nothing of the answer, and clients that connect and ask nothing, however many they are."""

from __future__ import annotations

import asyncio
import selectors
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hasten.core.errors import ConfigError
from hasten.serve.connection import FILES_BESIDE, PIECE, SPARE, allow_files, connection_of
from hasten.serve.limits import Limits
from serving import running

PART, PARTS = b"x" * (1 << 20), 64


async def much(scope: Any, receive: Any, send: Any) -> None:
    """Sixty-four megabytes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for at in range(PARTS):
        await send({"type": "http.response.body", "body": PART, "more_body": at < PARTS - 1})


@asynccontextmanager
async def served(app: Any, limits: Limits) -> AsyncIterator[tuple[uvicorn.Server, tuple[str, int]]]:
    """A server of that application, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=connection_of(limits), lifespan="off"))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        yield server, listener.getsockname()
        server.should_exit = True
        await serving


async def taken(limits: Limits, pause: float) -> int:
    """Bytes that a client gets which first takes nothing for ``pause`` seconds and then all."""
    async with served(much, limits) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
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
        return size


def test_who_takes_nothing_is_let_go() -> None:
    assert asyncio.run(taken(Limits(request_timeout=0.5), 2.0)) < PARTS * len(PART)


def test_who_is_slow_gets_all() -> None:
    assert asyncio.run(taken(Limits(request_timeout=20.0), 1.0)) > PARTS * len(PART)


async def refused(scope: Any, receive: Any, send: Any) -> None:
    """An answer before the body is read."""
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


async def read_whole(scope: Any, receive: Any, send: Any) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


@pytest.mark.parametrize("app", [refused, read_whole])
def test_a_body_in_chunks_of_a_byte_is_soon_at_its_end(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them takes as long to parse as a kilobyte, so a little traffic held up everybody, key or no key."""
    pieces: list[int] = []
    parse = H11Protocol.data_received

    def noted(self: H11Protocol, data: bytes) -> None:
        pieces.append(len(data))
        parse(self, data)

    monkeypatch.setattr(H11Protocol, "data_received", noted)
    monkeypatch.setattr("hasten.serve.connection.PARSE_SECONDS", 0.2)

    async def flood() -> int:
        async with served(app, Limits()) as (_, address):
            _, writer = await asyncio.open_connection(*address)
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            sent = 0
            with suppress(ConnectionError):
                while sent < 10_000_000:
                    writer.write(b"1\r\n \r\n" * 1000)
                    sent += 1000
                    await writer.drain()
            writer.close()
            return sent

    assert asyncio.run(flood()) < 5_000_000
    assert max(pieces) <= PIECE


def test_a_large_body_is_read_whole() -> None:
    async def sent(size: int) -> bytes:
        async with served(read_whole, Limits()) as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
            writer.write(b"x" * size)
            await writer.drain()
            answer = await reader.read()
            writer.close()
            return answer

    assert b"\r\n16777216\r\n" in asyncio.run(sent(16 << 20))


def test_a_connection_that_asks_takes_the_place_of_one_that_does_not() -> None:
    """Those whose requests are in work stay, and so does the bound."""
    most = 4 + SPARE
    let_on = asyncio.Event()

    async def patient(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await let_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def scene() -> None:
        async with served(patient, Limits(max_connections=4)) as (server, address), httpx.AsyncClient(timeout=20) as client:
            url = "http://{}:{}".format(*address)
            slow = asyncio.ensure_future(client.get(f"{url}/slow"))
            silent = [await asyncio.open_connection(*address) for _ in range(4 * most)]
            assert (await client.get(f"{url}/quick")).text == "done"
            assert len(server.server_state.connections) <= most
            let_on.set()
            assert (await slow).text == "done"
            for _, writer in silent:
                writer.close()

    asyncio.run(scene())


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_a_flood_of_silent_connections_takes_no_more_files_than_there_are(tmp_path: Path, tiny_model: Path) -> None:
    files = 8 + SPARE + FILES_BESIDE
    bounds = ("prlimit", f"--nofile=64:{files}", "--")
    arguments = ("--max-connections", "8")
    with running(*arguments, home=tmp_path, models=(f"tiny={tiny_model}",), before=bounds) as server:
        host, port = server.url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(files + 100)]
        assert httpx.get(f"{server.url}/health", timeout=20).status_code == 200
        for one in silent:
            one.close()
    assert not [line for line in server.log if "system resource" in line]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot hold a process up")
def test_a_burst_of_connections_finds_room(tmp_path: Path, tiny_model: Path) -> None:
    """Even where nobody accepts any for a while: the system drops what it has no room for, and that comes again after a second."""
    with running(home=tmp_path, models=(f"tiny={tiny_model}",)) as server, selectors.DefaultSelector() as waiting:
        host, port = server.url.removeprefix("http://").split(":")
        server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(300):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex((host, int(port)))
                waiting.register(one, selectors.EVENT_WRITE)
            end = time.monotonic() + 0.8
            while waiting.get_map() and time.monotonic() < end:
                for key, _ in waiting.select(0.1):
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            late = len(waiting.get_map())
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert late == 0
        assert httpx.get(f"{server.url}/health", timeout=20).status_code == 200


def test_connections_for_which_there_are_no_files_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))
    with pytest.raises(ConfigError, match=f"give at most {1024 - SPARE - FILES_BESIDE}, or raise"):
        allow_files(Limits(max_connections=5000))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(ConfigError, match="64; raise"):
        allow_files(Limits())
