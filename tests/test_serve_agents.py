"""What coding agents send, field by field: hints and permissions that a model without the ability keeps by doing nothing, and what
an agent says between two answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.core.results import StreamEvent
from hasten.serve.anthropic_in import MessagesRequest, as_chat
from hasten.serve.body import validated
from hasten.serve.chat import prompt_of
from hasten.serve.generation import Collected
from hasten.serve.responses import Answer
from hasten.serve.responses_in import ResponsesRequest
from hasten.serve.responses_in import as_chat as responses_as_chat
from hasten.serve.tools import Toolset
from hasten.serve.wire import ChatRequest, ToolFunction
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
        {"thinking": {"type": "between_tools"}},
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


CALL: dict[str, Any] = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "weather",
    "arguments": "{}",
    "status": "completed",
}
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "call_1", "output": "20 degrees"}
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "strict": False,
    "parameters": CITY,
}
SAID: dict[str, Any] = {"role": "assistant", "content": "So"}
BASH: dict[str, Any] = CALL | {"name": "Bash", "arguments": '{"command": "ls"}'}
SPACE: dict[str, Any] = {"type": "namespace", "name": "places", "description": "Of places.", "tools": [WEATHER]}
FORCED: dict[str, Any] = {
    "model": "tiny",
    "input": "Oslo?",
    "max_output_tokens": 300,
    "tools": [WEATHER],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}


@pytest.mark.parametrize("route", ["/v1/responses", "/v1/messages"])
def test_a_stream_of_a_call_alone_has_no_empty_words_beside_it(server: Running, route: str) -> None:
    body = FORCED | {"provenance": True, "temperature": 0}
    if route == "/v1/messages":
        tool = {"name": "weather", "description": "The weather.", "input_schema": CITY}
        body = PLAIN | {"provenance": True, "max_tokens": 300, "tools": [tool], "tool_choice": {"type": "any"}}
    own = server.post(route, body).json()["hasten"]
    events = events_of(server.post(route, body | {"stream": True}).text)
    begun = [
        event.get("item", event.get("content_block", {}))
        for event in events
        if "added" in event["type"] or "start" in event["type"]
    ]
    assert {item["type"] for item in begun if item} == {"function_call" if "responses" in route else "tool_use"}
    told = [event["hasten"] for event in events if "pieces" in event.get("hasten", {})]
    assert [piece for each in told for piece in each["pieces"]] == own["pieces"]
    assert all(len(each["provenance"]) == len(each["pieces"]) for each in told)


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def test_calls_of_a_response_whole_and_streamed(server: Running) -> None:
    whole = server.post("/v1/responses", FORCED).json()
    call = whole["output"][0]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert (call["id"][:3], call["call_id"][:5]) == ("fc_", "call_")
    assert (call["id"][:3], call["call_id"][:5]) == ("fc_", "call_")
    assert json.loads(call["arguments"])["city"] in ("Oslo", "Rome")
    assert whole["tools"][0]["name"] == "weather"
    streamed = events_of(server.post("/v1/responses", FORCED | {"stream": True}).text)
    assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
    assert [event["type"] for event in streamed[2:-1]] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert (streamed[2]["item"]["arguments"], streamed[2]["item"]["status"]) == ("", "in_progress")
    last = streamed[-1]["response"]["output"]
    assert last == [streamed[-2]["item"]]
    assert streamed[3]["delta"] == streamed[4]["arguments"] == last[0]["arguments"]
    assert {event["item_id"] for event in streamed[3:5]} == {last[0]["id"]}


def test_words_and_calls_of_a_response_are_items_in_their_order() -> None:
    tools = Toolset("hermes", (ToolFunction(name="places.weather"),))
    wire = ResponsesRequest(input="x", tools=[SPACE], provenance=False)
    text = 'So: <tool_call>{"name": "places.weather", "arguments": {"city": "Oslo"}}</tool_call> and more'
    generation: Any = SimpleNamespace(whole=[], host=SimpleNamespace(name="tiny"))
    answer = Answer(generation, wire, tools)
    answer._finished = lambda one, items: {"status": "completed", "output": items}  # type: ignore[method-assign]
    whole = answer.whole([Collected(0, 0, text)])["output"]

    async def events() -> AsyncIterator[tuple[int, StreamEvent]]:
        for at, letter in enumerate(text):
            yield 0, StreamEvent(0, letter, [], [], None, finish_reason="stop" if at == len(text) - 1 else None)

    async def streamed() -> list[dict[str, Any]]:
        return events_of(b"".join([part async for part in Answer.events(answer)]).decode())

    generation.events = events
    found = asyncio.run(streamed())
    assert [item["type"] for item in whole] == ["message", "function_call", "message"]
    assert (whole[1]["namespace"], whole[1]["name"]) == ("places", "weather")
    without_ids = [
        [{name: value for name, value in item.items() if not name.endswith("id")} for item in items]
        for items in (whole, found[-1]["response"]["output"])
    ]
    assert without_ids[0] == without_ids[1]
    done = [event for event in found if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2]
    said = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert said == "So:  and more"


def test_a_conversation_with_calls_goes_on_as_a_response(server: Running) -> None:
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So:"}]}
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}
    items = [
        {"role": "user", "content": "Oslo?"},
        reasoning,
        said,
        CALL,
        {**CALL, "call_id": "call_2", "namespace": "places"},
        said,
    ]
    outputs = [OUTPUT, OUTPUT | {"call_id": "call_2", "output": [{"type": "input_text", "text": "none"}]}]
    told = responses_as_chat(ResponsesRequest(input=[*items, *outputs])).messages
    assert [turn["role"] for turn in told] == ["user", "assistant", "tool", "tool"]
    assert [call["function"]["name"] for call in told[1]["tool_calls"]] == ["weather", "places.weather"]
    assert (told[1]["content"], told[3]["content"]) == ("So:So:", "none")
    answer = server.post("/v1/responses", FORCED | {"tool_choice": "auto", "max_output_tokens": 8, "input": [*items, *outputs]})
    assert answer.status_code == 200, answer.text


def test_what_codex_sends(server: Running) -> None:
    body = {
        "model": "tiny",
        "stream": True,
        "input": [
            {"type": "message", "id": "msg_1", "role": role, "content": [{"type": "input_text", "text": "x"}]}
            for role in ("developer", "user")
        ],
        "tools": [WEATHER, SPACE, {"type": "web_search", "external_web_access": False}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "x",
        "client_metadata": {"session_id": "x"},
    }
    text = server.post("/v1/responses", body | {"max_output_tokens": 8}).text
    last = events_of(text)[-1]["response"]
    assert [tool["type"] for tool in last["tools"]] == ["function", "namespace"]
    shown = responses_as_chat(ResponsesRequest(**body)).tools or []
    assert [tool.function.name for tool in shown] == ["weather", "places.weather"]
    assert shown[1].function.description == "Of places.\nThe weather."
    asked = {name: body[name] for name in ("model", "input", "tools", "tool_choice", "reasoning")}
    counted = server.post("/v1/responses/input_tokens", asked).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": last["usage"]["input_tokens"]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tools": [{"type": "file_search"}]}, "tools.0"),
        ({"tools": [{"type": "custom", "name": "patch"}]}, "tools.0"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "defer_loading"),
        ({"tools": [WEATHER, WEATHER]}, "same name"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "other"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0] refers"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "send store as false"),
        ({"input": [{"type": "computer_call", "id": "cu_1"}]}, "input[0] must be"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [CALL | {"arguments": {}}]}, "arguments"),
        ({"input": [CALL | {"retry": 1}]}, "retry"),
        ({"input": [CALL | {"namespace": ["places"]}]}, "input[0] has a namespace"),
        ({"tools": [{"type": "function", "function": {"name": "weather"}}]}, "'tools.0.name'"),
        ({"tools": [SPACE | {"tools": [WEATHER | {"name": "t" * 122}]}]}, "The namespace and name 'places.ttt"),
        ({"text": {"format": {"type": "json_schema", "name": "t" * 65, "schema": {}}}}, "'text.format.name'"),
        ({"previous_response_id": "resp_1"}, "send the whole conversation as input"),
        ({"input": [OUTPUT | {"call_id": None}]}, "call_id"),
        ({"input": [OUTPUT | {"output": [{"type": "input_image"}]}]}, "input[0]"),
    ],
)
def test_what_a_response_cannot_have_is_refused(server: Running, change: dict[str, Any], named: str) -> None:
    answer = server.post("/v1/responses", FORCED | change)
    assert (answer.status_code, named in answer.json()["error"]["message"]) == (400, True), answer.text


def test_calls_that_nobody_answered_are_shown_before_the_answer(server: Running) -> None:
    """They stand at the end of a message, where an answer that goes on with its text would have to be before them."""
    used = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}
    begun = [*ASK, {"role": "assistant", "content": [{"type": "text", "text": "So"}, used]}]
    counted = server.post("/v1/messages/count_tokens", {"model": "tiny", "messages": begun}).json()["input_tokens"]
    usage = server.post("/v1/messages", PLAIN | {"messages": begun}).json()["usage"]
    shown = server.post("/tokenize", {"messages": responses_as_chat(ResponsesRequest(input=[*ASK, SAID, BASH])).messages}).json()
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"] == shown["count"]


def test_a_tool_that_a_provider_runs_is_refused_by_its_type(server: Running) -> None:
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    answer = server.post("/v1/messages", PLAIN | {"tools": [tool]})
    assert (answer.status_code, "'tools.0.type'" in answer.text) == (400, True), answer.text


def test_what_a_tool_result_cannot_hold_is_named(server: Running) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image"}]}
    answer = server.post("/v1/messages", PLAIN | {"messages": [{"role": "user", "content": [result]}]})
    assert (answer.status_code, "A tool_result of messages[0] must be text" in answer.text) == (400, True)


@pytest.mark.parametrize(("length", "status"), [(128, 200), (129, 400)])
def test_a_function_may_have_a_name_of_anthropics_length(server: Running, length: int, status: int) -> None:
    """Agents put a server's name before its tools' names."""
    body = PLAIN | {"tools": [{"name": "t" * length, "input_schema": {"type": "object"}}]}
    assert server.post("/v1/messages", body).status_code == status


def test_a_response_says_what_was_asked_and_that_it_is_not_complete(server: Running) -> None:
    asked = {"instructions": "Briefly.", "metadata": {"a": "b"}, "max_output_tokens": 2, "temperature": 0.5, "top_p": 0.9}
    body = {"input": "x", "stream": False, **asked}
    whole = server.post("/v1/responses", body).json()
    events = events_of(server.post("/v1/responses", body | {"stream": True}).text)
    assert events[-1]["type"] == "response.incomplete"
    for response in (whole, events[-1]["response"]):
        assert {name: response[name] for name in asked} == asked
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert [item["status"] for item in response["output"]] == ["incomplete"]
        assert response["usage"]["output_tokens"] == 2
    assert {event["response"]["id"] for event in (*events[:2], events[-1])} == {events[0]["response"]["id"]}
    assert [event["response"]["status"] for event in events[:2]] == ["in_progress", "in_progress"]


def test_what_is_asked_is_asked_of_the_model_too() -> None:
    same: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "priority": "batch", "deadline": 5.0, "speculation": "off"}
    own = {"seed": 3, "reasoning": {"effort": "none"}, "parallel_tool_calls": False, "provenance": True}
    single = {"type": "auto", "disable_parallel_tool_use": True}
    chats = (
        responses_as_chat(validated(ResponsesRequest, {"input": "x", **same, **own})),
        as_chat(validated(MessagesRequest, PLAIN | same | {"top_k": 3, "tool_choice": single, "provenance": True})),
    )
    for chat in chats:
        assert {name: getattr(chat, name) for name in same} == same
        assert (chat.parallel_tool_calls, chat.provenance) == (False, True)
    assert (chats[0].seed, chats[0].reasoning_effort, chats[1].top_k) == (3, "none", 3)
