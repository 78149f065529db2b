"""``POST /v1/responses``: OpenAI's newer interface, for text and functions, and ``/v1/responses/input_tokens``. Nothing is stored,
so nothing earlier can be referred to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.core.results import StreamEvent
from hasten.serve.account import account, joined, provenance, usage
from hasten.serve.chat import begin, counted
from hasten.serve.errors import ApiError, openai_body
from hasten.serve.generation import Collected, Generation
from hasten.serve.reply import reply
from hasten.serve.responses_in import InputTokensRequest, ResponsesRequest, WebSearch, as_chat, in_namespaces
from hasten.serve.server import identifier, server_of
from hasten.serve.sse import named
from hasten.serve.tools import ToolCall, ToolReader, Toolset, parts_of, read_whole, reader_of


async def responses(request: Request) -> Response:
    """Answer an input, whole or streamed."""
    server = server_of(request)
    wire = await server.read(request, ResponsesRequest)
    chat = await asyncio.to_thread(as_chat, wire)
    generation, tools = await begin(server, request, chat, length="max_output_tokens", format="text.format")
    return await reply(request, generation, Answer(generation, wire, tools), wire.stream)


async def input_tokens(request: Request) -> Response:
    """How many tokens an input is in the model's own template, also where the context could not hold them."""
    server = server_of(request)
    found = await counted(server, await asyncio.to_thread(as_chat, await server.read(request, InputTokensRequest)))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": found})


class Answer:
    """Makes the interface's objects and events of what a generation brings."""

    def __init__(self, generation: Generation, wire: ResponsesRequest, tools: Toolset | None) -> None:
        self._generation = generation
        self._wire = wire
        self._tools = tools
        self._spaces = in_namespaces(wire)
        self._id = identifier("resp_")
        self._created = int(time.time())
        self._number = 0
        self._sent: list[dict[str, Any]] = []  # the items of a stream that are whole
        self._open: dict[str, Any] | None = None  # the message or thought being streamed, with its text so far
        self._held: dict[str, Any] = {}  # who guessed tokens that are told of with the next piece

    def error(self, error: ApiError) -> bytes:
        """The error's own event, and the response that failed by it."""
        return broken_off(error, self._number, self._frame("in_progress"))

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The finished response."""
        one = answers[0]
        parts = read_whole(one.text, self._tools) or ([] if one.thought else [""])
        items = [_reasoning(one.thought, "completed")] if one.thought else []
        items += [_message(part, "completed") if isinstance(part, str) else self._call(part) for part in parts]
        if items[-1]["type"] != "function_call":
            items[-1]["status"] = _status(one)
        return self._finished(one, items)

    async def events(self) -> AsyncIterator[bytes]:
        """The streamed answer, event by event, each with its number."""
        yield self._event("response.created", response=self._frame("in_progress"))
        yield self._event("response.in_progress", response=self._frame("in_progress"))
        reader = reader_of(self._tools)
        whole = Collected(0, 0)
        async for _, event in self._generation.events():
            whole.add(event)
            for made in self._of_event(event, reader):
                yield made
        if not self._sent and self._open is None:
            for made in self._begin(_message("", "in_progress")):  # an answer has an item, also where it says nothing
                yield made
        for made in self._close(_status(whole)):
            yield made
        response = self._finished(whole, self._sent)
        yield self._event(f"response.{response['status']}", response=response, **self._held)

    def _of_event(self, event: StreamEvent, reader: ToolReader | None) -> list[bytes]:
        out: list[bytes] = []
        for part, own in parts_of(event, reader, self._generation.host.legend if self._wire.provenance else None):
            own, self._held = joined(self._held, own), {}
            if isinstance(part, ToolCall):
                out += [*self._close("completed"), *self._called(self._call(part), own)]
                continue
            kind, make = ("reasoning", _reasoning) if event.thinks else ("message", _message)
            if self._open is None or self._open["type"] != kind:
                if part == "":
                    self._held = own
                    continue
                out += [*self._close("completed"), *self._begin(make("", "in_progress"))]
            out.append(self._said(part, own))
        return out

    def _said(self, text: str, own: dict[str, Any]) -> bytes:
        """The event of a piece of text of the open item."""
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        return self._event(f"response.{part['type']}.delta", **self._place(), delta=text, **_beside(part), **own)

    def _begin(self, item: dict[str, Any]) -> list[bytes]:
        """The events with which a message or a thought begins."""
        self._open = item
        return [
            self._event("response.output_item.added", output_index=len(self._sent), item=item | {"content": []}),
            self._event("response.content_part.added", **self._place(), part=item["content"][0]),
        ]

    def _close(self, status: str) -> list[bytes]:
        """The events with which the item ends that is being streamed."""
        if self._open is None:
            return []
        item, place = self._open | {"status": status}, self._place()
        part = item["content"][0]
        out = [
            self._event(f"response.{part['type']}.done", **place, text=part["text"], **_beside(part)),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=len(self._sent), item=item),
        ]
        self._sent.append(item)
        self._open = None
        return out

    def _called(self, item: dict[str, Any], own: dict[str, Any]) -> list[bytes]:
        """The events of a call, whose arguments come in one piece."""
        at = {"output_index": len(self._sent)}
        place = {**at, "item_id": item["id"]}
        arguments = item["arguments"]
        self._sent.append(item)
        return [
            self._event("response.output_item.added", **at, item=item | {"arguments": "", "status": "in_progress"}),
            self._event("response.function_call_arguments.delta", **place, delta=arguments, **own),
            self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=arguments),
            self._event("response.output_item.done", **at, item=item),
        ]

    def _place(self) -> dict[str, Any]:
        """Where the text of the open item stands."""
        assert self._open is not None
        return {"output_index": len(self._sent), "content_index": 0, "item_id": self._open["id"]}

    def _event(self, kind: str, **fields: Any) -> bytes:
        made = named(kind, {"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return made

    def _call(self, call: ToolCall) -> dict[str, Any]:
        space, name = self._spaces.get(call.name, (None, call.name))
        return {
            "type": "function_call",
            "id": call.id.replace("call_", "fc_"),
            "call_id": call.id,
            "name": name,
            **({"namespace": space} if space is not None else {}),
            "arguments": call.arguments,
            "status": "completed" if call.whole else "incomplete",
        }

    def _finished(self, one: Collected, items: list[dict[str, Any]]) -> dict[str, Any]:
        own = account(self._generation.whole, self._wire.provenance)
        if self._wire.provenance:
            own |= provenance(one.provenance, one.pieces, self._generation.host.legend)
        status = _status(one)
        return {
            **self._frame(status),
            "output": items,
            "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
            "usage": self._usage(),
            "hasten": own,
        }

    def _frame(self, status: str) -> dict[str, Any]:
        wire = self._wire
        given = [tool for tool in wire.tools or [] if not isinstance(tool, WebSearch)]
        choice = wire.tool_choice or "auto"
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
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(exclude_none=True),
            "tools": [tool.model_dump(exclude_none=True) for tool in given],
            "text": {"format": {"type": "text"}} | (wire.text.model_dump(by_alias=True, exclude_none=True) if wire.text else {}),
            "reasoning": {"effort": None, "summary": None}
            | (wire.reasoning.model_dump(exclude_none=True) if wire.reasoning is not None else {}),
            "truncation": "disabled",
            "store": False,
            "previous_response_id": None,
            "metadata": wire.metadata or {},
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        sums = usage(self._generation.whole)
        return {
            "input_tokens": sums["prompt_tokens"],
            "input_tokens_details": {**sums["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": sums["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": sums["completion_tokens_details"]["reasoning_tokens"]},
            "total_tokens": sums["total_tokens"],
        }


def _status(answer: Collected) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


def _message(text: str, status: str) -> dict[str, Any]:
    return {"type": "message", "id": identifier("msg_"), "role": "assistant", "status": status, "content": [_part(text)]}


def _reasoning(text: str, status: str) -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": text}
    return {"type": "reasoning", "id": identifier("rs_"), "summary": [], "status": status, "content": [part]}


def _beside(part: dict[str, Any]) -> dict[str, Any]:
    """What the events of a text have beside it."""
    return {"logprobs": []} if part["type"] == "output_text" else {}


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
