"""What all routes of one server share: models, limits, and how a request is read, answered and accounted for."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from starlette.requests import Request

from hasten.core.errors import InvalidRequest, PromptTooLong
from hasten.core.types import SamplingParams
from hasten.engine.llm import LLM
from hasten.model.long_texts import TooManyTokens, bounded
from hasten.model.thinking import Thinking
from hasten.sampling.constraint import Constraint
from hasten.serve.body import LARGE_BODY, Wire, body_size, parsed, read_body, validated
from hasten.serve.errors import api_error, stopping
from hasten.serve.generation import Generation
from hasten.serve.limits import Limits
from hasten.serve.models import Models
from hasten.serve.tickets import Job
from hasten.serve.tracing import Tracing
from hasten.serve.wire import Sampled
from hasten.serve.worker import late, too_long

Result = TypeVar("Result")
log = logging.getLogger(__name__)
HUGE_BODY = 512 << 10  # bytes; one whose tokens are all counted takes seconds
LARGE_AT_ONCE, HUGE_AT_ONCE = 2, 1


@dataclass(slots=True, eq=False)
class Server:
    """``requests``: the answers so far by path and status, for the metrics."""

    models: Models
    limits: Limits
    tracing: Tracing | None = None
    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    _large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_AT_ONCE))
    _huge: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(HUGE_AT_ONCE))

    def __post_init__(self) -> None:
        self.models.patience = self.limits.request_timeout

    async def read(self, request: Request, kind: type[Wire]) -> Wire:
        """The body as a wire type. Raises ApiError."""
        body = await read_body(request, self.limits)
        return await parsed(body, self.limits, lambda value: validated(kind, value))

    async def prepared(self, llm: LLM, work: Callable[[], Result], *, refuse: bool = True) -> Result:
        """What ``work`` makes of a request's texts, in a thread. Raises what it raises, PromptTooLong for a text that the context
        cannot hold, after little work, and ApiError where it is not done in the time of a request. Unless ``refuse`` such a text
        is read piece by piece.

        Of requests with large bodies a few are worked on at a time, so that the others find threads and cores. Where nobody waits
        any more the work ends with its piece."""
        over = threading.Event()

        def go_on() -> None:
            if over.is_set():
                raise stopping()

        def within() -> Result:
            go_on()
            with bounded(llm.context_length, refuse, go_on):
                try:
                    return work()
                except TooManyTokens as problem:
                    raise _refusal(llm, problem) from None

        size = body_size.get()
        if size <= LARGE_BODY:
            return await asyncio.to_thread(within)
        async with self._in_time(time.monotonic(), None):
            turns = self._large if refuse or size <= HUGE_BODY else self._huge
            await turns.acquire()
            working = asyncio.ensure_future(asyncio.to_thread(within))

            def ended(working: asyncio.Future[Result]) -> None:  # with the thread, which may outlast who waits for it
                turns.release()
                if not working.cancelled():
                    working.exception()  # asyncio would say that nobody asked

            working.add_done_callback(ended)
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:
                over.set()
                raise

    async def generate(
        self,
        request: Request,
        wire: Sampled,
        params: SamplingParams,
        prompts: Callable[[LLM], list[list[int]]],
        *,
        prediction: str | None = None,
        constraint: Callable[[LLM], Callable[[], Constraint] | None] = lambda llm: None,
        stop: Callable[[], tuple[str, ...]] = tuple,
        thinking: Callable[[LLM], Thinking | None] = lambda llm: None,
    ) -> Generation:
        """Bring the model in, make the prompts (off the loop) and put them in the engine's queue; the time that this takes counts
        as the request's, and ends it where it has no more. ``stop``, asked once the prompts are made, gives further stop strings;
        ``thinking`` says how thoughts are told apart, where they are."""
        began = time.monotonic() - getattr(request.state, "waited", 0.0)
        async with self._in_time(began, wire.deadline):
            host = await self.models.acquire(wire.model)
        try:
            llm, _ = host.ready

            def prepare() -> tuple[list[list[int]], SamplingParams, list[int] | None, Callable[[], Constraint] | None]:
                expected = _prediction(llm, prediction) if prediction else None
                made = prompts(llm)
                return made, replace(params, stop=(*params.stop, *stop())), expected, constraint(llm)

            async with self._in_time(began, wire.deadline):
                made, settled, expected, constrained = await self.prepared(llm, prepare)
            state = request.state
            waited = time.monotonic() - began
            jobs = [
                Job(
                    f"{state.request_id}-{at}" if len(made) > 1 else state.request_id,
                    state.tenant,
                    prompt,
                    settled,
                    self.limits.request_timeout,
                    wire.speculation_params,
                    expected,
                    constrained,
                    wire.priority,
                    wire.deadline,
                    waited,
                    thinking(llm),
                )
                for at, prompt in enumerate(made)
            ]
            return Generation(self.models, host, jobs, self.limits)
        except BaseException:
            self.models.release(host)
            raise

    @asynccontextmanager
    async def _in_time(self, began: float, deadline: float | None) -> AsyncIterator[None]:
        """End what is awaited inside when the time of a request is up that began then (monotonic seconds). Raises ApiError."""
        most = self.limits.request_timeout
        seconds = most if deadline is None else min(most, deadline)
        try:
            async with asyncio.timeout(seconds - (time.monotonic() - began)) as clock:
                yield
        except TimeoutError:
            if not clock.expired():
                raise
            raise (too_long(most) if deadline is None or most <= deadline else late(deadline, None)) from None


def _refusal(llm: LLM, found: TooManyTokens) -> PromptTooLong:
    """The engine's own, of a prompt whose tokens were not all counted."""
    try:
        llm.engine.scheduler.check_length(found.count)
    except PromptTooLong as problem:
        return PromptTooLong(str(problem).replace(f"{found.count} tokens", f"more than {found.count - 1} tokens", 1))
    return found


def _prediction(llm: LLM, text: str) -> list[int]:
    """Raises InvalidRequest where the context cannot hold it."""
    try:
        return llm.engine.tokenizer.encode(text, add_bos=False)
    except TooManyTokens as problem:
        count, most = problem.count - 1, llm.context_length
        raise InvalidRequest(
            f"The prediction has more than {count} tokens and the context only {most}; give a shorter one."
        ) from None


def note(request: Request, generation: Generation) -> None:
    """Put what the log and the traces say of a generation where the guard finds it."""
    whole = generation.whole
    request.state.generation = generation
    request.state.log.update(
        model=generation.host.name,
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
        finish_reason=whole[0].finish_reason if len(whole) == len(generation.completions) else "cancelled",
    )


def note_problem(request: Request, problem: BaseException) -> None:
    """The same of an error: its kind, and a trace where it is no user's."""
    error = api_error(problem)
    request.state.log.update(error=error.code or type(problem).__name__)
    if error.status == 500:
        log.error("Request %s failed.", request.state.request_id, exc_info=problem)


def server_of(request: Request) -> Server:
    found: Server = request.app.state.server
    return found


def identifier(prefix: str) -> str:
    return prefix + secrets.token_hex(16)
