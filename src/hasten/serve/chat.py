"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hasten.core.results import StreamEvent
from hasten.engine.llm import LLM
from hasten.model.tokenizer import Tokenizer
from hasten.serve.account import account, provenance, usage
from hasten.serve.constraints import constraint_of
from hasten.serve.errors import ApiError, invalid
from hasten.serve.generation import Collected, Generation
from hasten.serve.limits import Limits
from hasten.serve.logprobs import chat_logprobs
from hasten.serve.messages_in import for_template
from hasten.serve.reply import reply
from hasten.serve.server import Server, identifier, server_of
from hasten.serve.sse import DONE, data, openai_error
from hasten.serve.tools import ToolCall, ToolReader, Toolset, read_whole, reader_of, told_apart, toolset_of
from hasten.serve.wire import ChatRequest, TemplateValue, check_range, sampling_params


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or streamed."""
    server = server_of(request)
    wire = await server.read(request, ChatRequest)
    wire.check_supported()
    generation, tools = await begin(server, request, wire)
    return await reply(request, generation, Answer(generation, wire, tools), wire.stream)


async def begin(
    server: Server,
    request: Request,
    wire: ChatRequest,
    unfinished: bool = False,
    length: str | None = None,
    format: str = "response_format",
) -> tuple[Generation, Toolset | None]:
    """Check the request and queue it. ``unfinished``: the answer goes on with the last message. ``length`` and ``format``: what the
    client calls ``max_tokens`` and ``response_format``, where it asks over another interface. Raises ApiError."""
    top = _top_logprobs(wire, server.limits.max_logprobs)
    messages = await asyncio.to_thread(checked, wire, server.limits)
    tools: list[Toolset | None] = [None]
    params = sampling_params(wire, server.limits, getattr(wire, wire.length), top, length or wire.length)
    if wire.stream_options is not None and not wire.stream:
        raise invalid("stream_options is only for streams; send stream as true or leave it out.", "stream_options")

    def prompts(llm: LLM) -> list[list[int]]:
        prompt, tools[0] = prompt_of(llm, wire, messages, unfinished)
        return [prompt]

    generation = await server.generate(
        request,
        wire,
        params,
        prompts,
        prediction=wire.prediction.text if wire.prediction is not None else None,
        constraint=lambda llm: constraint_of(
            llm, request.state.tenant, wire.response_format, wire.structured_outputs, tools[0], format
        ),
        stop=lambda: tools[0].stop if tools[0] is not None else (),
        thinking=lambda llm: None if wire.reasoning_format == "none" else llm.thinking,
    )
    return generation, tools[0]


def checked(wire: ChatRequest, limits: Limits) -> list[dict[str, Any]]:
    """The messages as templates expect them. Not for the event loop: there may be many. Raises ApiError (400)."""
    if wire.tools is not None and len(wire.tools) > limits.max_tools:
        raise invalid(
            f"tools takes at most {limits.max_tools} entries here, not {len(wire.tools)}; send fewer, or start the server with a "
            "higher --max-tools.",
            "tools",
        )
    return for_template(wire.messages)


def prompt_of(
    llm: LLM, wire: ChatRequest, messages: list[dict[str, Any]], unfinished: bool = False
) -> tuple[list[int], Toolset | None]:
    """The tokens of a conversation, and the tools that the model is shown in it. Not for the event loop: a template and a long text
    take their time. Raises ApiError or InvalidRequest (400)."""
    if not llm.has_chat_template:
        raise invalid("This model has no chat template and cannot chat; use /v1/completions.", "model")
    tools = toolset_of(wire.with_allowed_tools(), llm.chat_template)
    shown = tools.shown if tools is not None else None
    return llm.render_chat(messages, tools=shown, extra=_template_values(llm, wire), unfinished=unfinished), tools


def _template_values(llm: LLM, wire: ChatRequest) -> dict[str, TemplateValue]:
    """What the request says to the template. Not to reason at all is said there, where a template has a word for it."""
    silent = wire.reasoning_effort == "none" and "enable_thinking" in (llm.chat_template or "")
    return ({"enable_thinking": False} if silent else {}) | (wire.chat_template_kwargs or {})


async def counted(server: Server, wire: ChatRequest, unfinished: bool = False) -> int:
    """How many tokens a conversation is, of whatever length. Raises ApiError or InvalidRequest (400)."""
    messages = await asyncio.to_thread(checked, wire, server.limits)
    host = await server.models.acquire(wire.model)
    try:
        llm, _ = host.ready
        prompt, _ = await server.prepared(llm, lambda: prompt_of(llm, wire, messages, unfinished), refuse=False)
    finally:
        server.models.release(host)
    return len(prompt)


def _top_logprobs(wire: ChatRequest, most: int) -> int | None:
    if not wire.logprobs:
        if wire.top_logprobs:
            raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
        return None
    check_range("top_logprobs", wire.top_logprobs, 0, most)
    return wire.top_logprobs or 0


@dataclass(slots=True)
class _Stream:
    """What has been sent of one answer."""

    reader: ToolReader | None
    begun: bool = False
    calls: int = 0
    broken: bool = False  # off, inside a call


@dataclass(slots=True)
class Answer:
    """Makes OpenAI's objects of what a generation brings."""

    generation: Generation
    wire: ChatRequest
    tools: Toolset | None
    id: str = field(default_factory=lambda: identifier("chatcmpl-"))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.generation.host.ready[0].engine.tokenizer

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The unstreamed answer."""
        own = account(self.generation.whole, self.wire.provenance)
        if self.wire.provenance:
            legend = self.generation.host.legend
            own["provenance"] = [legend.codes(one.provenance) for one in answers]
            own["pieces"] = [one.pieces for one in answers]
            own["legend"] = legend.names()
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.generation.host.name,
            "choices": [self._choice(one) for one in answers],
            "usage": usage(self.generation.whole),
            "system_fingerprint": None,
            "hasten": own,
        }

    def _choice(self, answer: Collected) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        finish: str = answer.finish_reason or "stop"
        if answer.thought:
            message["reasoning_content"] = answer.thought
        words, calls = told_apart(read_whole(answer.text, self.tools))
        message["content"] = words if words.strip() or not calls else None
        if calls:
            message["tool_calls"] = [call.to_json() for call in calls]
            finish = "tool_calls" if finish == "stop" and all(call.whole for call in calls) else finish
        return {
            "index": answer.index,
            "message": message,
            "logprobs": chat_logprobs(answer.logprobs, self._tokenizer) if self.wire.logprobs else None,
            "finish_reason": finish,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The streamed answer: for each choice a chunk with its role, its text as it comes, one with its finish reason; the last of
        these has the account. Then the usage, where asked for, and the end mark."""
        streams: dict[int, _Stream] = {}
        async for _, event in self.generation.events():
            if event.index not in streams:
                streams[event.index] = _Stream(reader_of(self.tools))
            for chunk in self._of_event(event, streams[event.index]):
                yield data(chunk)
        if self.wire.stream_options is not None and self.wire.stream_options.include_usage:
            yield data({**self._frame([]), "usage": usage(self.generation.whole)})
        yield DONE

    def error(self, error: ApiError) -> bytes:
        """An error inside a stream."""
        return openai_error(error)

    def _of_event(self, event: StreamEvent, stream: _Stream) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if not stream.begun:
            stream.begun = True
            out.append(self._delta(event.index, {"role": "assistant", "content": "", "refusal": None}))
        name, text, calls = "content", event.text, list[ToolCall]()
        if event.thinks:
            name, text = "reasoning_content", event.thought
        elif stream.reader is not None:
            text, calls = told_apart(stream.reader.take(event))
        if text or event.logprobs or (self.wire.provenance and event.tokens):
            chunk = self._delta(event.index, {name: text})
            if self.wire.logprobs:
                chunk["choices"][0]["logprobs"] = chat_logprobs(event.logprobs, self._tokenizer)
            if self.wire.provenance:
                chunk["hasten"] = provenance(event.provenance, event.pieces, self.generation.host.legend)
            out.append(chunk)
        for call in calls:
            out.append(self._delta(event.index, {"tool_calls": [{"index": stream.calls, **call.to_json()}]}))
            stream.calls += 1
            stream.broken = not call.whole
        if event.finish_reason is not None:
            called = stream.calls and not stream.broken and event.finish_reason == "stop"
            finish = "tool_calls" if called else event.finish_reason
            chunk = self._delta(event.index, {}, finish)
            if event.completion is not None:
                chunk["hasten"] = account(self.generation.whole, self.wire.provenance)
            out.append(chunk)
        return out

    def _delta(self, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return self._frame([{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}])

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.generation.host.name,
            "system_fingerprint": None,
            "choices": choices,
        }
        if self.wire.stream_options is not None and self.wire.stream_options.include_usage:
            frame["usage"] = None
        return frame
