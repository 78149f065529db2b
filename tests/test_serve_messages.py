"""Fields inside conversations, in OpenAI's two forms: read, let pass because clients only copy them, or refused by name."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten.serve import chat, messages, responses
from hasten.serve.body import validated
from hasten.serve.errors import ApiError
from hasten.serve.messages_in import for_template
from hasten.serve.openapi import BODIES
from hasten.serve.responses_in import ResponsesRequest, as_chat
from hasten.serve.wire import Speculation, ToolFunction, Wire
from serving import Running, write_model
from serving_here import serving_here

CALL: dict[str, Any] = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
COPIED: dict[str, Any] = {
    "refusal": None,
    "audio": None,
    "function_call": None,
    "annotations": [],
    "provider_specific_fields": None,
}


def test_a_message_may_be_sent_back_as_a_client_holds_it() -> None:
    plain = {"role": "assistant", "content": "one"}
    assert for_template([{**plain, **COPIED, "tool_calls": [], "parsed": {"a": 1}}]) == [plain]
    assert for_template([{**plain, **COPIED, "tool_calls": None}]) == [plain]
    thought = {"reasoning_content": "hm", "reasoning_details": [{"text": "hm"}], "thinking_blocks": [{"type": "thinking"}]}
    assert for_template([{**plain, **thought}]) == [plain | {"reasoning_content": "hm"}]  # for templates that read it
    assert for_template([{**plain, "reasoning": "hm"}]) == [plain | {"reasoning_content": "hm"}]
    assert for_template([{**plain, "reasoning": {"text": "hm"}, "reasoning_content": None}]) == [plain]
    called = for_template([{**plain, "tool_calls": [CALL]}])
    parsed = CALL["function"] | {"parsed_arguments": {}}
    assert for_template([{**plain, "tool_calls": [CALL | {"index": 0, "function": parsed}]}]) == called
    assert for_template([{**plain, "tool_calls": [CALL | {"type": None}]}]) == called
    part = {"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}
    assert for_template([{"role": "user", "content": [part]}])


@pytest.mark.parametrize("kind", ["text", "message"])
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_what_a_client_calls_a_message_does_not_matter(role: str, kind: str) -> None:
    """lm-evaluation-harness says of each that it is a text."""
    plain = {"role": role, "content": "one"}
    assert for_template([plain | {"type": kind}]) == for_template([plain])


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {"content": []}, {}])
def test_templates_are_given_words_beside_calls_even_if_there_are_none(tmp_path: Path, content: dict[str, Any]) -> None:
    """Some put them together with others as text, SmolLM2's among them."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [CALL], **content}]
    template = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    model = write_model(tmp_path / "joins.gguf", template=template)

    async def scene() -> None:
        async with serving_here(f"tiny={model}") as client:
            answer = await client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 1})
            assert answer.status_code == 200, answer.text

    asyncio.run(scene())


def test_messages_that_a_template_fails_on_are_refused_in_words_for_clients(tmp_path: Path) -> None:
    model = write_model(tmp_path / "fails.gguf", template="{{ messages[0]['content'] + messages[1]['content'] }}")

    async def scene() -> None:
        async with serving_here(f"tiny={model}") as client:
            body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400
            assert "fails on these messages" in answer.json()["error"]["message"]
            assert "--" not in answer.json()["error"]["message"]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": "x", "type": "image"}, "'type'"),
        ({"role": "user", "content": "x", "type": ["text"]}, "'type'"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "bold": True}]}, "'bold'"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "'tool_calls'"),
        ({"role": "user", "content": "x", "refusal": "no"}, "refusal"),
        ({"role": "user", "content": "x", "reasoning_content": "hm"}, "reasoning_content"),
        ({"role": "assistant", "content": "x", "tool_calls": [CALL | {"retry": 1}]}, "'retry'"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "a", "arguments": "{}", "retry": 1}}]}, "'retry'"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "a", "input": "x"}}]}, "'custom'"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "user", "content": "x", "name": {"first": "Ann"}}, "name must be text"),
        ({"role": "assistant", "tool_calls": [CALL | {"id": 5}]}, "id or arguments"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "a", "arguments": False}}]}, "id or arguments"),
    ],
)
def test_what_a_message_cannot_say_is_refused(message: dict[str, Any], named: str) -> None:
    with pytest.raises(ApiError, match=named) as caught:
        for_template([message])
    assert (caught.value.param or "").startswith("messages.0")


@pytest.mark.parametrize("written", [r'{"x": "\ud800"}', '{"x": NaN}', "{", '{"x": 1e999}'])
def test_arguments_that_are_no_json_are_shown_as_they_were(written: str) -> None:
    call = CALL | {"function": {"name": "f", "arguments": written}}
    shown = for_template([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert shown[0]["tool_calls"][0]["function"]["arguments"] == written


def test_items_of_a_response_may_be_sent_back() -> None:
    part = {"type": "output_text", "text": "one", "annotations": [], "logprobs": []}
    item = {"type": "message", "id": "msg_1", "status": "completed", "phase": None, "role": "assistant", "content": [part]}
    for sent in (item, item | {"type": None}):
        assert as_chat(ResponsesRequest(input=[sent])).messages == [{"role": "assistant", "content": "one"}]


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"role": "user", "content": "x", "mood": "good"}, "'mood'"),
        ({"role": "user", "content": [{"type": "input_text", "text": "x", "bold": True}]}, "'bold'"),
        ({"role": "user", "content": None}, r"input\[0\].content must be text"),
        ({"role": "user"}, r"input\[0\].content must be text"),
    ],
)
def test_what_an_item_cannot_say_is_refused(item: dict[str, Any], named: str) -> None:
    with pytest.raises(ApiError, match=named) as caught:
        as_chat(ResponsesRequest(input=[item]))
    assert (caught.value.param or "").startswith("input.0")


def test_what_codex_sends_with_a_response(server: Running) -> None:
    body = {"input": "x", "max_output_tokens": 2, "tools": [], "include": [], "store": False, "reasoning": None}
    for more in ({"tool_choice": "auto", "parallel_tool_calls": True}, {"tool_choice": "none", "parallel_tool_calls": False}):
        answer = server.post("/v1/responses", body | more)
        assert answer.status_code == 200, answer.text
        assert more.items() <= answer.json().items()
        assert answer.json()["usage"]["input_tokens_details"]["cache_write_tokens"] == 0
    options = {"stream": True, "stream_options": {"include_obfuscation": False}, "text": {"verbosity": None}}
    assert server.post("/v1/responses", body | options).status_code == 200
    for wrong in ({"reasoning": {"effort": "utmost"}}, {"tool_choice": "required"}, {"stream_options": {}}):
        refused = server.post("/v1/responses", body | wrong)
        assert (refused.status_code, next(iter(wrong)) in refused.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    "kind", [*(kind for kind, _ in BODIES.values()), Speculation, ToolFunction], ids=lambda kind: kind.__name__
)
def test_null_leaves_a_field_out(kind: type[Wire]) -> None:
    given = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "prompt": "x", "input": "x"}
    given |= {"tokens": [1], "name": "f"}
    fields = {field.alias or name: field.is_required() for name, field in kind.model_fields.items()}
    least = {name: given[name] for name, required in fields.items() if required}
    nulls = dict.fromkeys(fields.keys() | kind.elsewhere)
    found = validated(kind, nulls | least)
    assert found == validated(kind, least)
    assert found.model_fields_set == least.keys()
    for name in least:
        with pytest.raises(ApiError, match=name):
            validated(kind, least | {name: None})


@pytest.mark.parametrize("level", ["low", "medium", "high"])
def test_how_much_to_say_is_a_hint(server: Running, level: str) -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "temperature": 0}
    answers = [server.post("/v1/chat/completions", chat | more).json() for more in ({}, {"verbosity": level})]
    assert answers[0]["choices"] == answers[1]["choices"]
    answer = server.post("/v1/responses", {"input": "x", "max_output_tokens": 2, "text": {"verbosity": level}})
    assert answer.json()["text"]["verbosity"] == level


@pytest.mark.parametrize(
    "reasoning",
    [
        {"effort": "low", "summary": "auto"},
        {"effort": "none", "context": "all_turns"},
        {"context": "auto"},
        {"context": "current_turn"},
        {"context": None, "mode": None},
        {},
        None,
    ],
)
def test_a_response_says_how_it_was_to_reason(server: Running, reasoning: dict[str, Any] | None) -> None:
    told = {"effort": None, "summary": None} | {name: value for name, value in (reasoning or {}).items() if value is not None}
    body = {"input": "x", "max_output_tokens": 2, "reasoning": reasoning}
    assert server.post("/v1/responses", body).json()["reasoning"] == told
    events = server.post("/v1/responses", body | {"stream": True}).text.splitlines()
    assert all(f'"reasoning":{json.dumps(told, separators=(",", ":"))}' in event for event in events if '"response":{' in event)


def test_thoughts_of_earlier_turns_are_shown_as_far_as_is_asked() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    said = {"role": "assistant", "content": "one"}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "two"}
    items = [{"role": "user", "content": "x"}, thought, said, {"role": "user", "content": "y"}, thought, call, output]
    for context, shown in (("all_turns", 2), ("auto", 2), (None, 2), ("current_turn", 1)):
        turns = as_chat(ResponsesRequest(input=items, reasoning={"context": context})).messages
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "tool"]
        assert sum("reasoning_content" in turn for turn in turns) == shown
        assert "reasoning_content" in turns[3]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_null_leaves_out_what_only_others_have(server: Running, path: str) -> None:
    names = {
        "/v1/chat/completions": ["reasoning_effort", "verbosity", "functions", "audio"],
        "/v1/responses": ["conversation", "prompt"],
    }
    body: dict[str, Any] = (
        {"input": "x"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    )
    assert server.post(path, body | dict.fromkeys(names[path])).status_code == 200
    for name in names[path]:
        assert server.post(path, body | {name: "x"}).json()["error"]["param"] == name
    assert server.post(path, body | {"mood": None}).json()["error"]["param"] == "mood"


def test_tokens_are_counted_of_what_is_shown_only(server: Running) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    tool = {"type": "function", "function": {"name": "weather"}}
    assert server.post("/tokenize", chat).status_code == 200
    assert server.post("/tokenize", chat | {"add_special_tokens": False}).json()["error"]["param"] == "add_special_tokens"
    assert server.post("/tokenize", {"prompt": "x", "tools": [tool]}).json()["error"]["param"] == "tools"


def test_tokens_are_those_that_a_chat_is_charged(server: Running) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    tools = [{"type": "function", "function": {"name": "weather", "strict": True}}]
    count = server.post("/tokenize", chat | {"tools": tools}).json()["count"]
    assert count == server.post("/v1/chat/completions", chat | {"tools": tools, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    for wrong in ({"tools": tools * 2}, {"tools": tools * 65}):
        refused = [server.post(path, chat | wrong) for path in ("/tokenize", "/v1/chat/completions")]
        assert [answer.status_code for answer in refused] == [400, 400]
        assert refused[0].json() == refused[1].json()


ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    ("/v1/responses", {"input": "x", "max_output_tokens": 1}),
    ("/v1/responses/input_tokens", {"input": "x"}),
    ("/v1/messages", {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    ("/v1/messages/count_tokens", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}),
]


def test_a_long_conversation_is_not_read_on_the_event_loop(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand blocks take a second, in which nobody's tokens would go out."""
    loop, seen = threading.get_ident(), []

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any) -> Any:
            seen.append(threading.get_ident())
            return work(*given)

        return watched

    for module, name in ((chat, "for_template"), (responses, "as_chat"), (messages, "as_chat")):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))

    async def scene() -> None:
        async with serving_here(f"tiny={tiny_model}") as client:
            for path, body in ROUTES:
                assert (await client.post(path, json=body)).status_code == 200

    asyncio.run(scene())
    assert len(seen) == 9
    assert loop not in seen
