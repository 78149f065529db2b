"""What clients of OpenAI's newer interface send, and the same in the words of its older one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from hasten.serve.body import validated
from hasten.serve.errors import invalid, unsupported
from hasten.serve.fields import refuse_unknown
from hasten.serve.wire import (
    MOST_NAME,
    ChatRequest,
    Effort,
    Identifier,
    Length,
    Name,
    Priority,
    Speculation,
    Temperature,
    ToolFunction,
    Verbosity,
    Wire,
)

ROLES = ("user", "assistant", "system", "developer")
INCLUDED = frozenset({"reasoning.encrypted_content"})  # reasoning is told in clear text, so that all of it is included


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Wire):
    format: TextFormat | None = None
    verbosity: Verbosity | None = None


class ResponseStreamOptions(Wire):
    include_obfuscation: Literal[False] | None = None


class Reasoning(Wire):
    """How much to reason, what of it to show again, what to tell of it. What a model reasons is told as it is, not summed up."""

    elsewhere = frozenset({"mode"})

    context: Literal["auto", "current_turn", "all_turns"] | None = None
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseFunction(ToolFunction):
    type: Literal["function"]
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class Namespace(Wire):
    """Functions under a common name, which calls of them carry."""

    type: Literal["namespace"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    tools: Annotated[list[ResponseFunction], Field(min_length=1)]


class WebSearch(Wire):
    """A permission to search, which nothing here can make use of; the model is not told of it."""

    type: Literal["web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"]
    external_web_access: bool | None = None
    filters: dict[str, Any] | None = None
    search_context_size: str | None = None
    search_content_types: list[str] | None = None
    user_location: dict[str, Any] | None = None


ResponseTool = Annotated[ResponseFunction | Namespace | WebSearch, Field(discriminator="type")]


class ChosenFunction(Wire):
    type: Literal["function"]
    name: str


class AllowedResponseTools(Wire):
    """Functions of namespaces go by the names that the model knows."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Annotated[ResponseFunction | WebSearch, Field(discriminator="type")]], Field(min_length=1)]


class ResponseInput(Wire):
    """What the model is shown."""

    elsewhere = frozenset({"conversation", "personality", "prompt"})

    model: Name | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | AllowedResponseTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: str | None = None


class InputTokensRequest(ResponseInput):
    """``/v1/responses/input_tokens``."""


class ResponsesRequest(ResponseInput):
    """``/v1/responses``."""

    elsewhere = ResponseInput.elsewhere | {
        "context_management",
        "max_tool_calls",
        "moderation",
        "prompt_cache_options",
        "prompt_cache_retention",
        "top_logprobs",
    }

    max_output_tokens: Length | None = None
    temperature: Temperature | None = None
    top_p: float | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: list[str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    client_metadata: dict[str, Any] | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    seed: int | None = None
    speculation: Literal["auto", "off", "on"] | Speculation | None = None
    provenance: bool = False
    priority: Priority = "interactive"
    deadline: Annotated[float, Field(gt=0, le=86400)] | None = None


def as_chat(wire: ResponseInput) -> ChatRequest:
    """The same request as a conversation. Not for the event loop: it may be long. Raises ApiError (400) for what needs a memory
    that this server has not, among others."""
    if wire.previous_response_id:
        raise unsupported("previous_response_id", "is not supported here: nothing is stored; send the whole conversation as input")
    if isinstance(wire, ResponsesRequest):
        _check_supported(wire)
    turns: list[dict[str, Any]] = [{"role": "system", "content": wire.instructions}] if wire.instructions else []
    items = [{"role": "user", "content": wire.input}] if isinstance(wire.input, str) else wire.input
    for at, item in enumerate(items):
        _add(turns, at, item)
    turns = [turn for turn in turns if turn["content"] or turn.keys() != {"role", "content", "reasoning_content"}]
    if not turns:
        raise invalid("input holds no message and no call.", "input")
    if wire.reasoning is not None and wire.reasoning.context == "current_turn":
        asked = max((at for at, turn in enumerate(turns) if turn["role"] == "user"), default=0)
        turns = [{name: turn[name] for name in turn if name != "reasoning_content"} for turn in turns[:asked]] + turns[asked:]
    fields: dict[str, Any] = {
        "model": wire.model,
        "messages": turns,
        "tools": [{"type": "function", "function": function} for function in _functions(wire)] or None,
        "tool_choice": _choice(wire.tool_choice),
        "parallel_tool_calls": wire.parallel_tool_calls,
        "reasoning_effort": wire.reasoning.effort if wire.reasoning is not None else None,
        "response_format": _format(wire.text.format) if wire.text is not None and wire.text.format is not None else None,
    }
    if isinstance(wire, ResponsesRequest):
        same = ("temperature", "top_p", "seed", "provenance", "priority", "deadline", "speculation")
        fields |= {"max_tokens": wire.max_output_tokens, **{name: getattr(wire, name) for name in same}}
    return validated(ChatRequest, fields)


def _choice(chosen: str | ChosenFunction | AllowedResponseTools | None) -> Any:
    """What to call, as the older interface says it; a search that is allowed is none of its tools."""
    if isinstance(chosen, ChosenFunction):
        return {"type": "function", "function": {"name": chosen.name}}
    if not isinstance(chosen, AllowedResponseTools):
        return chosen
    names = [tool.name for tool in chosen.tools if isinstance(tool, ResponseFunction)]
    if not names:
        raise invalid("tool_choice allows no function; allow one, or send it as none.", "tool_choice")
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": chosen.mode, "tools": tools}}


def in_namespaces(wire: ResponseInput) -> dict[str, tuple[str, str]]:
    """The names by which the model knows the functions of namespaces, each to its namespace and its name there."""
    spaces = [tool for tool in wire.tools or [] if isinstance(tool, Namespace)]
    return {_known_as(function.name, space.name): (space.name, function.name) for space in spaces for function in space.tools}


def _known_as(name: str, namespace: str | None) -> str:
    """What the model calls a function by: two namespaces may have one of the same name."""
    return name if namespace is None else f"{namespace}.{name}"


def _functions(wire: ResponseInput) -> list[dict[str, Any]]:
    """The functions as the older interface has them; what a namespace is for stands with the first of its functions."""
    found: list[dict[str, Any]] = []
    for tool in wire.tools or []:
        if isinstance(tool, ResponseFunction):
            found.append(_function(tool))
        elif isinstance(tool, Namespace):
            inner = [_function(function) | {"name": _known_as(function.name, tool.name)} for function in tool.tools]
            longest = max((function["name"] for function in inner), key=len)
            if len(longest) > MOST_NAME:
                raise invalid(f"The namespace and name {longest!r} have more than {MOST_NAME} characters; shorten one.", "tools")
            told = [text for text in (tool.description, inner[0]["description"]) if text]
            inner[0]["description"] = "\n".join(told) or None
            found += inner
    return found


def _function(tool: ResponseFunction) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "strict": tool.strict}


def _check_supported(wire: ResponsesRequest) -> None:
    if wire.stream_options is not None and not wire.stream:
        raise invalid("stream_options is only for streams; send stream as true or leave it out.", "stream_options")
    for name in ("background", "store"):
        if getattr(wire, name):
            raise unsupported(name, "is not supported here: nothing is stored; leave it out or send false")
    for name in wire.include or []:
        if name not in INCLUDED:
            raise unsupported("include", f"has {name[:60]!r}, which this server cannot tell; leave it out")


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


def _add(turns: list[dict[str, Any]], at: int, item: dict[str, Any]) -> None:
    """Add an item of the input to the conversation. A call, the model's words right before and behind it and what it thought are
    one message; a thought to which nothing belongs is left without content."""
    kind = item.get("type")
    if kind == "function_call":
        if not turns or turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": ""})
        turns[-1].setdefault("tool_calls", []).append(_call(at, item))
    elif kind == "function_call_output":
        turns.append(_output(at, item))
    elif kind == "reasoning":
        parts = item.get("content") if isinstance(item.get("content"), list) else []
        texts = [part.get("text") for part in parts or [] if isinstance(part, dict) and part.get("type") == "reasoning_text"]
        if thought := "\n".join(text for text in texts if isinstance(text, str)):
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant", "content": ""})
            turns[-1]["reasoning_content"] = "\n".join(filter(None, [turns[-1].get("reasoning_content"), thought]))
    else:
        message = _message(at, item)
        open_turn = turns and ("tool_calls" in turns[-1] or (turns[-1].get("reasoning_content") and not turns[-1]["content"]))
        if message["role"] == "assistant" and open_turn:
            turns[-1]["content"] += message["content"]
        else:
            turns.append(message)


def _message(at: int, item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") == "item_reference":  # with store left out, some clients take what they were answered as kept
        raise invalid(
            f"input[{at}] refers to an item of an earlier answer, and nothing is stored here; send store as false, so that your "
            "client sends the items themselves.",
            f"input.{at}",
        )
    if item.get("type") not in (None, "message") or "role" not in item:
        raise invalid(
            f"input[{at}] must be a message with role and content, a function_call, a function_call_output or a reasoning.",
            f"input.{at}",
        )
    role, content = item["role"], item.get("content")
    if role not in ROLES:
        raise invalid(f"input[{at}] has the role {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}.", f"input.{at}.role")
    refuse_unknown(item, frozenset({"type", "role", "content"}), f"input[{at}]", f"input.{at}")
    return {"role": role, "content": _text(content, at, "content")}


def _call(at: int, item: dict[str, Any]) -> dict[str, Any]:
    known = frozenset({"type", "call_id", "name", "namespace", "arguments"})
    refuse_unknown(item, known, f"input[{at}]", f"input.{at}")
    if not all(isinstance(item.get(name), str) for name in ("call_id", "name", "arguments")):
        raise invalid(f"input[{at}] is a function_call and needs a call_id, a name and arguments, each a text.", f"input.{at}")
    if not isinstance(item.get("namespace"), str | None):
        raise invalid(f"input[{at}] has a namespace that is no text.", f"input.{at}.namespace")
    name = _known_as(item["name"], item.get("namespace"))
    return {"id": item["call_id"], "type": "function", "function": {"name": name, "arguments": item["arguments"]}}


def _output(at: int, item: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unknown(item, frozenset({"type", "call_id", "name", "namespace", "output"}), f"input[{at}]", f"input.{at}")
    if not isinstance(item.get("call_id"), str):
        raise invalid(f"input[{at}] is a function_call_output and needs the call_id of its call.", f"input.{at}.call_id")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": _text(item.get("output"), at, "output")}


def _text(content: Any, at: int, name: str) -> str:
    """The text of a string or of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"input[{at}].{name} must be text or a list of parts.", f"input.{at}.{name}")
    kinds = ("input_text", "output_text")
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") in kinds else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise invalid(
            f"input[{at}] has a part that is no text; this server reads input_text and output_text.", f"input.{at}.{name}"
        )
    for part in content:
        refuse_unknown(part, frozenset({"type", "text"}), f"A part of input[{at}]", f"input.{at}.{name}")
    return "\n".join(text for text in texts if text is not None)
