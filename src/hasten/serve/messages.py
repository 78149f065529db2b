"""``POST /v1/messages``: Anthropic's interface over the same answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from hasten.core.results import StreamEvent
from hasten.serve.account import account, provenance
from hasten.serve.body import validated
from hasten.serve.chat import begin
from hasten.serve.errors import ApiError, anthropic_body, invalid, unsupported
from hasten.serve.generation import Collected, Generation
from hasten.serve.reply import reply
from hasten.serve.server import identifier, server_of
from hasten.serve.sse import named
from hasten.serve.tools import ToolCall, ToolReader, Toolset, read_whole, reader_of
from hasten.serve.wire import ChatRequest, Name, Speculation, Wire

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class AnthropicTool(Wire):
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesRequest(Wire):
    """``/v1/messages``."""

    model: Name
    max_tokens: int
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    system: str | list[dict[str, Any]] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    metadata: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speculation: Literal["auto", "off", "on"] | Speculation | None = None
    provenance: bool = False
    priority: Literal["interactive", "batch"] = "interactive"
    deadline: Annotated[float, Field(gt=0, le=86400)] | None = None


async def messages(request: Request) -> Response:
    """Answer a conversation, whole or streamed."""
    server = server_of(request)
    wire = await server.read(request, MessagesRequest)
    generation, tools = await begin(server, request, as_chat(wire))
    headers = {"request-id": request.state.request_id}  # where Anthropic's clients look for it
    return await reply(request, generation, Answer(generation, wire, tools), wire.stream, error_event, headers)


def as_chat(wire: MessagesRequest) -> ChatRequest:
    """The same request in the other interface's words. Raises ApiError (400)."""
    if wire.thinking is not None and wire.thinking.get("type") != "disabled":
        raise unsupported("thinking")
    turns: list[dict[str, Any]] = []
    if wire.system is not None:
        turns.append({"role": "system", "content": _text(wire.system, "system")})
    for at, message in enumerate(wire.messages):
        turns += _turns(at, message)
    choice = wire.tool_choice
    chosen: Any = None
    if choice is not None:
        chosen = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
        if choice.type == "tool":
            chosen = {"type": "function", "function": {"name": choice.name or ""}}
    fields: dict[str, Any] = {
        "model": wire.model,
        "messages": turns,
        "max_tokens": wire.max_tokens,
        "temperature": wire.temperature,
        "top_p": wire.top_p,
        "top_k": wire.top_k,
        "stop": wire.stop_sequences,
        "tool_choice": chosen,
        "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
        "provenance": wire.provenance,
        "priority": wire.priority,
        "deadline": wire.deadline,
        "speculation": wire.speculation,
    }
    if wire.tools:
        fields["tools"] = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.input_schema}}
            for t in wire.tools
        ]
    return validated(ChatRequest, fields)


def _turns(at: int, message: dict[str, Any]) -> list[dict[str, Any]]:
    """One of Anthropic's messages; results of tools become messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant") or set(message) - {"role", "content"}:
        raise invalid(f"messages[{at}] must have the role user or assistant, and a content, and nothing else.", f"messages.{at}")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise invalid(f"messages[{at}].content must be text or a list of blocks.", f"messages.{at}.content")
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_text([block], f"messages[{at}]"))
        elif kind == "tool_use" and role == "assistant":
            arguments = block.get("input")
            if arguments is not None and not isinstance(arguments, dict):
                raise invalid(f"messages[{at}] has a tool_use whose input is no object.", f"messages.{at}")
            function = {"name": block.get("name"), "arguments": json.dumps(arguments or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result" and role == "user":
            text = "" if block.get("content") is None else _text(block["content"], f"messages[{at}]")
            results.append({"role": "tool", "content": text, "tool_call_id": block.get("tool_use_id")})
        else:
            raise invalid(
                f"messages[{at}] has a block of type {str(kind)[:40]!r}; this server reads text and tools.", f"messages.{at}"
            )
    out = results
    if texts or calls:
        turn: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
        out = [*results, turn | ({"tool_calls": calls} if calls else {})]
    return out


def _text(value: Any, where: str) -> str:
    """The text of a string or of text blocks."""
    if isinstance(value, str):
        return value
    blocks = value if isinstance(value, list) else [value]
    texts = [block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None for block in blocks]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in texts):
        raise invalid(f"{where} must be text, or a list of text blocks.", where)
    return "\n".join(text for text in texts if text is not None)


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

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The unstreamed answer."""
        one = answers[0]
        text, calls = read_whole(one.text, self._tools)
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text or not calls else []
        content += [_use(call, json.loads(call.arguments)) for call in calls]
        own = account(self._generation.whole, self._wire.provenance)
        if self._wire.provenance:
            own |= provenance(one.provenance, one.pieces, self._generation.host.legend)
        return {
            **self._frame(content),
            **self._ending(one.finish_reason or "stop", bool(calls)),
            "usage": self._usage(),
            "hasten": own,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The streamed answer: message_start, the content blocks, message_delta with the end's reason, message_stop."""
        start = {**self._frame([]), "stop_reason": None, "stop_sequence": None}
        start["usage"] = {"input_tokens": self._generation.prompt_tokens, "output_tokens": 0}
        yield named("message_start", {"type": "message_start", "message": start})
        yield named("ping", {"type": "ping"})
        reader = reader_of(self._tools)
        reason = "stop"
        async for _, event in self._generation.events():
            for part in self._of_event(event, reader):
                yield part
            reason = event.finish_reason or reason
        for part in self._close():
            yield part
        delta = {"type": "message_delta", "delta": self._ending(reason, self._called), "usage": self._usage()}
        yield named("message_delta", {**delta, "hasten": account(self._generation.whole, self._wire.provenance)})
        yield named("message_stop", {"type": "message_stop"})

    def _of_event(self, event: StreamEvent, reader: ToolReader | None) -> list[bytes]:
        text, calls = reader.take(event) if reader is not None else (event.text, [])
        out: list[bytes] = []
        if text or (self._wire.provenance and event.tokens):
            if self._open != "text":
                out += [*self._close(), self._begin("text", {"type": "text", "text": ""})]
            delta: dict[str, Any] = {
                "type": "content_block_delta",
                "index": self._block,
                "delta": {"type": "text_delta", "text": text},
            }
            if self._wire.provenance:
                delta["hasten"] = provenance(event.provenance, event.pieces, self._generation.host.legend)
            out.append(named("content_block_delta", delta))
        for call in calls:
            self._called = True
            out += [*self._close(), self._begin("tool_use", _use(call, {}))]
            inner = {"type": "input_json_delta", "partial_json": call.arguments}
            out.append(named("content_block_delta", {"type": "content_block_delta", "index": self._block, "delta": inner}))
        return out

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        self._open = kind
        self._block += 1
        return named("content_block_start", {"type": "content_block_start", "index": self._block, "content_block": block})

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        return [named("content_block_stop", {"type": "content_block_stop", "index": self._block})]

    def _frame(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._generation.host.name, "content": content}

    def _ending(self, finish: str, called: bool) -> dict[str, Any]:
        if called and finish == "stop":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        found = self._generation.stopped_at
        if found in (self._wire.stop_sequences or ()):
            return {"stop_reason": "stop_sequence", "stop_sequence": found}
        return {"stop_reason": STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}

    def _usage(self) -> dict[str, int]:
        whole = self._generation.whole
        cached = sum(completion.usage.cached_tokens for completion in whole)
        return {
            "input_tokens": sum(completion.usage.prompt_tokens for completion in whole) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": sum(completion.usage.completion_tokens for completion in whole),
        }


def _use(call: ToolCall, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id.replace("call_", "toolu_"), "name": call.name, "input": given}


def error_event(error: ApiError) -> bytes:
    """An error inside a stream, in this interface's form."""
    return named("error", anthropic_body(error))
