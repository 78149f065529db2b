"""What Anthropic's clients send, and the same in the other interface's words."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from hasten.serve.body import validated
from hasten.serve.errors import ApiError, invalid
from hasten.serve.fields import refuse_unknown
from hasten.serve.wire import AnthropicTemperature, ChatRequest, Effort, FunctionName, Length, Name, Priority, Speculation, Wire


class AnthropicTool(Wire):
    type: Literal["custom"] | None = None  # first, so that of a tool of the provider's own this is what is wrong
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    # Taken and without effect on an answer: the cache is always on, arguments come when they are whole.
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[dict[str, Any]] | None = None


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Wire):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Wire):
    format: OutputFormat | None = None
    effort: Effort | None = None


class Thinking(Wire):
    """Whether the answer has blocks of thinking. Only a template can keep a model from thinking, and nothing here counts a
    budget."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Length | None = None
    display: Literal["summarized", "omitted"] | None = None


class AllThinking(Wire):
    type: Literal["all"]


class ThinkingTurns(Wire):
    type: Literal["thinking_turns"]
    value: Annotated[int, Field(ge=1)]


class ClearThinking(Wire):
    """Leaves out earlier turns' thinking but that of so many of the last ones; of what is kept a template may show less."""

    type: Literal["clear_thinking_20251015"]
    keep: Annotated[AllThinking | ThinkingTurns, Field(discriminator="type")] | Literal["all"] = ThinkingTurns(
        type="thinking_turns", value=1
    )


class ContextManagement(Wire):
    edits: list[ClearThinking] | None = None


class Conversation(Wire):
    """What the model is shown."""

    elsewhere = frozenset(
        {
            "betas",
            "billing_policy",
            "compaction",
            "container",
            "diagnostics",
            "fallback_credit_token",
            "fallbacks",
            "inference_geo",
            "mcp_servers",
            "output_format",
            "speed",
            "user_profile_id",
            "workspace_id",
        }
    )

    model: Name
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    context_management: ContextManagement | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None  # taken; the cache is always on
    thread: dict[str, Any] | None = None  # refused, in the words by which a client goes on without


class CountTokensRequest(Conversation):
    """``/v1/messages/count_tokens``."""


class MessagesRequest(Conversation):
    """``/v1/messages``."""

    max_tokens: Length
    temperature: AnthropicTemperature | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speculation: Literal["auto", "off", "on"] | Speculation | None = None
    provenance: bool = False
    priority: Priority = "interactive"
    deadline: Annotated[float, Field(gt=0, le=86400)] | None = None


def as_chat(wire: Conversation) -> ChatRequest:
    """The same request in the other interface's words. Not for the event loop: it may be long. Raises ApiError (400)."""
    if wire.thread is not None:
        raise ApiError(
            400,
            "'thread' is not supported here: nothing is stored; send the whole conversation without thread.",
            param="thread",
            code="unsupported_parameter",
            details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
        )
    if wire.thinking is not None and wire.thinking.type != "enabled" and wire.thinking.budget_tokens is not None:
        raise invalid(f"thinking of type {wire.thinking.type} takes no budget_tokens.", "thinking.budget_tokens")
    system = "" if wire.system is None else _text(wire.system, "system")
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for at, message in enumerate(wire.messages):
        turns += _turns(at, message)
    for edit in (wire.context_management and wire.context_management.edits) or ():
        if isinstance(edit.keep, ThinkingTurns):
            for turn in [turn for turn in turns if "reasoning_content" in turn][: -edit.keep.value]:
                del turn["reasoning_content"]
    if not turns:
        raise invalid("messages hold no block of text or tools.", "messages")
    choice = wire.tool_choice
    if choice is not None and choice.name is not None and choice.type != "tool":
        raise invalid(f"tool_choice of type {choice.type} takes no name.", "tool_choice")
    chosen: Any = None
    if choice is not None:
        chosen = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
        if choice.type == "tool":
            chosen = {"type": "function", "function": {"name": choice.name or ""}}
    fields: dict[str, Any] = {
        "model": wire.model,
        "messages": turns,
        "tool_choice": chosen,
        "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
        "reasoning_effort": _effort(wire),
    }
    if wire.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                    "strict": tool.strict,
                },
            }
            for tool in wire.tools
        ]
    if wire.output_config is not None and wire.output_config.format is not None:
        if turns[-1]["role"] == "assistant":
            raise invalid(
                "output_config.format needs an answer of its own; let a user's message be the last.", "output_config.format"
            )
        schema = {"name": "answer", "schema": wire.output_config.format.schema_, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return validated(ChatRequest, fields | (_sampling(wire) if isinstance(wire, MessagesRequest) else {}))


def _effort(wire: Conversation) -> Effort | None:
    if wire.thinking is not None and wire.thinking.type == "disabled":
        return "none"
    return wire.output_config.effort if wire.output_config is not None else None


def unfinished(chat: ChatRequest) -> bool:
    """Whether the last message is the model's own, with which the answer goes on. One with calls is over: they stand at its end."""
    return bool(chat.messages[-1]["role"] == "assistant" and "tool_calls" not in chat.messages[-1])


def _sampling(wire: MessagesRequest) -> dict[str, Any]:
    same = ("max_tokens", "temperature", "top_p", "top_k", "provenance", "priority", "deadline", "speculation")
    return {"stop": wire.stop_sequences, **{name: getattr(wire, name) for name in same}}


def _turns(at: int, message: dict[str, Any]) -> list[dict[str, Any]]:
    """One of Anthropic's messages; results of tools become messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system") or set(message) - {"role", "content"}:
        raise invalid(
            f"messages[{at}] must have the role user, assistant or system, and a content, and nothing else.", f"messages.{at}"
        )
    if role == "system" and at == 0:
        raise invalid("messages[0] must not have the role system; send its content as system.", "messages.0.role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise invalid(f"messages[{at}].content must be text or a list of blocks.", f"messages.{at}.content")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_text([block], f"messages[{at}]"))
        elif kind == "tool_use" and role == "assistant":
            calls.append(_call(at, block))
        elif kind == "tool_result" and role == "user":
            results.append(_result(at, block))
        elif kind == "thinking" and role == "assistant" and isinstance(block.get("thinking"), str):
            thoughts += filter(None, [block["thinking"]])
        elif role != "assistant" or kind not in ("thinking", "redacted_thinking"):
            raise invalid(
                f"messages[{at}] has a block of type {str(kind)[:40]!r}; this server reads text and tools.", f"messages.{at}"
            )
    out = results
    if texts or calls:
        turn: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
        turn |= {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
        out = [*results, turn | ({"tool_calls": calls} if calls else {})]
    return out


def _call(at: int, block: dict[str, Any]) -> dict[str, Any]:
    """A tool_use block as the other interface has it."""
    refuse_unknown(block, frozenset({"type", "name", "input"}), f"A tool_use of messages[{at}]", f"messages.{at}")
    name, given = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(block.get("id"), str):
        raise invalid(f"messages[{at}] has a tool_use without an id and a name.", f"messages.{at}")
    if given is not None and not isinstance(given, dict):
        raise invalid(f"messages[{at}] has a tool_use whose input is no object.", f"messages.{at}")
    return {"id": block["id"], "type": "function", "function": {"name": name, "arguments": json.dumps(given or {})}}


def _result(at: int, block: dict[str, Any]) -> dict[str, Any]:
    """A tool_result block as the other interface has it, where an error is told in words."""
    known = frozenset({"type", "tool_use_id", "content", "is_error"})
    refuse_unknown(block, known, f"A tool_result of messages[{at}]", f"messages.{at}")
    failed = block.get("is_error")
    if not isinstance(block.get("tool_use_id"), str):
        raise invalid(f"messages[{at}] has a tool_result without a tool_use_id.", f"messages.{at}")
    if not isinstance(failed, bool | None):
        raise invalid(f"messages[{at}] has a tool_result whose is_error is neither true nor false.", f"messages.{at}")
    text = "" if block.get("content") is None else _text(block["content"], f"messages[{at}]", "A tool_result of ")
    return {"role": "tool", "content": f"Error: {text}" if failed else text, "tool_call_id": block["tool_use_id"]}


def _text(value: Any, where: str, holder: str = "") -> str:
    """The text of a string or of text blocks. ``holder``: what of ``where`` they stand in, as errors call it."""
    if isinstance(value, str):
        return value
    blocks = value if isinstance(value, list) else [value]
    texts = [block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None for block in blocks]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in texts):
        raise invalid(f"{holder}{where} must be text, or a list of text blocks.", where)
    for block in blocks:
        refuse_unknown(block, frozenset({"type", "text"}), f"A text of {where}", where.replace("[", ".").replace("]", ""))
    return "\n".join(text for text in texts if text is not None)
