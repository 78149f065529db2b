"""The application: routes and what stands before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from hasten.core.errors import HastenError
from hasten.serve import basics
from hasten.serve.chat import chat_completions
from hasten.serve.completions import completions
from hasten.serve.embeddings import embeddings
from hasten.serve.errors import ApiError, api_error, error_response, status_phrase
from hasten.serve.guard import HEALTH, METRICS, Guard, Policy
from hasten.serve.messages import count_tokens, messages
from hasten.serve.metrics import metrics
from hasten.serve.openapi import openapi
from hasten.serve.page_files import PageFiles
from hasten.serve.responses import input_tokens, responses
from hasten.serve.server import Server, note_problem
from hasten.serve.tracing import Tracing

PAGE = Path(__file__).with_name("page")
OPEN_PATHS = HEALTH | {"/"}
NO_PAGE = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>Hasten</title><p>Hasten is serving. "
    "The chat page is not part of this installation; the interface is at /v1."
)


def engine_routes() -> list[Route]:
    """What a model answers."""
    return [
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", basics.models),
        Route("/v1/models/{name:path}", basics.one_model),
        Route("/tokenize", basics.tokenize, methods=["POST"]),
        Route("/detokenize", basics.detokenize, methods=["POST"]),
    ]


_VERSIONED = frozenset(route.path for route in engine_routes() if route.path.startswith("/v1/"))


def engine_app(server: Server) -> Starlette:
    """The models' routes without the door before them: for a replica, whose callers have passed it."""
    app = Starlette(routes=engine_routes(), exception_handlers=HANDLERS)
    app.state.server = server
    return app


def make_app(server: Server, policy: Policy, page: Path = PAGE) -> Guard:
    """The ASGI application. Lets all models go when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await server.models.close()
        if server.tracing is not None:
            await asyncio.to_thread(server.tracing.close)

    routes = [
        *engine_routes(),
        Route("/health", basics.ready),
        Route("/health/ready", basics.ready),
        metrics_route(metrics),
    ]
    return guarded(routes, server, server.requests, policy, lifespan, page, server.tracing)


def metrics_route(endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """For those only who may be told of all tenants. That is asked here and not by the path alone, which a router may read in more
    ways than one."""

    async def told(request: Request) -> Response:
        if not request.state.sees_all:
            raise ApiError(
                403,
                f"{METRICS} tells of all tenants and takes a key made for it; the operator makes one with "
                "`hasten serve --new-key NAME --for metrics`.",
            )
        return await endpoint(request)

    return Route(METRICS, told)


def guarded(
    routes: list[Route],
    server: Any,
    requests: dict[tuple[str, int], int],
    policy: Policy,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]],
    page: Path = PAGE,
    tracing: Tracing | None = None,
) -> Guard:
    """These routes and those that need no model, with the page, behind the door. ``requests`` counts them by path and status."""
    routes = [
        *routes,
        Route("/health/live", basics.live),
        Route("/version", basics.version),
        Route("/openapi.json", openapi),
    ]
    files = page_paths(page)
    # Each file a route of its own: one for all of them would answer for every other path, too.
    page_files = PageFiles(directory=page, html=True)
    routes += [Route(path, page_files) for path in sorted({"/", *files})] if files else [Route("/", _no_page)]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=HANDLERS)
    # Behind a proxy a redirect would lead from https to http, with the key and the words of whoever follows it.
    app.router.redirect_slashes = False
    app.state.server = server

    patterns = [route for route in routes if route.param_convertors]
    known = frozenset(route.path for route in routes if route not in patterns)

    def ended(scope: Scope, status: int, began: float) -> None:
        path = scope["path"]
        if path not in known:  # clients choose paths: what is counted by itself has to be a route's
            path = next((route.path_format for route in patterns if route.path_regex.match(path)), "other")
        requests[path, status] = requests.get((path, status), 0) + 1
        if tracing is not None and scope["method"] == "POST":
            tracing.record("POST", path, Headers(scope=scope), status, began, scope["state"])

    return Guard(app, replace(policy, open_paths=policy.open_paths | OPEN_PATHS | files), ended)


def page_paths(page: Path) -> frozenset[str]:
    """The exact paths of the page's files: they hold nothing secret and are served without a key."""
    if not (page / "index.html").is_file():
        return frozenset()
    return frozenset("/" + file.relative_to(page).as_posix() for file in page.rglob("*") if file.is_file())


async def _no_page(request: Request) -> Response:
    return HTMLResponse(NO_PAGE)


async def _http_error(request: Request, problem: Exception) -> Response:
    """What the router says, in our shape."""
    assert isinstance(problem, HTTPException)
    if problem.status_code == 404:
        meant = _meant(request.url.path)
        hint = f"; did you mean {meant}?" if meant is not None else "."
        sentence = f"There is nothing at {request.method} {request.url.path[:200]}{hint}"
    elif problem.status_code == 405:
        sentence = f"{request.url.path[:200]} does not take {request.method}."
    else:
        sentence = f"The request cannot be served ({status_phrase(problem.status_code)})."
    return error_response(ApiError(problem.status_code, sentence, headers=problem.headers), request.url.path)


def _meant(path: str) -> str | None:
    """The route that is one slip away: without its /v1, with two of them, or with a slash too many."""
    parts = [part for part in path.split("/") if part]
    while parts[:1] == ["v1"]:
        parts = parts[1:]
    found = "/".join(["", "v1", *parts])
    return found if found in _VERSIONED and found != path else None


async def _told(request: Request, problem: Exception) -> Response:
    """What a route raised, in the shape of its interface. Of what is no user's mistake the log has the trace."""
    error = api_error(problem)
    note_problem(request, problem)
    return error_response(error, request.url.path)


HANDLERS = {HTTPException: _http_error, ApiError: _told, HastenError: _told, Exception: _told}
