"""The small routes: models, health, tokens."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten import __version__
from hasten.serve.chat import checked, prompt_of
from hasten.serve.errors import ApiError, engine_dead, invalid
from hasten.serve.models import Host
from hasten.serve.server import server_of
from hasten.serve.wire import ChatRequest, Name, Tool, Wire

PART = 4096  # tokens that are written at once


class TokenizeRequest(Wire):
    """``/tokenize``: a plain prompt, or a conversation through the model's template."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Wire):
    """``/detokenize``."""

    model: Name | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=2**20)]


async def models(request: Request) -> Response:
    """``GET /v1/models``."""
    server = server_of(request)
    names = list(server.models.hosts)
    pages = {"has_more": False, "first_id": names[0], "last_id": names[-1]}  # of Anthropic's form: there is one page
    return JSONResponse({"object": "list", "data": [_described(host) for host in server.models.hosts.values()], **pages})


async def one_model(request: Request) -> Response:
    """``GET /v1/models/{name}``."""
    return JSONResponse(_described(server_of(request).models.find(request.path_params["name"])))


def _described(host: Host) -> dict[str, Any]:
    """In the forms of OpenAI's and Anthropic's clients at once."""
    out: dict[str, Any] = {
        "id": host.name,
        "object": "model",
        "created": host.created,
        "owned_by": "hasten",
        "type": "model",
        "display_name": host.name,
        "created_at": datetime.fromtimestamp(host.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "loaded": host.loaded,
    }
    if host.llm is not None:
        drafters = [drafter.name for drafter in host.llm.engine.drafting.drafters]
        out |= {
            "max_model_len": host.llm.context_length,
            "precision": host.llm.precision,
            "chat": host.chats,
            "drafters": drafters,
            "provenance": host.legend.names(),
        }
    return out


async def live(request: Request) -> Response:
    """``GET /health/live``: the process answers."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """``GET /health`` and ``/health/ready``: requests can be served now."""
    server = server_of(request)
    if not server.models.ready:
        raise ApiError(503, "The model is still loading.", code="loading", retry_after=2)
    for host in server.models.hosts.values():
        if host.worker is not None and not host.worker.is_alive():
            raise engine_dead(host.name)
    return JSONResponse({"status": "ok"})


async def version(request: Request) -> Response:
    """``GET /version``."""
    return JSONResponse({"version": __version__})


async def tokenize(request: Request) -> Response:
    """``POST /tokenize``: a conversation is what a chat of it would show the model."""
    server = server_of(request)
    wire = await server.read(request, TokenizeRequest)
    if (wire.prompt is None) == (wire.messages is None):
        raise invalid("Give prompt or messages, one of them.", "prompt")
    if wire.messages is not None and "add_special_tokens" in wire.model_fields_set:
        raise invalid("add_special_tokens is only for a prompt: a template writes a conversation's own.", "add_special_tokens")
    if wire.prompt is not None and wire.tools:
        raise invalid("tools are only for messages: a plain prompt shows none.", "tools")
    host = await server.models.acquire(wire.model)
    try:
        llm, _ = host.ready
        tokenizer = llm.engine.tokenizer

        def encode() -> list[int]:
            if wire.messages is None:
                return tokenizer.encode(wire.prompt or "", add_bos=wire.add_special_tokens)
            chat = ChatRequest(messages=wire.messages, tools=wire.tools)
            return prompt_of(llm, chat, checked(chat, server.limits))[0]

        def told() -> str:
            tokens = encode()
            strings = (tokenizer.token_text(token) for token in tokens) if wire.return_token_strs else None
            return _body({"count": len(tokens), "max_model_len": llm.context_length}, tokens, strings)

        return Response(await server.prepared(llm, told, refuse=False), media_type="application/json")
    finally:
        server.models.release(host)


def _body(about: dict[str, int], tokens: list[int], strings: Iterator[str] | None) -> str:
    """The answer, written a part at a time: there may be millions of tokens, and within one call of ``json.dumps`` no other thread
    would run, the event loop's neither."""
    lists = {"tokens": _listed(tokens)} | ({"token_strs": _listed(strings)} if strings is not None else {})
    return ",".join([_compact(about)[:-1], *(f'"{name}":{text}' for name, text in lists.items())]) + "}"


def _listed(values: Iterable[int] | Iterable[str]) -> str:
    rest = iter(values)
    parts: list[str] = []
    while part := list(itertools.islice(rest, PART)):
        parts.append(_compact(part)[1:-1])
    return f"[{','.join(parts)}]"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def detokenize(request: Request) -> Response:
    """``POST /detokenize``: the text of tokens, special ones by their names."""
    server = server_of(request)
    wire = await server.read(request, DetokenizeRequest)
    host = await server.models.acquire(wire.model)
    try:
        llm, _ = host.ready
        known = llm.engine.vocabulary
        unknown = next((token for token in wire.tokens if token >= known), None)
        if unknown is not None:
            raise invalid(f"tokens holds {unknown}, which is no token of this model; its ids go from 0 to {known - 1}.", "tokens")
        text = await asyncio.to_thread(llm.engine.tokenizer.decode, wire.tokens, False)
        return JSONResponse({"prompt": text})
    finally:
        server.models.release(host)
