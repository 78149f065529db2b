"""Conversations as OpenAI writes them, made into what chat templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.serve.errors import invalid

ROLES = ("system", "developer", "user", "assistant", "tool")
KNOWN = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "tool_calls", "refusal", "audio", "function_call", "annotations", "reasoning_content"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
ONLY_EMPTY = ("refusal", "audio", "function_call", "annotations", "reasoning_content")  # clients send back what they were given


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
    for name in message:
        if name not in KNOWN[role]:
            raise invalid(f"messages[{at}] has an unknown field {name[:40]!r}.", f"messages.{at}.{name[:40]}", "unknown_parameter")
    out = {name: value for name, value in message.items() if name not in ONLY_EMPTY}
    for name in ONLY_EMPTY:
        if message.get(name):
            raise invalid(
                f"messages[{at}].{name} is not supported; leave it out.", f"messages.{at}.{name}", "unsupported_parameter"
            )
    out["role"] = "system" if role == "developer" else role
    if out.get("tool_calls") is None:
        out.pop("tool_calls", None)
    else:
        out["tool_calls"] = _tool_calls(at, out["tool_calls"])
    return out


def _tool_calls(at: int, calls: Any) -> list[dict[str, Any]]:
    """Calls with their arguments as objects, which templates write as JSON themselves."""
    where = f"messages[{at}].tool_calls"
    if not isinstance(calls, list) or not calls:
        raise invalid(f"{where} must be a list of calls.", f"messages.{at}.tool_calls")
    out: list[dict[str, Any]] = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise invalid(f"{where} must hold objects with a function of a name and arguments.", f"messages.{at}.tool_calls")
        arguments = function.get("arguments") or "{}"
        try:
            parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            parsed = arguments  # what a model once wrote wrongly is shown to it as it was
        out.append({"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": parsed}})
    return out
