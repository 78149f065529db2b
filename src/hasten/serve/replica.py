"""One replica: a whole server without its door, in a process of its own. Whoever calls it has passed the door already."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.types import Scope

from hasten.core.config import EngineConfig
from hasten.engine.footprint import footprint
from hasten.engine.llm import LLM
from hasten.serve.app import engine_app
from hasten.serve.errors import api_error, error_response
from hasten.serve.fleet import Call, Message
from hasten.serve.limits import Limits
from hasten.serve.metrics import metrics_text
from hasten.serve.models import Models, hosts_of
from hasten.serve.server import Server

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a replica serves. ``memory_budget``: bytes; 0: no bound."""

    models: tuple[str, ...]
    engine: EngineConfig
    limits: Limits
    memory_budget: int = 0


async def loaded(contents: Contents) -> Server:
    """With the first model in memory. Raises HastenError when it cannot be."""
    models = Models(hosts_of(contents.models, contents.engine), contents.memory_budget, LLM, footprint)
    await models.preload()
    return Server(models, contents.limits)


class Replica:
    """The methods are those of ``fleet.Link``, seen from the other end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._app = engine_app(server)

    async def stay(self) -> AsyncGenerator[int, None]:
        """The process's number, then nothing for as long as it lives."""
        yield os.getpid()
        await asyncio.Event().wait()

    async def ask(self, call: Call) -> AsyncGenerator[list[Message], None]:
        """The answer's ASGI messages, all that are there at once; before the last one stands what the log says of the request."""
        noted: dict[str, Any] = {}
        sent: asyncio.Queue[Message] = asyncio.Queue()
        answering = asyncio.ensure_future(_answer(self._app, call, noted, sent))
        try:
            more = True
            while more:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                more = messages[-1]["type"] != "http.response.body" or messages[-1].get("more_body", False)
                if not more:
                    await answering
                    messages.insert(-1, {"type": "log", "noted": noted})
                yield messages
        finally:
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering

    async def metrics(self) -> str:
        """Prometheus' text form of what this replica's models have done."""
        return metrics_text(self._server)

    def check_alive(self) -> None:
        """Raise RuntimeError when an engine's thread has ended: only another process helps then."""
        for host in self._server.models.hosts.values():
            if host.worker is not None and not host.worker.is_alive():
                raise RuntimeError(f"The engine of '{host.name}' has ended.")

    async def close(self) -> None:
        """Let all models go."""
        await self._server.models.close()


async def _answer(app: Starlette, call: Call, noted: dict[str, Any], sent: asyncio.Queue[Message]) -> None:
    """Run the application on one call. It always sends a whole answer."""
    unread = [{"type": "http.request", "body": call.body, "more_body": False}]
    started = ended = False

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await asyncio.Event().wait()  # the client stays; when it goes, all this is cancelled
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal started, ended
        started = True
        ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        sent.put_nowait(dict(message))

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "query_string": call.query,
        "root_path": "",
        "headers": call.headers,
        "client": None,
        "server": None,
        "state": {"request_id": call.request_id, "tenant": call.tenant, "waited": call.waited, "log": noted},
    }
    try:
        await app(scope, receive, send)
    except Exception as problem:
        error = api_error(problem)
        noted.setdefault("error", error.code or type(problem).__name__)
        if not started:
            await error_response(error, call.path)(scope, receive, send)
        elif not ended:  # Starlette answers what is no user's mistake, and raises it all the same
            await send({"type": "http.response.body", "body": b"", "more_body": False})
