"""From jobs to events: the part that all generating routes share."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from hasten.core.results import Completion, StreamEvent
from hasten.core.types import FinishReason, TokenLogprob
from hasten.serve.errors import ApiError
from hasten.serve.limits import Limits
from hasten.serve.models import Host, Models
from hasten.serve.tickets import Job, Ticket
from hasten.serve.worker import late

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collected:
    """One whole answer. ``prompt``: which of the request's prompts it answers; ``thought``: what the model thought first."""

    prompt: int
    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    provenance: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    thought: str = ""

    def add(self, event: StreamEvent) -> None:
        self.text += event.text
        self.thought += event.thought
        self.tokens += event.tokens
        self.provenance += event.provenance
        self.pieces += event.pieces
        self.logprobs += event.logprobs
        self.finish_reason = event.finish_reason or self.finish_reason


class Generation:
    """The engine's requests behind one HTTP request, one a prompt. ``end`` has to be called, whatever happens; it lets go of the
    host and cancels what still runs. ``tickets``: one a prompt."""

    def __init__(self, models: Models, host: Host, jobs: list[Job], limits: Limits) -> None:
        """Raises ApiError or InvalidRequest when a job cannot be served, or not now; nothing runs then."""
        llm, worker = host.ready
        for job in jobs:
            llm.engine.check(job.prompt, job.params, job.prediction or [], job.constraint is not None)
            check_length(job.prompt, limits)
        tenant, priority, deadline = jobs[0].tenant, jobs[0].priority, jobs[0].deadline
        check_room(host, len(jobs), limits, tenant, priority)
        wait = worker.expected_wait(tenant, priority)
        if deadline is not None and wait is not None and wait + jobs[0].waited > deadline:
            raise late(deadline, wait)
        self.host = host
        self.completions: list[Completion | None] = [None] * len(jobs)
        self._models = models
        self._worker = worker
        self._interval = limits.stream_interval
        self.tickets = [Ticket(job, asyncio.get_running_loop()) for job in jobs]
        self._early: list[tuple[int, StreamEvent]] = []
        self._seen = [0] * len(jobs)  # tokens of each prompt's answers so far
        host.tickets[tenant] += len(jobs)
        for ticket in self.tickets:
            worker.submit(ticket)
        self._ended = False

    def end(self) -> None:
        """Cancel what still runs. Calling it again does nothing."""
        if self._ended:
            return
        self._ended = True
        for ticket in self.tickets:
            self._worker.cancel(ticket)
        let_go(self.host, self.tickets[0].job.tenant, len(self.tickets))
        self._models.release(self.host)

    async def begin(self, seconds: float) -> None:
        """Wait for the first tokens, but not longer than that: what goes wrong before can still become a status."""
        if len(self.tickets) > 1:
            return
        try:
            async with asyncio.timeout(seconds):
                self._early = [(0, event) for event in await self.tickets[0].next()]
        except TimeoutError:
            return

    def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        """(prompt, event), all that is there of one answer as one event, or as two where its thought ends, at the pace of
        ``stream_interval``. Raises what ended the request."""
        return self._events(self._interval)

    async def collect(self) -> list[Collected]:
        """All answers, whole, in order of prompt and index."""
        found: dict[tuple[int, int], Collected] = {}
        async for prompt, event in self._events(0.0):
            found.setdefault((prompt, event.index), Collected(prompt, event.index)).add(event)
        return [found[key] for key in sorted(found)]

    @property
    def whole(self) -> list[Completion]:
        """The accounts, once all are there."""
        return [completion for completion in self.completions if completion is not None]

    @property
    def stopped_at(self) -> str | None:
        """The stop string that ended the first answer, where one did."""
        return self.whole[0].answers[0].stop_string if self.whole else None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(ticket.job.prompt) for ticket in self.tickets)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answers, as far as they have come."""
        return sum(
            seen if completion is None else completion.usage.completion_tokens
            for seen, completion in zip(self._seen, self.completions, strict=True)
        )

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were in the prefix cache, known with the first event."""
        return sum(ticket.cached for ticket in self.tickets)

    def _noted(self, prompt: int, event: StreamEvent) -> StreamEvent:
        self._seen[prompt] += len(event.tokens)
        if event.completion is not None:
            self.completions[prompt] = event.completion
        return event

    async def _events(self, interval: float) -> AsyncIterator[tuple[int, StreamEvent]]:
        """``events`` with at least that many seconds from what has come until one moment to what has come until the next."""
        async with aclosing(self._arrivals() if len(self.tickets) == 1 else self._side_by_side()) as arrivals:
            async for events in arrivals:
                for prompt, event in merged(events):
                    for part in self._noted(prompt, event).apart():
                        yield prompt, part
                if interval and None in self.completions:
                    await asyncio.sleep(interval)

    async def _arrivals(self) -> AsyncGenerator[list[tuple[int, StreamEvent]], None]:
        """What has come since the last look, of the only prompt."""
        early, self._early = self._early, []
        if early:
            yield early
        while events := await self.tickets[0].next():
            yield [(0, event) for event in events]

    async def _side_by_side(self) -> AsyncGenerator[list[tuple[int, StreamEvent]], None]:
        """What has come since the last look, of several prompts."""
        tasks = {asyncio.ensure_future(ticket.next()): prompt for prompt, ticket in enumerate(self.tickets)}
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                arrived: list[tuple[int, StreamEvent]] = []
                for task in done:
                    prompt = tasks.pop(task)
                    if events := task.result():
                        tasks[asyncio.ensure_future(self.tickets[prompt].next())] = prompt
                        arrived += [(prompt, event) for event in events]
                yield arrived
        finally:
            for task in tasks:
                task.cancel()


def check_length(prompt: list[int], limits: Limits) -> None:
    """Raise ApiError (400) where a prompt has more tokens than this server takes."""
    if limits.max_prompt_tokens and len(prompt) > limits.max_prompt_tokens:
        raise ApiError(
            400,
            f"Prompt is too long: {len(prompt)} tokens > {limits.max_prompt_tokens} maximum on this server; shorten it.",
            code="context_length_exceeded",
        )


def check_room(host: Host, count: int, limits: Limits, tenant: str, priority: str) -> None:
    """Raise ApiError (429) where ``count`` more requests of ``tenant`` are more than it may have waiting or running at once.
    What others have there takes nothing from it."""
    held = host.tickets[tenant]
    if held + count > limits.max_queue:
        raise ApiError(
            429,
            f"The server has {held} of your requests in work and takes at most {limits.max_queue}; try again soon.",
            code="queue_full",
            retry_after=host.ready[1].expected_wait(tenant, priority) or 1.0,
        )


def let_go(host: Host, tenant: str, count: int) -> None:
    """So many requests of ``tenant`` are over."""
    host.tickets[tenant] -= count
    if not host.tickets[tenant]:
        del host.tickets[tenant]


def merged(events: list[tuple[int, StreamEvent]]) -> list[tuple[int, StreamEvent]]:
    """Events of the same answer as one, in the order of the answers' first ones; a completion is never overtaken."""
    if len(events) < 2:
        return events
    out: dict[tuple[int, int], list[StreamEvent]] = {}
    for prompt, event in events:
        out.setdefault((prompt, event.index), []).append(event)
    joined = [(prompt, _joined(parts)) for (prompt, _), parts in out.items()]
    return sorted(joined, key=lambda item: item[1].completion is not None)


def _joined(events: list[StreamEvent]) -> StreamEvent:
    counts = itertools.accumulate((len(event.tokens) for event in events), initial=0)  # of tokens before each
    return StreamEvent(
        events[0].index,
        "".join(event.text for event in events),
        list(itertools.chain.from_iterable(event.tokens for event in events)),
        list(itertools.chain.from_iterable(event.provenance for event in events)),
        events[-1].completion,
        list(itertools.chain.from_iterable(event.pieces for event in events)),
        list(itertools.chain.from_iterable(event.logprobs for event in events)),
        events[-1].finish_reason,
        "".join(event.thought for event in events),
        max(before + event.thought_tokens if event.thought_tokens else 0 for before, event in zip(counts, events, strict=False)),
    )
