"""What Anthropic's clients send beyond plain conversations: hints without effect, formats, begun answers, results of tools."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from hasten.serve import messages
from hasten.serve.anthropic_in import MessagesRequest, as_chat
from hasten.serve.body import validated
from hasten.serve.errors import ApiError
from hasten.serve.wire import StructuredOutputs
from serving import Running
from serving_here import serving_here

anthropic = pytest.importorskip("anthropic")

ASK: list[dict[str, Any]] = [{"role": "user", "content": "def fibonacci(number):"}]
TOOL: dict[str, Any] = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such place"}
HINT = {"cache_control": {"type": "ephemeral"}}


def turns(**fields: Any) -> list[dict[str, Any]]:
    return as_chat(validated(MessagesRequest, {"model": "tiny", "max_tokens": 4, "messages": ASK} | fields)).messages


def after_call(result: dict[str, Any], use: dict[str, Any] = USE) -> list[dict[str, Any]]:
    return [*ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]


@pytest.mark.parametrize("system", ["", [], [{"type": "text", "text": ""}], None])
def test_a_system_prompt_without_words_is_none(system: Any) -> None:
    """An empty turn would take the default away that a template may have."""
    assert turns(system=system) == turns()
    assert turns(system="Be brief.")[0] == {"role": "system", "content": "Be brief."}


class Place(BaseModel):
    city: Literal["Oslo", "Rome"]


@pytest.fixture(scope="module")
def claude(server: Running) -> Any:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def test_models_are_listed(claude: Any) -> None:
    found = claude.models.list()
    assert [(model.id, model.type, model.display_name) for model in found] == [("tiny", "model", "tiny")]
    assert (found.has_more, found.first_id, found.last_id) == (False, "tiny", "tiny")
    assert claude.models.retrieve("tiny").created_at == found.data[0].created_at
    assert found.data[0].created_at.year > 2000


def test_hints_change_nothing(server: Running) -> None:
    plain = {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": ASK, "tools": [TOOL]}
    more = {"strict": True, "eager_input_streaming": True, "input_examples": [{"city": "Oslo"}], "defer_loading": False}
    hinted = {**plain, **HINT, "tools": [TOOL | HINT | more], "container": None, "context_management": None}
    answers = [server.post("/v1/messages", body) for body in (plain, hinted)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].json()["content"] == answers[1].json()["content"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_null_leaves_out_what_is_not_here(server: Running, path: str) -> None:
    body = {"model": "tiny", "messages": ASK} | ({"max_tokens": 2} if path == "/v1/messages" else {})
    names = ("thread", "billing_policy", "fallback_credit_token")
    assert server.post(path, body | dict.fromkeys(names)).status_code == 200
    for name in names:
        refused = server.post(path, body | {name: {"type": "x"}})
        assert (refused.status_code, name in refused.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
def test_a_thread_is_refused_in_the_words_by_which_a_client_goes_on(server: Running, thread: dict[str, Any]) -> None:
    refused = server.post("/v1/messages", {"model": "tiny", "max_tokens": 2, "messages": ASK, "thread": thread})
    assert refused.status_code == 400
    assert refused.json()["error"]["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    other = server.post("/v1/messages", {"model": "tiny", "max_tokens": 0, "messages": ASK})
    assert set(other.json()["error"]) == {"type", "message"}


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_own_loop_of_tools(claude: Any, server: Running, stream: bool) -> None:
    """It asks for a thread first, and does without."""
    asked: list[str] = []

    def weather(city: Literal["Oslo", "Rome"]) -> str:
        """Tell the weather."""
        asked.append(city)
        return "rain"

    runner = claude.beta.messages.tool_runner(
        model="tiny", max_tokens=300, messages=ASK, tools=[anthropic.beta_tool(weather)], max_iterations=2, stream=stream,
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )  # fmt: skip
    whole = [answer.get_final_message() if stream else answer for answer in runner]
    assert [answer.stop_reason for answer in whole] == ["tool_use", "tool_use"]
    assert [answer.content[0].input["city"] for answer in whole] == asked
    assert set(asked) <= {"Oslo", "Rome"}


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [TOOL | {"defer_loading": True}]},
        {"output_config": {"effort": "utmost"}},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"thinking": {"type": "always"}},
        {"thinking": {"type": "disabled", "budget_tokens": 1024}},
        {"tool_choice": {"type": "auto", "name": "weather"}},
        {"messages": [{"role": "user", "content": []}]},
    ],
)
def test_wishes_that_cannot_be_met_are_refused(server: Running, change: dict[str, Any]) -> None:
    answer = server.post("/v1/messages", {"model": "tiny", "max_tokens": 4, "messages": ASK} | change)
    assert answer.status_code == 400
    assert next(iter(change)) in answer.json()["error"]["message"]


def test_an_answer_in_a_format(claude: Any) -> None:
    message = claude.messages.parse(model="tiny", max_tokens=300, messages=ASK, output_format=Place)
    assert message.parsed_output.city in ("Oslo", "Rome")
    again = [*ASK, {"role": "assistant", "content": message.content}, *ASK]  # the loop that the client's manual shows
    assert claude.messages.parse(model="tiny", max_tokens=300, messages=again, output_format=Place).parsed_output


def test_an_answer_goes_on_where_the_last_message_ends(server: Running) -> None:
    """As if the model had been given the very text; blanks at its end count, too."""
    for begun in ("The answer is", "So \n"):
        shown = server.post("/detokenize", {"tokens": server.post("/tokenize", {"messages": ASK}).json()["tokens"]}).json()[
            "prompt"
        ]
        prompt = server.post("/tokenize", {"prompt": shown + begun, "add_special_tokens": False}).json()["tokens"]
        same = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 20, "temperature": 0}).json()
        body = {"model": "tiny", "messages": [*ASK, {"role": "assistant", "content": [{"type": "text", "text": begun}]}]}
        answer = server.post("/v1/messages", {**body, "max_tokens": 20, "temperature": 0}).json()
        assert answer["content"][0]["text"] == same["choices"][0]["text"]
        assert server.post("/v1/messages/count_tokens", body).json()["input_tokens"] == len(prompt)
    form = {"format": {"type": "json_schema", "schema": Place.model_json_schema()}}
    refused = server.post("/v1/messages", {**body, "max_tokens": 20, "output_config": form})
    assert (refused.status_code, "output_config.format" in refused.text) == (400, True)


def test_a_stream_counts_the_same_from_start_to_end(server: Running) -> None:
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "many words " * 60}]}
    whole = [server.post("/v1/messages", body).json()["usage"] for _ in range(2)][-1]
    assert whole["cache_read_input_tokens"] >= 64
    events = [
        json.loads(line[6:]) for line in server.post("/v1/messages", body | {"stream": True}).text.splitlines() if line[:1] == "d"
    ]
    start = events[0]["message"]["usage"]
    assert start["output_tokens"] == 0
    end = next(event["usage"] for event in events if event["type"] == "message_delta")
    assert start | {"output_tokens": 0} == end | {"output_tokens": 0} == whole | {"output_tokens": 0}


def test_a_tool_that_failed_says_so() -> None:
    assert turns(messages=after_call(RESULT))[-1]["content"] == "no such place"
    assert turns(messages=after_call(RESULT | {"is_error": False}))[-1]["content"] == "no such place"
    assert turns(messages=after_call(RESULT | HINT | {"is_error": True}))[-1]["content"] == "Error: no such place"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "bold": True}]}]}, "'bold'"),
        ({"system": [{"type": "text", "text": "x", "bold": True}]}, "'bold'"),
        ({"messages": after_call(RESULT | {"retry": 1})}, "'retry'"),
        ({"messages": after_call(RESULT | {"is_error": "yes"})}, "is_error"),
        ({"messages": after_call({**RESULT, "tool_use_id": None})}, "tool_use_id"),
        ({"messages": after_call(RESULT, USE | {"retry": 1})}, "'retry'"),
        ({"messages": after_call(RESULT, {**USE, "name": None})}, "tool_use without an id and a name"),
    ],
)
def test_fields_inside_messages_are_known_or_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ApiError, match=named):
        turns(**fields)


def test_answers_and_errors_say_which_request_they_were(claude: Any, server: Running) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 2}
    assert claude.messages.create(**asked)._request_id
    with claude.messages.stream(**asked) as stream:
        assert stream.request_id
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(**asked | {"model": "other"}, extra_headers={"x-request-id": "mine"})
    assert caught.value.request_id == "mine"
    for body in ({}, {"model": "tiny", "messages": ASK}):  # one of them is an error
        answer = server.post("/v1/messages/count_tokens", body)
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "request-id" not in server.post("/v1/completions", {}).headers


def streamed_blocks(text: str) -> list[dict[str, Any]]:
    """The content of a streamed answer."""
    blocks: list[dict[str, Any]] = []
    for line in text.splitlines():
        event = json.loads(line[6:]) if line.startswith("data: ") else {}
        if event.get("type") == "content_block_start":
            blocks.append(event["content_block"])
        if event.get("type") == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            delta = event["delta"]
            changed = {"text": blocks[-1].get("text", "") + delta["text"]} if "text" in delta else json.loads(delta["partial_json"])
            blocks[-1] |= changed if "text" in delta else {"input": changed}
    return blocks


CALL_TEXT = r'<tool_call>\{"name": "weather", "arguments": \{\}\}</tool_call>'
CALLED = {"type": "tool_use", "name": "weather", "input": {}}


@pytest.mark.parametrize(
    ("said", "blocks"),
    [
        (f"Well\\. {CALL_TEXT}\nThen\\.", [{"type": "text", "text": "Well. "}, CALLED, {"type": "text", "text": "\nThen."}]),
        (f"{CALL_TEXT}\nThen\\.", [CALLED, {"type": "text", "text": "\nThen."}]),
        (f"{CALL_TEXT}\n", [CALLED]),
        ("stop", [{"type": "text", "text": ""}]),
    ],
)
def test_an_answer_has_the_same_blocks_streamed_and_whole(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, said: str, blocks: list[dict[str, Any]]
) -> None:
    form = {"structured_outputs": StructuredOutputs(regex=said)}
    monkeypatch.setattr(messages, "as_chat", lambda wire: as_chat(wire).model_copy(update=form))

    async def scene() -> None:
        async with serving_here(f"tiny={tiny_model}") as client:
            body = {"model": "tiny", "max_tokens": 300, "messages": ASK, "tools": [TOOL], "stop_sequences": ["stop"]}
            whole = (await client.post("/v1/messages", json=body)).json()["content"]
            stream = streamed_blocks((await client.post("/v1/messages", json=body | {"stream": True})).text)
        for found in (whole, stream):
            assert [{name: value for name, value in block.items() if name != "id"} for block in found] == blocks

    asyncio.run(scene())
