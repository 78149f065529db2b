"""Replicas of the engine behind one door: which of them live, which one takes a request, and what becomes of it when that one dies.

Knows nothing of how a replica is reached; ``Link`` is all it asks for. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hasten.core.errors import HastenError
from hasten.serve.affinity import Affinity
from hasten.serve.errors import ApiError
from hasten.serve.sse import KEEP_ALIVE

log = logging.getLogger(__name__)
Message = dict[str, Any]  # as in ASGI; one of type "log", before the last, has what the access log says of the request
ATTEMPTS = 3  # a request that ends three replicas is not given to a fourth
PAUSE = 0.5  # seconds between two tries to reach a replica that has ended


class Lost(Exception):
    """The replica has ended, or cannot be reached any more."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request that the door has let in. ``waited``: seconds since it arrived."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    request_id: str
    tenant: str
    waited: float = 0.0


class Link(Protocol):
    """The way to one replica; after its end it leads to the one that takes its place. Everything raises ``Lost``."""

    def stay(self) -> AsyncGenerator[int, None]:
        """The process's number once it can serve; then nothing until it ends."""
        ...

    def ask(self, call: Call) -> AsyncGenerator[list[Message], None]:
        """The answer, all messages that are there at once. Closing it cancels the request."""
        ...

    async def metrics(self) -> str:
        """The replica's own metrics, in Prometheus' text form."""
        ...


@dataclass(slots=True, eq=False)
class Replica:
    """``process``: None while there is none. ``load``: requests in work. ``ended`` is set when the process of now ends."""

    number: int
    link: Link
    process: int | None = None
    load: int = 0
    starts: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def live(self) -> bool:
        return self.process is not None


class Fleet:
    """``wait``: seconds that a request waits for a replica to live where none does."""

    def __init__(self, wait: float) -> None:
        self.replicas: list[Replica] = []
        self.retried = 0
        self.broken = 0
        self._wait = wait
        self._affinity = Affinity()
        self._risen = asyncio.Event()
        self._watches: list[asyncio.Task[None]] = []

    @property
    def live(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.live]

    async def start(self, links: Sequence[Link]) -> None:
        """Until all replicas live. Raises HastenError when one ends before that."""
        self.replicas = [Replica(number, link) for number, link in enumerate(links)]
        first: list[asyncio.Future[None]] = []
        for replica in self.replicas:
            first.append(asyncio.get_running_loop().create_future())
            self._watches.append(asyncio.ensure_future(self._watch(replica, first[-1])))
        await asyncio.gather(*first)

    async def close(self) -> None:
        """Watch no longer."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    async def answer(self, call: Call, trail: Sequence[bytes]) -> AsyncIterator[Message]:
        """The messages of an answer from whichever replica can give it.

        One whose replica ends before it has begun (keep-alive comments are no beginning) is asked of another. Raises ApiError
        (503) where it had begun, or where that happened too often.
        """
        arrived = time.monotonic()
        sending = _Sending()
        for _ in range(ATTEMPTS):
            replica = await self._choose(trail)
            replica.load += 1
            try:
                async with aclosing(self._asked(replica, replace(call, waited=time.monotonic() - arrived))) as messages:
                    async for message in messages:
                        for due in sending.due(message):
                            yield due
                return
            except Lost:
                if sending.begun:
                    self.broken += 1
                    raise ApiError(
                        503, "The replica that was answering has ended; send the request again.", code="replica_lost", retry_after=1
                    ) from None
                self.retried += 1
                log.warning("Request %s had not begun on replica %d and goes to another.", call.request_id, replica.number)
                sending.again()
            finally:
                replica.load -= 1
        raise ApiError(503, f"{ATTEMPTS} replicas ended over this request.", code="replica_lost", retry_after=5)

    async def _choose(self, trail: Sequence[bytes]) -> Replica:
        while not self.live:
            self._risen.clear()
            try:
                await asyncio.wait_for(self._risen.wait(), self._wait)
            except TimeoutError:
                raise ApiError(503, "No replica lives; try again later.", code="no_replica", retry_after=10) from None
        return self.replicas[self._affinity.choose(trail, {replica.number: replica.load for replica in self.live})]

    async def _asked(self, replica: Replica, call: Call) -> AsyncGenerator[Message, None]:
        """What the replica says, until the watch says that it has ended: a call may find that out much later."""
        ended = asyncio.ensure_future(replica.ended.wait())
        upcoming: asyncio.Future[list[Message] | None] | None = None
        async with aclosing(replica.link.ask(call)) as parts:
            try:
                while True:
                    upcoming = asyncio.ensure_future(anext(parts, None))
                    await asyncio.wait({upcoming, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if not upcoming.done():
                        raise Lost
                    messages = upcoming.result()
                    if messages is None:
                        return
                    for message in messages:
                        yield message
            finally:
                for task in (upcoming, ended):
                    if task is not None:
                        task.cancel()
                        with suppress(asyncio.CancelledError, Lost):
                            await task

    async def _watch(self, replica: Replica, first: asyncio.Future[None]) -> None:
        while True:
            try:
                async with aclosing(replica.link.stay()) as words:
                    async for process in words:
                        self._rise(replica, process)
                        if not first.done():
                            first.set_result(None)
            except Lost as problem:
                log.debug("Replica %d: %s", replica.number, problem)
                if not first.done():
                    first.set_exception(HastenError(f"Replica {replica.number} could not start; the log above says why."))
            if replica.live:
                log.warning("Replica %d (process %d) has ended; another takes its place.", replica.number, replica.process)
                replica.process = None
                replica.ended.set()
                self._affinity.forget(replica.number)
            await asyncio.sleep(PAUSE)

    def _rise(self, replica: Replica, process: int) -> None:
        replica.process = process
        replica.ended = asyncio.Event()
        replica.starts += 1
        self._risen.set()
        log.info("Replica %d lives (process %d).", replica.number, process)


@dataclass(slots=True)
class _Sending:
    """What the client has got so far, over all replicas that were asked. The start of an answer is held back until something
    follows it, so that another replica may still answer with another status."""

    started: bool = False
    begun: bool = False
    start: Message | None = None  # held back

    def due(self, message: Message) -> list[Message]:
        """What to send now. Raises ApiError where a later replica refuses what an earlier one had accepted."""
        if message["type"] == "http.response.start":
            self.start = message
            return []
        if message["type"] != "http.response.body":
            return [message]
        assert self.start is not None, "an answer has a start"
        if self.started and self.start["status"] != 200:
            raise _refusal(self.start["status"], message["body"])
        held = [] if self.started else [self.start]
        self.started = True
        self.begun = self.begun or message["body"] != KEEP_ALIVE
        return [*held, message]

    def again(self) -> None:
        """Another replica is asked."""
        self.start = None


def _refusal(status: int, body: bytes) -> ApiError:
    told = json.loads(body)["error"]
    return ApiError(status, told["message"], param=told.get("param"), code=told.get("code"))
