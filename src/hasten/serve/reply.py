"""From a generation to an answer over HTTP, whole or streamed: the frame that all generating routes share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.serve.errors import ApiError
from hasten.serve.generation import Collected, Generation
from hasten.serve.server import note, note_problem, server_of
from hasten.serve.sse import EventStream, while_connected


class Form(Protocol):
    """An interface's objects, made of what a generation brings."""

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The unstreamed answer."""

    def events(self) -> AsyncIterator[bytes]:
        """The streamed answer, event by event."""

    def error(self, error: ApiError) -> bytes:
        """What ends a stream that has begun and cannot be finished."""


async def reply(request: Request, generation: Generation, form: Form, stream: bool | None) -> Response:
    """The answer; the generation ends with it, with the client's leaving, or with what went wrong. Before a stream's first token
    an error is raised and can still become a status."""
    server = server_of(request)

    def end() -> None:
        generation.end()
        note(request, generation)

    def end_stream() -> None:
        end()
        if len(generation.whole) < len(generation.completions) and "error" not in request.state.log:
            # Neither the server's end nor an error: the client left, which counts as it does before a stream's first token.
            request.state.log.update(status=499, error="client_left")

    try:
        if stream:
            await while_connected(request, generation.begin(server.limits.keep_alive))
            return EventStream(  # type: ignore[return-value]  # an ASGI application, as every response is
                form.events(),
                server.limits.keep_alive,
                end_stream,
                form.error,
                lambda problem: note_problem(request, problem),
            )
        body = form.whole(await while_connected(request, generation.collect()))
    except BaseException:
        end()
        raise
    end()
    return JSONResponse(body)
