"""One connection, bounded in time where uvicorn leaves it open for ever: one that sends no request, or half of one, and one whose
client takes nothing of its answer."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

from hasten.serve.limits import Limits


class BoundedConnection(H11Protocol):
    """Closed when the head of a request has not arrived ``head_seconds`` after the connection was made or its first byte came, and
    when nothing can be written for ``write_seconds``. The body of a request and its time in the engine have limits of their own
    (``body``, ``worker``); between two requests uvicorn's keep-alive holds."""

    head_seconds: ClassVar[float]
    write_seconds: ClassVar[float]
    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop("_timer")
        else:  # part of a head, or the rest of a body that was refused before it was read
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_timer")
        self._stop("_stuck")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop("_stuck")
        super().resume_writing()

    def _await_head(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop(self, timer: Literal["_timer", "_stuck"]) -> None:
        running: asyncio.TimerHandle | None = getattr(self, timer)
        if running is not None:
            running.cancel()
            setattr(self, timer, None)


def connection_of(limits: Limits) -> type[BoundedConnection]:
    """The class for uvicorn, with these limits."""
    times = {"head_seconds": limits.body_timeout, "write_seconds": limits.request_timeout}
    return type("Connection", (BoundedConnection,), times)
