"""A choice among some of the tools, in OpenAI's two forms: no other is shown, called or read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hasten.serve.body import validated
from hasten.serve.chat import prompt_of
from hasten.serve.errors import ApiError
from hasten.serve.responses_in import ResponsesRequest, as_chat
from hasten.serve.wire import ChatRequest
from serving import TEMPLATE, Running

pytest.importorskip("llguidance")

NAMES = ("weather", "stop_all", "places.find")
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": NOTHING}} for name in NAMES]
SPACE = {"type": "namespace", "name": "places", "tools": [{"type": "function", "name": "find", "parameters": NOTHING}]}
RESPONSE_TOOLS = [*({"type": "function", "name": name, "parameters": NOTHING} for name in NAMES[:2]), SPACE, {"type": "web_search"}]
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Oslo?"}], "max_tokens": 200, "tools": TOOLS}
RESPONSE: dict[str, Any] = {"input": "Oslo?", "max_output_tokens": 200, "tools": RESPONSE_TOOLS}


def some(*names: str, mode: str = "required") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def some_of_a_response(*names: str, mode: str = "required") -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:2], NAMES[1:]])
def test_a_forced_call_is_of_one_that_is_allowed(server: Running, names: tuple[str, ...]) -> None:
    for seed in range(4):
        choice = {"tool_choice": some(*names), "seed": seed, "parallel_tool_calls": False}
        called = server.post("/v1/chat/completions", ASK | choice).json()["choices"][0]["message"]["tool_calls"]
        assert {call["function"]["name"] for call in called} <= set(names)
        choice["tool_choice"] = some_of_a_response(*names)
        answer = server.post("/v1/responses", RESPONSE | choice).json()
        called = [item for item in answer["output"] if item["type"] == "function_call"]
        assert called
        assert {".".join(filter(None, (item.get("namespace"), item["name"]))) for item in called} <= set(names)
        assert answer["tool_choice"] == choice["tool_choice"]
        assert len(answer["tools"]) == 3


def test_one_that_is_not_allowed_is_not_read_as_a_call(server: Running) -> None:
    said = r'<tool_call>\{"name": "stop_all", "arguments": \{\}\}</tool_call>'
    chat = ASK | {"structured_outputs": {"regex": said}}
    for allowed in (NAMES[:1], NAMES[:2]):
        choice = server.post("/v1/chat/completions", chat | {"tool_choice": some(*allowed, mode="auto")}).json()["choices"][0]
        assert choice["finish_reason"] == ("tool_calls" if "stop_all" in allowed else "stop")
        assert ("tool_calls" in choice["message"]) == ("stop_all" in allowed)


def test_only_those_that_are_allowed_are_shown() -> None:
    class Model:
        has_chat_template, chat_template = True, TEMPLATE

        def render_chat(self, messages: Any, tools: Any, **more: Any) -> Any:
            return [tool["function"]["name"] for tool in tools]

    asked = validated(ChatRequest, ASK | {"tool_choice": some(*NAMES[:2], mode="auto")})
    shown, tools = prompt_of(Model(), asked, [])  # type: ignore[arg-type]
    assert shown == list(NAMES[:2])
    assert tools is not None
    assert not tools.forced
    assert len(asked.tools or []) == 3


@pytest.mark.parametrize(
    "choice",
    [
        some("other"),
        some(),
        some("weather", mode="none"),
        some("weather") | {"tools": []},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp", "server_label": "x"}]}},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_allowed_is_refused(server: Running, choice: dict[str, Any]) -> None:
    refused = server.post("/v1/chat/completions", ASK | {"tool_choice": choice})
    assert (refused.status_code, "tool_choice" in refused.json()["error"]["message"]) == (400, True), refused.text
    assert refused.json()["error"]["param"].startswith("tool_choice")


def test_what_cannot_be_allowed_in_a_response_is_refused(server: Running) -> None:
    search = {"type": "web_search"}
    wrong = [some_of_a_response("other"), some_of_a_response(), some("weather"), {**some_of_a_response(), "tools": [search]}]
    for choice in wrong:
        refused = server.post("/v1/responses", RESPONSE | {"tool_choice": choice})
        assert (refused.status_code, "tool_choice" in refused.json()["error"]["message"]) == (400, True), refused.text
    both = {**some_of_a_response("weather"), "tools": [search, {"type": "function", "name": "weather"}]}
    chat = as_chat(ResponsesRequest(**RESPONSE | {"tool_choice": both}))
    assert [tool.function.name for tool in chat.with_allowed_tools().tools or []] == ["weather"]
    with pytest.raises(ApiError, match="'other'"):
        as_chat(ResponsesRequest(**RESPONSE | {"tool_choice": some_of_a_response("other")})).with_allowed_tools()
