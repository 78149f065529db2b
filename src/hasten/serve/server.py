"""What all routes of one server share: models, limits, and how a request is read, answered and accounted for."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from starlette.requests import Request

from hasten.core.types import SamplingParams
from hasten.engine.llm import LLM
from hasten.model.thinking import Thinking
from hasten.sampling.constraint import Constraint
from hasten.serve.body import Wire, parsed, read_body, validated
from hasten.serve.errors import api_error
from hasten.serve.generation import Generation
from hasten.serve.limits import Limits
from hasten.serve.models import Models
from hasten.serve.tickets import Job
from hasten.serve.tracing import Tracing
from hasten.serve.wire import Sampled

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Server:
    """``requests``: the answers so far by path and status, for the metrics."""

    models: Models
    limits: Limits
    tracing: Tracing | None = None
    requests: dict[tuple[str, int], int] = field(default_factory=dict)

    async def read(self, request: Request, kind: type[Wire]) -> Wire:
        """The body as a wire type. Raises ApiError."""
        body = await read_body(request, self.limits)
        return await parsed(body, self.limits, lambda value: validated(kind, value))

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
        as the request's. ``stop``, asked once the prompts are made, gives further stop strings; ``thinking`` says how thoughts are
        told apart, where they are."""
        began = time.monotonic() - getattr(request.state, "waited", 0.0)
        host = await self.models.acquire(wire.model)
        try:
            llm, _ = host.ready

            def prepare() -> tuple[list[list[int]], SamplingParams, list[int] | None, Callable[[], Constraint] | None]:
                expected = llm.engine.tokenizer.encode(prediction, add_bos=False) if prediction else None
                made = prompts(llm)
                return made, replace(params, stop=(*params.stop, *stop())), expected, constraint(llm)

            made, settled, expected, constrained = await asyncio.to_thread(prepare)
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
