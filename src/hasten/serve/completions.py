"""``POST /v1/completions``: text that goes on, without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hasten.core.results import StreamEvent
from hasten.serve.account import account, provenance, usage
from hasten.serve.constraints import constraint_of
from hasten.serve.errors import ApiError, invalid
from hasten.serve.generation import Collected, Generation
from hasten.serve.logprobs import text_logprobs
from hasten.serve.reply import reply
from hasten.serve.server import identifier, server_of
from hasten.serve.sse import DONE, data, openai_error
from hasten.serve.wire import CompletionRequest, sampling_params


async def completions(request: Request) -> Response:
    """Go on with one prompt or several, whole or streamed."""
    server = server_of(request)
    wire = await server.read(request, CompletionRequest)
    wire.check_supported()
    prompts = wire.prompts()
    if not 0 < len(prompts) <= server.limits.max_batch:
        raise invalid(f"prompt takes from 1 to {server.limits.max_batch} prompts here, not {len(prompts)}.", "prompt")
    if wire.stream_options is not None and not wire.stream:
        raise invalid("stream_options is only for streams; send stream as true or leave it out.", "stream_options")
    params = sampling_params(wire, server.limits, wire.output_limit(server.limits), wire.logprobs)
    generation = await server.generate(
        request,
        wire,
        params,
        lambda llm: [llm.encode(prompt) for prompt in prompts],
        prediction=wire.prediction.text if wire.prediction is not None else None,
        constraint=lambda llm: constraint_of(llm, request.state.tenant, None, wire.structured_outputs),
    )
    return await reply(request, generation, Answer(generation, wire, prompts, params.n), wire.stream)


@dataclass(slots=True)
class Answer:
    """Makes OpenAI's objects of what a generation brings. Choice ``prompt * n + index`` answers that prompt."""

    generation: Generation
    wire: CompletionRequest
    prompts: list[str | list[int]]
    n: int
    id: str = field(default_factory=lambda: identifier("cmpl-"))
    created: int = field(default_factory=lambda: int(time.time()))
    _sent: dict[int, int] = field(default_factory=dict)  # characters of each choice

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The unstreamed answer."""
        own = account(self.generation.whole, self.wire.provenance)
        if self.wire.provenance:
            legend = self.generation.host.legend
            own["provenance"] = [legend.codes(one.provenance) for one in answers]
            own["pieces"] = [one.pieces for one in answers]
            own["legend"] = legend.names()
        tokenizer = self.generation.host.ready[0].engine.tokenizer
        choices = [
            {
                "index": one.prompt * self.n + one.index,
                "text": self._echo(one.prompt) + one.text,
                "logprobs": text_logprobs(one.logprobs, one.pieces, 0, tokenizer) if self.wire.logprobs is not None else None,
                "finish_reason": one.finish_reason,
                **({"token_ids": one.tokens} if self.wire.return_token_ids else {}),
            }
            for one in answers
        ]
        return {**self._frame(choices), "usage": usage(self.generation.whole), "hasten": own}

    async def events(self) -> AsyncIterator[bytes]:
        """The streamed answer: text as it comes; a choice's last piece has its finish reason, the last of all the account."""
        async for prompt, event in self.generation.events():
            yield data(self._chunk(prompt, event))
        if self.wire.stream_options is not None and self.wire.stream_options.include_usage:
            yield data({**self._frame([]), "usage": usage(self.generation.whole)})
        yield DONE

    def error(self, error: ApiError) -> bytes:
        """An error inside a stream."""
        return openai_error(error)

    def _chunk(self, prompt: int, event: StreamEvent) -> dict[str, Any]:
        index = prompt * self.n + event.index
        before = self._sent.get(index)
        text = event.text if before is not None else self._echo(prompt) + event.text
        self._sent[index] = (before or 0) + len(event.text)
        logprobs = None
        if self.wire.logprobs is not None:
            tokenizer = self.generation.host.ready[0].engine.tokenizer
            logprobs = text_logprobs(event.logprobs, event.pieces, before or 0, tokenizer)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": event.finish_reason}
        chunk = self._frame([choice | ({"token_ids": event.tokens} if self.wire.return_token_ids else {})])
        own: dict[str, Any] = {}
        if self.wire.provenance:
            own |= provenance(event.provenance, event.pieces, self.generation.host.legend)
        if event.completion is not None and len(self.generation.whole) == len(self.generation.completions):
            own |= account(self.generation.whole, self.wire.provenance)
        if own:
            chunk["hasten"] = own
        if self.wire.stream_options is not None and self.wire.stream_options.include_usage:
            chunk["usage"] = None
        return chunk

    def _echo(self, prompt: int) -> str:
        if not self.wire.echo:
            return ""
        given = self.prompts[prompt]
        return given if isinstance(given, str) else self.generation.host.ready[0].decode(given)

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.generation.host.name,
            "system_fingerprint": None,
            "choices": choices,
        }
