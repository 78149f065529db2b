"""``POST /v1/responses``: OpenAI's newer interface, for text. Nothing is stored, so nothing earlier can be referred to."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from hasten.serve.account import account, provenance, usage
from hasten.serve.body import validated
from hasten.serve.chat import begin
from hasten.serve.errors import ApiError, invalid, openai_body, unsupported
from hasten.serve.fields import refuse_unknown
from hasten.serve.generation import Collected, Generation
from hasten.serve.reply import reply
from hasten.serve.server import identifier, server_of
from hasten.serve.sse import named
from hasten.serve.wire import ChatRequest, Identifier, Length, Name, Priority, Speculation, Temperature, Wire

ROLES = ("user", "assistant", "system", "developer")


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Wire):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Wire):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Wire):
    """``/v1/responses``."""

    elsewhere = frozenset(
        {
            "context_management",
            "conversation",
            "max_tool_calls",
            "moderation",
            "prompt",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning",
            "top_logprobs",
        }
    )

    model: Name | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Length | None = None
    temperature: Temperature | None = None
    top_p: float | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    truncation: Literal["disabled"] | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    include: list[str] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    seed: int | None = None
    speculation: Literal["auto", "off", "on"] | Speculation | None = None
    provenance: bool = False
    priority: Priority = "interactive"
    deadline: Annotated[float, Field(gt=0, le=86400)] | None = None


async def responses(request: Request) -> Response:
    """Answer an input, whole or streamed."""
    server = server_of(request)
    wire = await server.read(request, ResponsesRequest)
    generation, _ = await begin(server, request, as_chat(wire))
    return await reply(request, generation, Answer(generation, wire), wire.stream)


def as_chat(wire: ResponsesRequest) -> ChatRequest:
    """The same request as a conversation. Raises ApiError (400) for what needs a memory that this server has not."""
    if wire.stream_options is not None and not wire.stream:
        raise invalid("stream_options is only for streams; send stream as true or leave it out.", "stream_options")
    for name in ("previous_response_id", "background", "store", "tools", "include"):
        if getattr(wire, name):
            raise unsupported(name, "is not supported here: nothing is stored and only text is given; leave it out or send false")
    turns: list[dict[str, Any]] = [{"role": "system", "content": wire.instructions}] if wire.instructions else []
    items = [{"role": "user", "content": wire.input}] if isinstance(wire.input, str) else wire.input
    turns += [_turn(at, item) for at, item in enumerate(items)]
    fields: dict[str, Any] = {
        "model": wire.model,
        "messages": turns,
        "max_tokens": wire.max_output_tokens,
        "temperature": wire.temperature,
        "top_p": wire.top_p,
        "seed": wire.seed,
        "provenance": wire.provenance,
        "priority": wire.priority,
        "deadline": wire.deadline,
        "speculation": wire.speculation,
        "response_format": _format(wire.text.format) if wire.text is not None and wire.text.format is not None else None,
    }
    return validated(ChatRequest, fields)


def _format(format: TextFormat) -> dict[str, Any]:
    if format.type != "json_schema":
        if format.schema_ is not None:
            raise invalid(f"text.format of type {format.type} takes no schema; send the type json_schema.", "text.format.schema")
        return {"type": format.type}
    if format.schema_ is None:
        raise invalid("text.format of type json_schema needs a schema.", "text.format.schema")
    return {
        "type": format.type,
        "json_schema": {"name": format.name or "answer", "schema": format.schema_, "strict": format.strict},
    }


def _turn(at: int, item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") not in (None, "message") or "role" not in item:
        raise invalid(f"input[{at}] must be a message with role and content.", f"input.{at}")
    role, content = item["role"], item.get("content")
    if role not in ROLES:
        raise invalid(f"input[{at}] has the role {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}.", f"input.{at}.role")
    refuse_unknown(item, frozenset({"type", "role", "content"}), f"input[{at}]", f"input.{at}")
    if not isinstance(content, str | list):
        raise invalid(f"input[{at}].content must be text or a list of parts.", f"input.{at}.content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") in ("input_text", "output_text") else None
            for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise invalid(
                f"input[{at}] has a part that is no text; this server reads input_text and output_text.", f"input.{at}.content"
            )
        for part in content:
            refuse_unknown(part, frozenset({"type", "text"}), f"A part of input[{at}]", f"input.{at}.content")
        content = "\n".join(part for part in parts if part is not None)
    return {"role": role, "content": content}


class Answer:
    """Makes the interface's objects and events of what a generation brings."""

    def __init__(self, generation: Generation, wire: ResponsesRequest) -> None:
        self._generation = generation
        self._wire = wire
        self._id, self._item = identifier("resp_"), identifier("msg_")
        self._created = int(time.time())
        self._number = 0

    def error(self, error: ApiError) -> bytes:
        """The error's own event, and the response that failed by it."""
        return broken_off(error, self._number, self._frame("in_progress"))

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The finished response."""
        one = answers[0]
        complete = one.finish_reason != "length"
        own = account(self._generation.whole, self._wire.provenance)
        if self._wire.provenance:
            own |= provenance(one.provenance, one.pieces, self._generation.host.legend)
        return {
            **self._frame("completed" if complete else "incomplete"),
            "output": [self._message(one.text, "completed" if complete else "incomplete")],
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "usage": self._usage(),
            "hasten": own,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The streamed answer, event by event, each with its number."""
        place = {"output_index": 0, "content_index": 0, "item_id": self._item}
        yield self._event("response.created", response=self._frame("in_progress"))
        yield self._event("response.in_progress", response=self._frame("in_progress"))
        item = self._message("", "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **place, part=_part(""))
        whole = Collected(0, 0)
        async for _, event in self._generation.events():
            whole.add(event)
            if event.text or (self._wire.provenance and event.tokens):
                own = provenance(event.provenance, event.pieces, self._generation.host.legend) if self._wire.provenance else None
                extra = {"hasten": own} if own else {}
                yield self._event("response.output_text.delta", **place, delta=event.text, logprobs=[], **extra)
        response = self.whole([whole])
        yield self._event("response.output_text.done", **place, text=whole.text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(whole.text))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        made = named(kind, {"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return made

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {"type": "message", "id": self._item, "role": "assistant", "status": status, "content": [_part(text)]}

    def _frame(self, status: str) -> dict[str, Any]:
        wire = self._wire
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._generation.host.name,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": wire.instructions,
            "max_output_tokens": wire.max_output_tokens,
            "temperature": 1.0 if wire.temperature is None else wire.temperature,
            "top_p": 1.0 if wire.top_p is None else wire.top_p,
            "parallel_tool_calls": wire.parallel_tool_calls is not False,
            "tool_choice": wire.tool_choice or "auto",
            "tools": [],
            "store": False,
            "previous_response_id": None,
            "metadata": wire.metadata or {},
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        counted = usage(self._generation.whole)
        return {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {**counted["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted["total_tokens"],
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def broken_off(error: ApiError, number: int, response: dict[str, Any] | None) -> bytes:
    """What ends a stream that cannot be finished, after ``number`` events: the error's own one and, where the ``response`` has been
    told of, that it failed."""
    inner = openai_body(error)["error"]
    said = {"code": inner["code"], "message": inner["message"], "param": inner["param"]}
    told = named("error", {"type": "error", "sequence_number": number, **said})
    if response is None:
        return told
    failed = {**response, "status": "failed", "error": {"code": "server_error", "message": error.message}}
    return told + named("response.failed", {"type": "response.failed", "sequence_number": number + 1, "response": failed})


def created_in(part: bytes) -> dict[str, Any] | None:
    """The response that a part of a stream tells of first; None where it tells of none."""
    begin = b"event: response.created\ndata: "
    if not part.startswith(begin):
        return None
    found: dict[str, Any] = json.loads(part[len(begin) :].partition(b"\n")[0])["response"]
    return found
