"""``POST /v1/embeddings``. ``pooling`` is "mean" or "last"; the answer says which it was."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from starlette.requests import Request
from starlette.responses import Response

from hasten.core.types import SamplingParams
from hasten.engine.embedding import Pooling, embed
from hasten.serve.errors import invalid
from hasten.serve.generation import check_length, check_room, let_go
from hasten.serve.limits import Limits
from hasten.serve.models import Host
from hasten.serve.server import server_of
from hasten.serve.sse import while_connected
from hasten.serve.tickets import INTERACTIVE
from hasten.serve.wire import Identifier, Name, Wire
from hasten.serve.worker import Worker, too_long


class EmbeddingRequest(Wire):
    """``/v1/embeddings``."""

    model: Name | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Pooling = "mean"
    dimensions: int | None = None
    user: Identifier | None = None


async def embeddings(request: Request) -> Response:
    """One vector of length 1 for each input."""
    server = server_of(request)
    wire = await server.read(request, EmbeddingRequest)
    inputs: list[Any] = [wire.input] if isinstance(wire.input, str) or _tokens(wire.input) else list(wire.input)
    most = server.limits.max_embedding_inputs
    if not 0 < len(inputs) <= most:
        raise invalid(f"input takes from 1 to {most} entries here, not {len(inputs)}.", "input")
    began = time.monotonic() - getattr(request.state, "waited", 0.0)
    host = await server.models.acquire(wire.model)
    try:
        llm, worker = host.ready
        size = llm.engine.executor.decoder.description.hidden_size
        if wire.dimensions not in (None, size):
            raise invalid(f"dimensions has to be {size} here: this model's vectors cannot be shortened.", "dimensions")
        prompts = await server.prepared(llm, lambda: [llm.encode(one) for one in inputs])
        for prompt in prompts:
            llm.engine.check(prompt, SamplingParams(max_tokens=1), [])
            check_length(prompt, server.limits)
        count = sum(map(len, prompts))
        request.state.log.update(model=host.name, prompt_tokens=count)
        left = server.limits.request_timeout - (time.monotonic() - began)
        with _counted(host, server.limits, request.state.tenant):
            vectors = await while_connected(request, _all_embedded(worker, prompts, wire.pooling, left))
    except TimeoutError:
        raise too_long(server.limits.request_timeout) from None
    finally:
        server.models.release(host)
    about = {
        "object": "list",
        "model": host.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
        "hasten": {"pooling": wire.pooling, "normalised": True, "precision": llm.precision},
    }
    return Response(await asyncio.to_thread(_body, about, vectors, wire.encoding_format), media_type="application/json")


@contextmanager
def _counted(host: Host, limits: Limits, tenant: str) -> Iterator[None]:
    """As one of the requests that wait or run. Raises ApiError (429) where there are enough of them."""
    check_room(host, 1, limits, tenant, INTERACTIVE)
    host.tickets[tenant] += 1
    try:
        yield
    finally:
        let_go(host, tenant, 1)


async def _all_embedded(worker: Worker, prompts: list[list[int]], pooling: Pooling, seconds: float) -> list[torch.Tensor]:
    """One vector a prompt. Raises TimeoutError when that takes longer."""
    async with asyncio.timeout(seconds):
        return [await _embedded(worker, prompt, pooling) for prompt in prompts]


def _accounted(worker: Worker, prompt: list[int], pooling: Pooling) -> Generator[torch.Tensor | None, None, None]:
    """``embed``, seen by the metrics."""
    worker.embedding += 1
    try:
        with closing(embed(worker.llm.engine, prompt, pooling)) as chunks:
            for vector in chunks:
                if vector is not None:
                    worker.totals.add_embedding(len(prompt))
                yield vector
    finally:
        worker.embedding -= 1


async def _embedded(worker: Worker, prompt: list[int], pooling: Pooling) -> torch.Tensor:
    """The vector of one input, computed chunk by chunk between the engine's steps."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[torch.Tensor] = loop.create_future()
    chunks = _accounted(worker, prompt, pooling)

    def resolve(vector: torch.Tensor | None, problem: Exception | None) -> None:
        if done.done():
            return
        if problem is not None:
            done.set_exception(problem)
        elif vector is not None:
            done.set_result(vector)

    def tell(report: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(report)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def piece() -> bool:
        if done.cancelled() or worker.over:
            chunks.close()
            tell(lambda: resolve(None, worker.ending))
            return True
        try:
            vector = next(chunks)
        except Exception as problem:
            failed = problem
            tell(lambda: resolve(None, failed))
            return True
        if vector is None:
            return False
        chunks.close()
        tell(lambda: resolve(vector, None))
        return True

    worker.between_steps(piece)
    if worker.over:  # maybe before it was called
        resolve(None, worker.ending)
    return await done


def _tokens(value: Any) -> bool:
    return bool(value) and isinstance(value[0], int)


def _body(about: dict[str, Any], vectors: list[torch.Tensor], form: str | None) -> str:
    """The answer. Not for the event loop: two thousand vectors are tens of megabytes. Each is written by itself, for within one
    call of ``json.dumps`` no other thread would run, the loop's neither."""
    entries = [f'{{"object":"embedding","index":{at},"embedding":{_written(vector, form)}}}' for at, vector in enumerate(vectors)]
    return f'{json.dumps(about)[:-1]},"data":[{",".join(entries)}]}}'


def _written(vector: torch.Tensor, form: str | None) -> str:
    """As JSON. Nine digits tell every number of four bytes from its neighbours; more would only be longer. Raises ValueError where
    a number is none, for which JSON has no word."""
    numbers = vector.numpy().astype("<f4")
    if not np.isfinite(numbers).all():
        raise ValueError("A vector of an embedding is not finite.")
    if form == "base64":
        return f'"{base64.b64encode(numbers.tobytes()).decode()}"'
    return "[" + ",".join(["%.9g"] * len(numbers)) % tuple(numbers.tolist()) + "]"
