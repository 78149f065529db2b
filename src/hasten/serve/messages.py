"""``POST /v1/messages``: Anthropic's interface over the same answers, and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.core.results import StreamEvent
from hasten.serve.account import account, joined, provenance
from hasten.serve.anthropic_in import CountTokensRequest, MessagesRequest, as_chat, unfinished
from hasten.serve.chat import begin, counted
from hasten.serve.errors import ApiError, anthropic_body
from hasten.serve.generation import Collected, Generation
from hasten.serve.reply import reply
from hasten.serve.server import identifier, server_of
from hasten.serve.sse import named
from hasten.serve.tools import ToolCall, ToolReader, Toolset, parts_of, read_whole, reader_of

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


async def messages(request: Request) -> Response:
    """Answer a conversation, whole or streamed."""
    server = server_of(request)
    wire = await server.read(request, MessagesRequest)
    chat = await asyncio.to_thread(as_chat, wire)
    generation, tools = await begin(server, request, chat, unfinished(chat), format="output_config.format")
    return await reply(request, generation, Answer(generation, wire, tools), wire.stream)


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation is in the model's own template, also where the context could not hold them."""
    server = server_of(request)
    chat = await asyncio.to_thread(as_chat, await server.read(request, CountTokensRequest))
    return JSONResponse({"input_tokens": await counted(server, chat, unfinished(chat))})


class Answer:
    """Makes Anthropic's objects of what a generation brings."""

    def __init__(self, generation: Generation, wire: MessagesRequest, tools: Toolset | None) -> None:
        self._generation = generation
        self._wire = wire
        self._tools = tools
        self._id = identifier("msg_")
        self._open: str | None = None  # the kind of the content block being sent
        self._block = -1
        self._called = False
        self._broken = False  # off inside a call, which has no input as this interface wants it and is left out
        self._held: dict[str, Any] = {}  # who guessed tokens that are told of with the next piece
        asked = wire.thinking
        self._tells = asked is not None and asked.type != "disabled" and asked.display != "omitted"

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The unstreamed answer."""
        one = answers[0]
        thought = [_thinking(one.thought)] if one.thought and self._tells else []
        read = read_whole(one.text, self._tools)
        self._broken = any(isinstance(part, ToolCall) and not part.whole for part in read)
        parts = [part for part in read if isinstance(part, str) or part.whole] or ([] if thought else [""])
        content = thought + [_text(part) if isinstance(part, str) else _use(part, json.loads(part.arguments)) for part in parts]
        own = account(self._generation.whole, self._wire.provenance)
        if self._wire.provenance:
            own |= provenance(one.provenance, one.pieces, self._generation.host.legend)
        return {
            **self._frame(content),
            **self._ending(one.finish_reason or "stop", any(isinstance(part, ToolCall) for part in parts)),
            "usage": self._usage(sum(completion.usage.cached_tokens for completion in self._generation.whole)),
            "hasten": own,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The streamed answer: message_start, the content blocks, message_delta with the end's reason, message_stop."""
        start = {**self._frame([]), "stop_reason": None, "stop_sequence": None}
        reader = reader_of(self._tools)
        reason = "stop"
        cached: int | None = None
        async for _, event in self._generation.events():
            if cached is None:  # what was cached is known with the first token
                cached = self._generation.cached_tokens
                start["usage"] = self._usage(cached) | {"output_tokens": 0}
                yield named("message_start", {"type": "message_start", "message": start})
                yield named("ping", {"type": "ping"})
            for part in self._of_event(event, reader):
                yield part
            reason = event.finish_reason or reason
        if self._block < 0:
            yield self._begin("text", _text(""))  # an answer has a block, also where it says nothing
        for part in self._close():
            yield part
        delta = {"type": "message_delta", "delta": self._ending(reason, self._called), "usage": self._usage(cached or 0)}
        yield named(
            "message_delta",
            {**delta, "hasten": account(self._generation.whole, self._wire.provenance) | self._held.get("hasten", {})},
        )
        yield named("message_stop", {"type": "message_stop"})

    def error(self, error: ApiError) -> bytes:
        """An error inside a stream."""
        return error_event(error)

    def _of_event(self, event: StreamEvent, reader: ToolReader | None) -> list[bytes]:
        out: list[bytes] = []
        thinks = event.thinks and self._tells
        event = event if self._tells else replace(event, thought="")
        for part, own in parts_of(event, reader, self._generation.host.legend if self._wire.provenance else None):
            own, self._held = joined(self._held, own), {}
            kind = "thinking" if thinks else "text"
            if isinstance(part, ToolCall) and not part.whole:
                self._broken, self._held = True, own
            elif isinstance(part, ToolCall):
                self._called = True
                out += [*self._close(), self._begin("tool_use", _use(part, {}))]
                out.append(self._delta({"type": "input_json_delta", "partial_json": part.arguments}, own))
            elif part == "" and self._open != kind:
                self._held = own
            else:
                out += self._said(kind, _thinking("") if thinks else _text(""), part, own)
        return out

    def _said(self, kind: str, block: dict[str, Any], text: str, own: dict[str, Any]) -> list[bytes]:
        """A piece of text in the open block of that kind; where none is open, it begins as ``block``."""
        begun = [] if self._open == kind else [*self._close(), self._begin(kind, block)]
        return [*begun, self._delta({"type": f"{kind}_delta", kind: text}, own)]

    def _delta(self, delta: dict[str, Any], own: dict[str, Any]) -> bytes:
        return named("content_block_delta", {"type": "content_block_delta", "index": self._block, "delta": delta, **own})

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        self._open = kind
        self._block += 1
        return named("content_block_start", {"type": "content_block_start", "index": self._block, "content_block": block})

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        signed = [self._delta({"type": "signature_delta", "signature": ""}, {})] if self._open == "thinking" else []
        self._open = None
        return [*signed, named("content_block_stop", {"type": "content_block_stop", "index": self._block})]

    def _frame(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._generation.host.name, "content": content}

    def _ending(self, finish: str, called: bool) -> dict[str, Any]:
        found = self._generation.stopped_at
        stopped = found in (self._wire.stop_sequences or ())
        if called and finish == "stop" and not (stopped and self._broken):
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if stopped:
            return {"stop_reason": "stop_sequence", "stop_sequence": found}
        return {"stop_reason": STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}

    def _usage(self, cached: int) -> dict[str, int]:
        return {
            "input_tokens": self._generation.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": sum(completion.usage.completion_tokens for completion in self._generation.whole),
        }


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _thinking(text: str) -> dict[str, Any]:
    """Unsigned: nothing here has to know a thought again."""
    return {"type": "thinking", "thinking": text, "signature": ""}


def _use(call: ToolCall, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id.replace("call_", "toolu_"), "name": call.name, "input": given}


def error_event(error: ApiError) -> bytes:
    """An error inside a stream, in this interface's form."""
    return named("error", anthropic_body(error))
