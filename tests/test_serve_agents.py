"""What coding agents send, field by field: hints and permissions that a model without the ability keeps by doing nothing, and what
an agent says between two answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hasten.serve.anthropic_in import MessagesRequest, as_chat
from hasten.serve.body import validated
from hasten.serve.chat import prompt_of
from hasten.serve.wire import ChatRequest
from serving import Running

ASK: list[dict[str, Any]] = [{"role": "user", "content": "def fibonacci(number):"}]
PLAIN: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": ASK}
THINKING: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "eA=="},
]


@pytest.mark.parametrize(
    "hint",
    [
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "disabled"}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"messages": [*ASK, {"role": "assistant", "content": THINKING}]},
    ],
)
def test_a_model_that_does_not_think_honours_what_is_said_about_thinking(server: Running, hint: dict[str, Any]) -> None:
    answers = [server.post("/v1/messages", body) for body in (PLAIN, PLAIN | hint)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].json()["content"] == answers[1].json()["content"]


def test_what_claude_code_sends(server: Running) -> None:
    """System messages in the middle among it, which the model reads where they stand."""
    late = {"role": "system", "content": "Answer in verse."}
    used = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a.py", "is_error": False}
    messages = [*ASK, late, {"role": "assistant", "content": [*THINKING, used]}, {"role": "user", "content": [result]}]
    told = as_chat(validated(MessagesRequest, PLAIN | {"messages": messages})).messages
    assert [turn["role"] for turn in told] == ["user", "system", "assistant", "tool"]
    assert (told[1]["content"], told[2]["content"]) == ("Answer in verse.", "")
    body = PLAIN | {
        "messages": messages,
        "stream": True,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "x"},
        "tools": [{"name": "Bash", "input_schema": {"type": "object"}}],
    }
    answer = server.post("/v1/messages?beta=true", body)
    assert (answer.status_code, "message_stop" in answer.text) == (200, True), answer.text
    first = server.post("/v1/messages", PLAIN | {"messages": [late, *ASK]})
    assert (first.status_code, "messages[0]" in first.text) == (400, True)


@pytest.mark.parametrize(
    ("asked", "template", "told"),
    [
        ({"reasoning_effort": "none"}, "{{ enable_thinking }}", {"enable_thinking": False}),
        ({"reasoning_effort": "none"}, "{{ messages }}", {}),
        ({"reasoning_effort": "high"}, "{{ enable_thinking }}", {}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "{{ enable_thinking }}",
            {"enable_thinking": True},
        ),
    ],
)
def test_not_to_think_is_said_to_a_template_that_has_a_word_for_it(
    asked: dict[str, Any], template: str, told: dict[str, Any]
) -> None:
    seen: dict[str, Any] = {}
    model: Any = SimpleNamespace(
        has_chat_template=True, chat_template=template, render_chat=lambda *_, **named: seen.update(named) or []
    )
    prompt_of(model, validated(ChatRequest, {"messages": ASK} | asked), ASK)
    assert seen["extra"] == told


def test_not_to_think_is_said_in_anthropics_words_too() -> None:
    chats = [as_chat(validated(MessagesRequest, PLAIN | {"thinking": {"type": kind}})) for kind in ("disabled", "adaptive")]
    assert [chat.reasoning_effort for chat in chats] == ["none", None]
