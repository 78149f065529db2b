"""``GET /openapi.json``: what the routes take, from the wire types themselves."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten import __version__
from hasten.serve.anthropic_in import CountTokensRequest, MessagesRequest
from hasten.serve.basics import DetokenizeRequest, TokenizeRequest
from hasten.serve.embeddings import EmbeddingRequest
from hasten.serve.responses_in import InputTokensRequest, ResponsesRequest
from hasten.serve.wire import ChatRequest, CompletionRequest

BODIES: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation"),
    "/v1/completions": (CompletionRequest, "Go on with a text"),
    "/v1/responses": (ResponsesRequest, "Answer an input (text and functions)"),
    "/v1/responses/input_tokens": (InputTokensRequest, "How many tokens an input is"),
    "/v1/messages": (MessagesRequest, "Answer a conversation, in Anthropic's form"),
    "/v1/messages/count_tokens": (CountTokensRequest, "How many tokens a conversation is, in Anthropic's form"),
    "/v1/embeddings": (EmbeddingRequest, "Vectors of texts"),
    "/tokenize": (TokenizeRequest, "Text to tokens"),
    "/detokenize": (DetokenizeRequest, "Tokens to text"),
}
GETS = {
    "/v1/models": "The models served",
    "/v1/models/{name}": "One model",
    "/health": "Whether requests can be served",
    "/health/live": "Whether the process answers",
    "/health/ready": "Whether requests can be served",
    "/version": "The version",
    "/metrics": "Numbers in Prometheus' text form",
}
STATUSES = {
    "400": "The request cannot be served as it is; the message says why",
    "401": "No key, or a wrong one",
    "403": "A host or origin that is not allowed, or a key that is for something else",
    "404": "No such model",
    "408": "It took too long",
    "413": "The body is too long",
    "415": "The body is no JSON",
    "429": "The queue is full; see Retry-After",
    "500": "Something broke inside",
    "503": "Not now; see Retry-After",
}


async def openapi(request: Request) -> Response:
    """The document."""
    return JSONResponse(document())


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "object", "required": ["message", "type"]}},
        }
    }
    refused = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    errors = {status: {"description": text, **refused} for status, text in STATUSES.items()}
    paths: dict[str, Any] = {}
    for path, (body, summary) in BODIES.items():
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[body.__name__] = schema
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
        answers: dict[str, Any] = {"application/json": {}}
        if "stream" in body.model_fields:
            answers["text/event-stream"] = {}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": {"200": {"description": "Done", "content": answers}, **errors},
            }
        }
    for path, summary in GETS.items():
        kind = "text/plain" if path == "/metrics" else "application/json"
        answer = {"200": {"description": "Done", "content": {kind: {}}}}
        named = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", path)
        ]
        paths[path] = {"get": {"summary": summary, "parameters": named, "responses": {**answer, **errors}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hasten", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }
