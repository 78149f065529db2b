"""A request between the event loop and the thread that owns the engine."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from hasten.core.config import SpeculationParams
from hasten.core.results import StreamEvent
from hasten.core.types import SamplingParams
from hasten.engine.requests import Request
from hasten.model.thinking import Thinking
from hasten.sampling.constraint import Constraint

INTERACTIVE, BATCH = "interactive", "batch"


@dataclass(frozen=True, slots=True)
class Job:
    """What the engine is asked for, checked. ``timeout``: seconds from arrival to the last token. ``deadline``: seconds from
    arrival within which the first token has to be under way, or the request is not wanted any more. ``waited``: seconds since the
    arrival that have passed before it is queued: elsewhere, or while the model was loaded. ``thinking``: how the model thinks,
    where that is told apart from its answer."""

    id: str
    tenant: str
    prompt: list[int]
    params: SamplingParams
    timeout: float
    speculation: SpeculationParams = field(default_factory=SpeculationParams)
    prediction: list[int] | None = None
    constraint: Callable[[], Constraint] | None = None
    priority: str = INTERACTIVE
    deadline: float | None = None
    waited: float = 0.0
    thinking: Thinking | None = None


@dataclass(slots=True, eq=False)
class Times:
    """Monotonic seconds: when a request arrived, when it was queued (its model is loaded, its prompt made), when the engine took
    it, its first and its last token."""

    arrived: float = field(default_factory=time.monotonic)
    queued: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None
    last: float | None = None


class Ticket:
    """Events travel from the engine's thread to the loop; ``next`` is for the loop, ``post`` for any thread.

    ``request`` belongs to the engine's thread. ``cached``: tokens of the prompt that were in the prefix cache, set before the
    first event.
    """

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.times = Times(time.monotonic() - job.waited)
        self.request: Request | None = None
        self.cached = 0
        self._loop = loop
        self._events: deque[StreamEvent] = deque()
        self._problem: BaseException | None = None
        self._over = False
        self._news = asyncio.Event()

    def post(self, events: list[StreamEvent], problem: BaseException | None = None) -> None:
        """Hand over events, and what ended the request where something did."""
        post_all([(self, events, problem)])

    async def next(self) -> list[StreamEvent]:
        """All that has come since the last call, at least one event; empty once the request is over. Raises what ended it."""
        while not self._events:
            if self._problem is not None:
                raise self._problem
            if self._over:
                return []
            self._news.clear()
            await self._news.wait()
        events = list(self._events)
        self._events.clear()
        return events

    def _take(self, events: list[StreamEvent], problem: BaseException | None) -> None:
        self._events.extend(events)
        if problem is not None:
            self._problem = problem
        if any(event.completion is not None for event in events):
            self._over = True
        self._news.set()


def post_all(news: list[News]) -> None:
    """Hand over what one step brought to several tickets of one loop, which is woken once."""
    if not news:
        return

    def take() -> None:
        for ticket, events, problem in news:
            ticket._take(events, problem)

    with suppress(RuntimeError):  # the loop is closed: nobody listens any more
        news[0][0]._loop.call_soon_threadsafe(take)


News: TypeAlias = tuple[Ticket, list[StreamEvent], BaseException | None]
