"""Conversations as OpenAI writes them, made into what chat templates expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hasten.serve.body import plain_json
from hasten.serve.errors import invalid
from hasten.serve.fields import refuse_unknown

ROLES = ("system", "developer", "user", "assistant", "tool")
KNOWN = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "tool_calls"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
ONLY_EMPTY = frozenset({"refusal", "audio", "function_call"})  # clients send back what they were given
# What some clients call a message, though its role says all: lm-evaluation-harness, and those of the newer interface.
NAMED = ("text", "message")
# What a model once thought, under the names that servers and clients have for it. Templates read a text of the first name, or none.
THOUGHT = frozenset({"reasoning", "reasoning_content", "reasoning_details", "thinking_blocks"})


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plain messages. Raises ApiError (400) that names the message and what is wrong with it; contents are checked by the
    template's own door."""
    return [_message(at, message) for at, message in enumerate(messages)]


def _message(at: int, message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(
            f"messages[{at}] has the role {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}.", f"messages.{at}.role"
        )
    where, param = f"messages[{at}]", f"messages.{at}"
    for name in sorted(ONLY_EMPTY):
        if message.get(name):
            raise invalid(f"{where}.{name} is not supported; leave it out.", f"{param}.{name}", "unsupported_parameter")
    known = KNOWN[role] | ONLY_EMPTY | (THOUGHT if role == "assistant" else frozenset())
    refuse_unknown(message, known | ({"type"} if message.get("type") in NAMED else frozenset()), where, param)
    if not isinstance(message.get("name"), str | None):
        raise invalid(f"{where}.name must be text.", f"{param}.name")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise invalid(f"{where} is a tool's answer and needs the tool_call_id of its call.", f"{param}.tool_call_id")
    if isinstance(message.get("content"), list):
        for part in message["content"]:
            if isinstance(part, Mapping) and part.get("type") == "text":
                refuse_unknown(part, frozenset({"type", "text"}), f"A part of {where}", f"{param}.content")
    out = {name: message[name] for name in message if name in KNOWN[role]}
    out["role"] = "system" if role == "developer" else role
    thought = message.get("reasoning_content") or message.get("reasoning")
    if role == "assistant" and isinstance(thought, str) and thought:
        out["reasoning_content"] = thought
    if out.get("tool_calls") in (None, []):
        out.pop("tool_calls", None)
    else:
        out["tool_calls"] = _tool_calls(at, out["tool_calls"])
        if out.get("content") is None:
            out["content"] = ""  # some templates put contents together as text, and fail on what is none
    return out


def _tool_calls(at: int, calls: Any) -> list[dict[str, Any]]:
    """Calls with their arguments as objects, which templates write as JSON themselves."""
    where, param = f"messages[{at}].tool_calls", f"messages.{at}.tool_calls"
    if not isinstance(calls, list):
        raise invalid(f"{where} must be a list of calls.", param)
    out: list[dict[str, Any]] = []
    for call in calls:
        if isinstance(call, Mapping) and call.get("type") not in (None, "function"):
            raise invalid(f"{where} has a call of type {str(call['type'])[:40]!r}; this server knows functions.", param)
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise invalid(f"{where} must hold objects with a function of a name and arguments.", param)
        if not isinstance(call.get("id"), str | None) or not isinstance(function.get("arguments"), str | Mapping | None):
            raise invalid(f"{where} has a call whose id or arguments are no text.", param)
        refuse_unknown(call, frozenset({"type", "function"}), f"A call in {where}", param)
        refuse_unknown(function, frozenset({"name", "arguments"}), f"A call in {where}", param)
        arguments = function.get("arguments") or "{}"
        try:
            parsed = plain_json(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            parsed = arguments  # what a model once wrote wrongly is shown to it as it was
        out.append({"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": parsed}})
    return out
