"""The thread that owns an engine: it takes requests in, steps, and hands out what comes. Nobody else touches the engine.

Requests wait here, not in the engine, as long as its places are taken, so that an interactive one passes those of a batch and one
whose time is up is let go without having cost anything. A step that raises ends the requests that were running, and the thread
goes on; whatever else may raise, nobody is left waiting.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress

from hasten.core.errors import HastenError
from hasten.engine.llm import LLM
from hasten.engine.requests import Request
from hasten.serve.errors import ApiError, engine_dead, stopping
from hasten.serve.tickets import BATCH, INTERACTIVE, News, Ticket, post_all
from hasten.serve.totals import Totals

log = logging.getLogger(__name__)
FORGETTING = 0.9  # of the pace at which requests end
WATCH_SECONDS = 1.0  # between two looks at the clock while a request runs of which the engine knows nothing


class Worker(threading.Thread):
    """Runs ``llm``'s engine until ``close``. ``submit``, ``cancel``, ``between_steps`` and ``close`` are for any thread."""

    def __init__(self, llm: LLM, max_sequences: int) -> None:
        super().__init__(name=f"engine-{llm.name}", daemon=True)
        self.llm = llm
        self.totals = Totals()
        self.embedding = 0  # texts whose embeddings are being made between the steps; changed by this thread only
        self._engine = llm.engine
        self._max_sequences = max_sequences
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, deque[Ticket]] = {INTERACTIVE: deque(), BATCH: deque()}
        self._pieces: deque[Callable[[], bool]] = deque()
        self._turn = itertools.count(1)
        self._turns: dict[str, int] = {}  # the last one of each tenant
        self._running: dict[int, Ticket] = {}  # by identity of the engine's request
        self._closing = False
        self._over = False  # nobody obeys any more
        self._pace: float | None = None  # seconds from one request's end to the next, while there is work
        self._last_end: float | None = None

    def submit(self, ticket: Ticket) -> None:
        """Queue a request that ``Engine.check`` has passed."""
        self._commands.put(lambda: self._waiting[ticket.job.priority].append(ticket))
        if self._over:
            ticket.post([], self.ending)

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this one any more: before the next step its blocks are free. One that is over is left alone."""
        self._commands.put(lambda: self._drop(ticket, None))

    @property
    def over(self) -> bool:
        """Whether nobody obeys any more: what is asked for now is not done."""
        return self._over

    @property
    def ending(self) -> ApiError:
        """What those are told who come when it is over."""
        return stopping() if self._closing else engine_dead(self.llm.name)

    def between_steps(self, piece: Callable[[], bool]) -> None:
        """Run ``piece`` once between two steps until it says that it is done; one after the other, whoever asks, so that steps do
        not wait for several. It has to see to its own errors."""
        self._commands.put(lambda: self._pieces.append(piece))

    def close(self) -> None:
        """Cancel what is left and end the thread."""
        self._commands.put(None)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return len(self._running) + self.embedding

    def expected_wait(self, tenant: str, priority: str) -> float | None:
        """Seconds that a request which came now would wait for its turn, from the pace of late; None where that is unknown. Of each
        other tenant's as many go before it as of its own, at most."""
        counts = Counter(ticket.job.tenant for ticket in list(self._waiting[priority]))
        ahead = sum(min(count, counts[tenant] + 1) for other, count in counts.items() if other != tenant) + counts[tenant]
        if priority == BATCH:
            ahead += len(self._waiting[INTERACTIVE])
        if ahead == 0 and len(self._running) < self._max_sequences:
            return 0.0
        return None if self._pace is None else self._pace * (ahead + 1)

    def run(self) -> None:
        try:
            while not self._closing:
                self._deliver(self._advance())
            for ticket in self._tickets():
                self._drop(ticket, stopping())
        finally:
            self._over = True
            self._tell_all()
            self.llm.close()

    def _tell_all(self) -> None:
        """The thread ends, whether it should or not: who is still here, or has just come, may not wait for ever."""
        for _ in range(self._commands.qsize()):
            command = self._commands.get()
            if command is not None:
                with suppress(Exception):
                    command()
        for piece in self._pieces:
            with suppress(Exception):
                piece()
        for ticket in self._tickets():
            ticket.post([], self.ending)

    def _advance(self) -> list[Request]:
        """One step and what goes before it. Returns the requests that have news."""
        try:
            self._obey()
            self._expire()
            self._admit()
            if self._pieces and self._pieces[0]():
                self._pieces.popleft()
            return self._engine.step()
        except Exception as problem:
            log.exception("A step of %s failed; the requests that were running end here.", self.llm.name)
            # One that got its last token in that step runs no longer: the engine does not name it again.
            over = [ticket.request for ticket in self._running.values() if ticket.request and ticket.request.finished]
            for request in over:
                if not any(event.completion for event in request.inbox):
                    request.problem = problem
            return [*self._engine.fail(problem), *over]

    def _tickets(self) -> list[Ticket]:
        return [*self._running.values(), *self._waiting[INTERACTIVE], *self._waiting[BATCH]]

    def _obey(self) -> None:
        """Carry out what other threads asked for; wait for it where there is nothing else to do."""
        idle = self._engine.idle and not self.waiting and not self._pieces
        patience = WATCH_SECONDS if self._running else None
        if idle:
            self._last_end = None
        # Only what is there now: who asks without a pause has to let a step pass.
        for _ in range(max(self._commands.qsize(), 1)):
            try:
                command = self._commands.get(block=idle, timeout=patience)
            except queue.Empty:
                return
            idle = False
            if command is None:
                self._closing = True
                return
            command()

    def _admit(self) -> None:
        """Give the engine what it has places for, interactive requests first; among these a tenant's who holds the fewest places,
        then whose turn is longest ago, each tenant's in order of arrival."""
        for tickets in self._waiting.values():
            while tickets:
                held = len(self._engine.scheduler.running) + len(self._engine.scheduler.waiting)
                if held >= self._max_sequences:
                    return
                places = Counter[str]()
                for ticket in self._running.values():
                    places[ticket.job.tenant] += ticket.job.params.n
                first = min(tickets, key=lambda ticket: (places[ticket.job.tenant], self._turns.get(ticket.job.tenant, 0)))
                if held and held + first.job.params.n > self._max_sequences:
                    return
                tickets.remove(first)
                self._turns[first.job.tenant] = next(self._turn)
                self._begin(first)

    def _begin(self, ticket: Ticket) -> None:
        job = ticket.job
        try:
            ticket.request = self._engine.submit(
                job.prompt, job.params, job.tenant, job.id, job.speculation, job.prediction, job.constraint, job.thinking
            )
        except Exception as problem:
            if not isinstance(problem, HastenError):
                log.exception("Request %s could not begin.", job.id)
            self.totals.end("error")
            ticket.post([], problem)
            return
        ticket.times.started = time.monotonic()
        self._running[id(ticket.request)] = ticket

    def _expire(self) -> None:
        """End what has run out of time."""
        now = time.monotonic()
        for tickets in self._waiting.values():
            for ticket in list(tickets):
                deadline = ticket.job.deadline
                if deadline is not None and now - ticket.times.arrived > deadline:
                    self._drop(ticket, late(deadline, self._pace))
        for ticket in self._tickets():
            if now - ticket.times.arrived > ticket.job.timeout:
                self._drop(ticket, too_long(ticket.job.timeout))

    def _deliver(self, told: list[Request]) -> None:
        now = time.monotonic()
        news: list[News] = []
        for request in dict.fromkeys(map(id, told)):
            ticket = self._running.get(request)
            if ticket is None or ticket.request is None:
                continue
            events = list(ticket.request.inbox)
            ticket.request.inbox.clear()
            if events:
                if ticket.times.first is None:
                    ticket.times.first = now
                    ticket.cached = ticket.request.cached
                ticket.times.last = now
            problem = ticket.request.problem
            if ticket.request.finished:
                self._retire(ticket, "error" if problem else events[-1].finish_reason or "stop")
            news.append((ticket, events, problem))
        post_all(news)

    def _drop(self, ticket: Ticket, problem: BaseException | None) -> None:
        """Take a request out, wherever it is, and say why where somebody listens."""
        waiting = self._waiting[ticket.job.priority]
        if ticket.request is not None and id(ticket.request) in self._running:
            self._engine.cancel(ticket.request)
            self._retire(ticket, "cancelled" if problem is None else "error")
        elif ticket in waiting:
            waiting.remove(ticket)
            self.totals.end("cancelled" if problem is None else "error")
        else:
            return
        if problem is not None:
            ticket.post([], problem)

    def _retire(self, ticket: Ticket, reason: str) -> None:
        assert ticket.request is not None
        del self._running[id(ticket.request)]
        self.totals.add(ticket.request, ticket.times, reason)
        now = time.monotonic()
        if self._last_end is not None:
            gap = now - self._last_end
            self._pace = gap if self._pace is None else FORGETTING * self._pace + (1 - FORGETTING) * gap
        self._last_end = now


def too_long(seconds: float) -> ApiError:
    """What ends a request whose time is up. Official clients send a 408 again unless they are told not to: it would only take as
    long once more."""
    return ApiError(
        408,
        f"The request took longer than {seconds:g} seconds, which is the most allowed; ask for less at once.",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


def late(deadline: float, pace: float | None) -> ApiError:
    """The refusal of a request whose deadline cannot be met."""
    return ApiError(
        503,
        f"The server cannot begin this request within its deadline of {deadline:g} seconds; try again later or allow more time.",
        param="deadline",
        code="deadline",
        retry_after=pace or 1.0,
    )
