"""The door before several replicas: keys, limits, page, health and metrics are here; what needs a model goes to a replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hasten.serve import messages, responses
from hasten.serve.affinity import trail_of
from hasten.serve.app import engine_routes, guarded, metrics_route
from hasten.serve.body import parsed, read_body
from hasten.serve.errors import ApiError, api_error, stopping
from hasten.serve.fleet import Call, Fleet, Message
from hasten.serve.fleet_metrics import fleet_metrics
from hasten.serve.guard import Guard, Policy
from hasten.serve.limits import Limits
from hasten.serve.server import note_problem
from hasten.serve.sse import GONE, openai_error, send_last, until_gone

_PASSED_ON = frozenset({b"content-type", b"accept", b"anthropic-version", b"anthropic-beta"})  # no keys, no cookies


@dataclass(slots=True, eq=False)
class Front:
    """``requests``: the answers so far by path and status, for the metrics."""

    fleet: Fleet
    limits: Limits
    requests: dict[tuple[str, int], int] = field(default_factory=dict)


def make_front(front: Front, policy: Policy) -> Guard:
    """The ASGI application, with the routes of ``app.make_app``."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await front.fleet.close()

    routes = [Route(route.path, _pass_on, methods=list(route.methods or [])) for route in engine_routes()]
    routes += [Route("/health", _ready), Route("/health/ready", _ready), metrics_route(fleet_metrics)]
    return guarded(routes, front, front.requests, policy, lifespan)


def front_of(request: Request) -> Front:
    found: Front = request.app.state.server
    return found


async def _ready(request: Request) -> Response:
    """``GET /health`` and ``/health/ready``: whether a replica can serve now, and which. How much each has to do stands in the
    metrics: this needs no key."""
    front = front_of(request)
    if not front.fleet.live:
        raise ApiError(503, "No replica lives now.", code="no_replica", retry_after=5)
    replicas = [{"replica": one.number, "live": one.live, "starts": one.starts} for one in front.fleet.replicas]
    return JSONResponse({"status": "ok", "replicas": replicas})


async def _pass_on(request: Request) -> Response:
    front = front_of(request)
    body, trail = b"", []
    if request.method == "POST":
        body = await read_body(request, front.limits)
        # Read here for the choice of a replica only, and once more there; what cannot be read is refused before it costs one.
        trail = await parsed(body, front.limits, lambda value: trail_of(request.state.tenant, value))
    headers = [(name, value) for name, value in request.headers.raw if name in _PASSED_ON]
    call = Call(
        request.method,
        request.scope["path"],
        request.scope["query_string"],
        headers,
        body,
        request.state.request_id,
        request.state.tenant,
    )
    return _Answer(request, front.fleet.answer(call, trail))  # type: ignore[return-value]


class _Answer:
    """An ASGI response of a replica's messages. When the client goes away the request there ends, too."""

    def __init__(self, request: Request, found: AsyncIterator[Message]) -> None:
        self._request = request
        self._found = found
        self._started = self._whole = False
        self._events = 0
        self._first = b""  # the part with the first event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if await until_gone(self._send_all(send), receive) is GONE and not self._whole:
                self._note({"status": 499, "error": "client_left"})
        except asyncio.CancelledError:  # only the server's end cancels an answer
            if self._started:
                await self._break_off(send, stopping())
            raise

    async def _send_all(self, send: Send) -> None:
        try:
            async with aclosing(self._found) as found:  # type: ignore[type-var]
                async for message in found:
                    if message["type"] == "log":
                        self._note(message["noted"])
                        continue
                    self._started = True
                    body = message.get("body", b"")
                    events = body.count(b"\ndata: ")  # JSON has no raw line break
                    self._first = self._first or (body if events else b"")
                    self._events += events
                    self._whole = message["type"] == "http.response.body" and not message.get("more_body", False)
                    await send(message)
        except Exception as problem:
            if not self._started:
                raise
            await self._break_off(send, problem)

    async def _break_off(self, send: Send, problem: Exception) -> None:
        note_problem(self._request, problem)
        error, path = api_error(problem), self._request.scope["path"]
        if path == "/v1/responses":
            await send_last(send, responses.broken_off(error, self._events, responses.created_in(self._first)))
        else:
            await send_last(send, messages.error_event(error) if path == "/v1/messages" else openai_error(error))

    def _note(self, noted: dict[str, Any]) -> None:
        self._request.state.log.update(noted)
