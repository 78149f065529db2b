"""One connection, bounded in time where uvicorn leaves it open for ever: one that sends no request, or half of one, and one whose
client takes nothing of its answer. All of them together are bounded in number, within what the system lets a process open."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, ClassVar, Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

from hasten.core.errors import ConfigError
from hasten.serve.limits import Limits

SPARE = 32  # connections over --max-connections, so that whoever is one too many can be told so
AT_ONCE = 32  # connections that are accepted in a turn of the event loop
BACKLOG = 2048  # that may wait for it: the system drops what comes beyond, and clients try again after a second
PIECE = 4096  # bytes parsed in a turn of the event loop, for which all others wait: chunks of one byte take 40 us each
PARSE_SECONDS = 1.0  # of processor time that one request may take to be parsed: a body of the largest size takes a tenth
# What is accepted in one turn of the event loop counts, or is closed, a few turns later; the rest is the process's own.
FILES_BESIDE = 4 * AT_ONCE + 128


class BoundedConnection(H11Protocol, asyncio.BufferedProtocol):
    """Closed when the head of a request has not arrived ``head_seconds`` after the connection was made or its first byte came, when
    nothing can be written for ``write_seconds``, and when a request takes ``PARSE_SECONDS`` to be parsed. The body of a request and
    its time in the engine have limits of their own (``body``, ``worker``); between two requests uvicorn's keep-alive holds. Where
    there are more than ``most``, a new one takes the place of the one without a request whose last request, or beginning, is
    longest ago."""

    head_seconds: ClassVar[float]
    write_seconds: ClassVar[float]
    most: ClassVar[int]
    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _last_used: float = 0.0
    _parsed: float = 0.0  # seconds that parsing has taken since the request in work began
    _parsing: object = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._last_used = self.loop.time()
        self._piece = memoryview(bytearray(PIECE))
        if len(self.connections) > self.most:
            idle = [one for one in self.connections if isinstance(one, BoundedConnection) and one.idle]
            min(idle, key=lambda one: one._last_used).transport.close()
        self._await_head()

    @property
    def idle(self) -> bool:
        """Whether closing it takes nothing from anybody: it is open, no request is in work and all answers have been taken."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.transport.is_closing() and not self.transport.get_write_buffer_size()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._piece[:nbytes]))

    def data_received(self, data: bytes) -> None:
        began = time.thread_time()
        super().data_received(data)
        if self.cycle is not self._parsing:
            self._parsing, self._parsed = self.cycle, 0.0
        self._parsed += time.thread_time() - began
        if self._parsed > PARSE_SECONDS:
            self.transport.close()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._last_used = self.loop.time()
            self._stop("_timer")
        else:  # part of a head, or the rest of a body that was refused before it was read
            self._await_head()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered as if it asked for no other protocol, and uvicorn's advice is for its own users."""

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
    bounds = {
        "head_seconds": limits.body_timeout,
        "write_seconds": limits.request_timeout,
        "most": limits.max_connections + SPARE,
    }
    return type("Connection", (BoundedConnection,), bounds)


def allow_files(limits: Limits) -> None:
    """Let this process open as many files as its connections need: asyncio spins where there is none for the next connection.
    Raises ConfigError where the system does not allow that."""
    if sys.platform == "win32":  # where the system sets no such limit
        return
    import resource

    wanted = limits.max_connections + SPARE + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):
        fitting = hard - SPARE - FILES_BESIDE
        less = f"give at most {fitting}, or " if fitting > 0 else ""
        raise ConfigError(
            f"--max-connections {limits.max_connections} needs {wanted} open files and the system allows this process {hard}; "
            f"{less}raise the limit (ulimit -n, LimitNOFILE)."
        ) from None
