"""A server over a real model: answers of a given form, and functions called through the model's own template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from real import model_path
from serving import Running, running

openai = pytest.importorskip("openai")
jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(3600)]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "languages": {"type": "array", "items": {"enum": ["Python", "C++", "Rust"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "languages"],
    "additionalProperties": False,
}
ORDER = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "paid": {"type": "boolean"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1, "maxItems": 2},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 30}]},
    },
    "required": ["order", "paid", "lines", "note"],
    "additionalProperties": False,
    "$defs": {
        "line": {
            "type": "object",
            "properties": {"item": {"type": "string", "maxLength": 16}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
            "required": ["item", "count"],
            "additionalProperties": False,
        }
    },
}
ASKED = [
    (PERSON, "Ada is 36 years old and writes Python and C++. Give the person as JSON."),
    (PERSON, "Invent a programmer who is older than sixty."),
    (PERSON, "Answer with a poem about the sea and with nothing else, no JSON."),
    (ORDER, "Order AB-1234, paid: 3 apples and 12 pears, no note. Give it as JSON."),
    (ORDER, "Make up an order of two things that is not yet paid, with a note."),
    (ORDER, "Write a Python function that sorts a list."),
]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
MAIL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "send_mail",
        "description": "Send a mail.",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string", "maxLength": 30}, "subject": {"type": "string", "maxLength": 30}},
            "required": ["to", "subject"],
            "additionalProperties": False,
        },
    },
}
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Oslo, in celsius?"}]


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path: Path = model_path("qwen2.5-coder-0.5b")
    with running(home=tmp_path_factory.mktemp("home"), models=(f"coder={path}",)) as server:
        yield server


@pytest.fixture(scope="module")
def client(coder: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=coder.url + "/v1", api_key="none", max_retries=0, timeout=900) as made:
        yield made


def chat(client: Any, messages: list[dict[str, Any]] = QUESTION, **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "coder", "messages": messages, "max_tokens": 300, "temperature": 0, "seed": 1, **options}
    )


def test_a_schema_holds_and_drafts_change_no_token_of_it(client: Any) -> None:
    drafted = accepted = 0
    for number in range(24):
        schema, question = ASKED[number % len(ASKED)]
        options: dict[str, Any] = {
            "messages": [{"role": "user", "content": question}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
            "temperature": 0.0 if number < len(ASKED) else 0.9,
            "seed": number,
        }
        texts = []
        for mode in ("on", "off"):
            answer = chat(client, **options, extra_body={"speculation": mode})
            assert answer.choices[0].finish_reason == "stop", (number, mode, answer.choices[0].message.content)
            texts.append(answer.choices[0].message.content)
            jsonschema.Draft202012Validator(schema).validate(json.loads(texts[-1]))
            if mode == "on":
                drafted += answer.hasten["drafted"]
                accepted += answer.hasten["accepted"]
            else:
                assert answer.hasten["drafted"] == 0
        assert texts[0] == texts[1], number
    assert drafted > 100
    assert accepted > 10


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=["required", "named"]
)
def test_a_forced_call_and_its_result(client: Any, choice: Any) -> None:
    options = {"tools": [MAIL, WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    answer = chat(client, **options)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    jsonschema.Draft202012Validator(WEATHER["function"]["parameters"]).validate(arguments)
    assert arguments == {"city": "Oslo", "unit": "celsius"}
    chunks = list(chat(client, **options, stream=True))
    streamed = [part.function for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert [(part.name, part.arguments) for part in streamed] == [(call.function.name, call.function.arguments)]
    turns = [
        *QUESTION,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "snow", "degrees": -7})},
        {"role": "user", "content": "Tell me in one sentence what the weather is."},
    ]
    told = chat(client, turns, tools=[MAIL, WEATHER]).choices[0]
    assert told.message.tool_calls is None
    assert "snow" in told.message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_model_chooses_itself(client: Any, stream: bool) -> None:
    """This model leaves the tags of its template out, mostly, and writes a code fence instead; it is a call all the same."""
    for tools in ([MAIL, WEATHER], [WEATHER]):
        answer = chat(client, tools=tools, stream=stream)
        if stream:
            chunks = [choice for chunk in answer for choice in chunk.choices]
            calls = [part.function for choice in chunks for part in choice.delta.tool_calls or []]
            words = "".join(choice.delta.content or "" for choice in chunks)
            finish = chunks[-1].finish_reason
        else:
            choice = answer.choices[0]
            calls = [call.function for call in choice.message.tool_calls]
            words, finish = choice.message.content or "", choice.finish_reason
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [("get_weather", {"city": "Oslo", "unit": "celsius"})]
        assert not words.strip()
        assert finish == "tool_calls"


def test_words_where_no_call_is_wanted_or_needed(client: Any) -> None:
    assert chat(client, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls is None
    greeting: list[dict[str, Any]] = [{"role": "user", "content": "Write a haiku about the sea."}]
    answer = chat(client, greeting, tools=[WEATHER], max_tokens=60).choices[0]
    assert answer.message.tool_calls is None
    assert answer.message.content
