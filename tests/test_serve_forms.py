"""Structured output and tools through the server; readers of calls by themselves."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from hasten.core.errors import ConfigError
from hasten.serve.errors import ApiError
from hasten.serve.limits import Limits
from hasten.serve.tools import ToolReader, Toolset, _ObjectEnd, format_of, read_whole, told_apart, toolset_of
from hasten.serve.wire import ChatRequest, ToolFunction
from serving import TEMPLATE, Running

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("llguidance")

ASK: list[Any] = [{"role": "user", "content": "def fibonacci(number):"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Tell the weather.", "parameters": SCHEMA}},
    {
        "type": "function",
        "function": {"name": "stop_all", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    },
]


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(client: Any, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": ASK, "max_tokens": 900, "seed": 5, **options})


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_holds_streamed_or_not_and_with_or_without_drafts(client: Any, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    texts = {
        chat(client, response_format=form, seed=seed, extra_body={"speculation": mode}).choices[0].message.content
        for mode in ("on", "off")
    }
    chunks = list(chat(client, response_format=form, seed=seed, stream=True))
    texts.add("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert len(texts) == 1
    value = json.loads(texts.pop())
    assert value["city"] in ("Oslo", "Rome")
    assert 1 <= value["days"] <= 9


def test_other_forms(client: Any) -> None:
    found = chat(client, extra_body={"structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}"}}).choices[0].message.content
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", found)
    assert chat(client, extra_body={"structured_outputs": {"choice": ["left", "right"]}}).choices[0].message.content in (
        "left",
        "right",
    )
    text = client.completions.create(model="tiny", prompt="x", max_tokens=9, extra_body={"structured_outputs": {"choice": ["one"]}})
    assert text.choices[0].text == "one"
    thing = chat(client, response_format={"type": "json_object"}, max_tokens=1500, temperature=0.5)
    if thing.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(thing.choices[0].message.content), dict)


@pytest.mark.parametrize(
    "body",
    [
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "start: nothing"}},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}}},
        {"structured_outputs": {"regex": "a"}, "ignore_eos": True},
    ],
    ids=json.dumps,
)
def test_forms_that_cannot_be_are_refused(client: Any, server: Running, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(client, extra_body=body)
    server.wait_idle()


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_a_schema_beside_another_type_is_refused(server: Running, kind: str) -> None:
    chats = {"messages": ASK, "response_format": {"type": kind, "json_schema": {"name": "trip", "schema": SCHEMA}}}
    refused = server.post("/v1/chat/completions", chats)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format.json_schema")
    refused = server.post("/v1/responses", {"input": "x", "text": {"format": {"type": kind, "schema": SCHEMA}}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text.format.schema")


def test_a_forced_call(client: Any) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = chat(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
        call = answer.choices[0].message.tool_calls[0]
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        assert call.function.name in ("weather", "stop_all")
        if call.function.name == "weather":
            assert set(json.loads(call.function.arguments)) == {"city", "days"}
        chunks = list(chat(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, stream=True))
        streamed = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
        assert [(part.index, part.function.name, part.function.arguments) for part in streamed] == [
            (0, call.function.name, call.function.arguments)
        ]
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"
        assert not "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def of_a_name(value: str) -> dict[str, Any]:
    """A schema that refers to its own definitions and to itself."""
    return {
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/Name"}, "more": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["name", "more"],
        "additionalProperties": False,
        "$defs": {"Name": {"enum": [value]}},
    }


def test_each_function_of_a_forced_call_has_definitions_of_its_own(client: Any, server: Running) -> None:
    schemas = {"first": of_a_name("Oslo"), "second": of_a_name("Rome")}
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in schemas.items()]
    forced: list[Any] = ["required", *({"type": "function", "function": {"name": name}} for name in schemas)]
    for choice in forced:
        answer = chat(client, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        call = answer.choices[0].message.tool_calls[0].function
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    body = {
        "model": "tiny", "messages": ASK, "max_tokens": 900, "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "tools": [{"name": name, "input_schema": schema} for name, schema in schemas.items()],
    }  # fmt: skip
    (block,) = server.post("/v1/messages", body).json()["content"]  # as many calls as it likes may take all 900 tokens
    jsonschema.validate(block["input"], schemas[block["name"]])


def test_a_conversation_with_calls_goes_on(client: Any) -> None:
    turns = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    assert chat(client, messages=turns, tools=TOOLS, max_tokens=5, tool_choice="none").choices[0].message.tool_calls is None


def test_anthropics_tools(server: Running) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
        tools: list[Any] = [{"name": "weather", "input_schema": SCHEMA}]
        options: dict[str, Any] = {
            "model": "tiny",
            "messages": ASK,
            "max_tokens": 900,
            "tools": tools,
            "tool_choice": {"type": "any"},
        }
        answer = claude.messages.create(**options)
        assert answer.stop_reason == "tool_use"
        assert answer.content[0].type == "tool_use"
        assert set(answer.content[0].input) == {"city", "days"}
        with claude.messages.stream(**options) as stream:
            final = stream.get_final_message()
        assert final.content[0].type == "tool_use"
        assert set(final.content[0].input) == {"city", "days"}
        turns = [
            *ASK,
            {"role": "assistant", "content": [answer.content[0].model_dump(include={"type", "id", "name", "input"})]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": answer.content[0].id, "content": "rain"}]},
        ]
        assert claude.messages.create(model="tiny", messages=turns, max_tokens=4).usage.output_tokens <= 4


def toolset(**options: Any) -> Toolset:
    return Toolset("hermes", (ToolFunction(name="f"), ToolFunction(name="g")), **options)


def read(text: str, tools: Toolset, size: int) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolReader(tools)
    parts = [part for at in range(0, len(text), size) for part in reader.feed(text[at : at + size])]
    words, calls = told_apart([*parts, *reader.finish()])
    return words, [(call.name, call.arguments) for call in calls]


# What Python reads as JSON and nobody else does, or no answer can carry.
NO_JSON = ('{"x": NaN}', '{"x": -Infinity}', '{"x": 1e999}', r'{"x": "\ud800"}', r'{"\udc00": 1}')
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "<tool"}}\n</tool_call>'


BARE = '{"name": "f", "arguments": {"x": "}\\"{"}}'
READ = [("f", '{"x": "}\\"{"}')]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        (BARE, "", READ),
        ("\n" + BARE + "\n", "", READ),
        (f"```json\n{BARE}\n```", "", READ),
        (f"```\n{BARE}\n```\n", "", READ),
        (f"```json\n{BARE}", "", READ),
        (f"{BARE}\n{BARE}", "", READ * 2),
        (f"{BARE}\n{CALL}", "", [*READ, ("f", '{"x": "<tool"}')]),
        (f"{BARE}\nIt is done.", "\nIt is done.", READ),
        (f"I call {BARE}", f"I call {BARE}", []),
        (f"<b>{BARE}", f"<b>{BARE}", []),
        (BARE.replace('"f"', '"unknown"'), BARE.replace('"f"', '"unknown"'), []),
        ('{"name": "f"}', '{"name": "f"}', []),
        ('{"name": "f", "arguments": {}, "more": 1}', '{"name": "f", "arguments": {}, "more": 1}', []),
        ('{"name": "f", "arguments": "x"}', '{"name": "f", "arguments": "x"}', []),
        ('{"name": "f", "arg', '{"name": "f", "arg', []),
        ('{"name": "f", "arguments"' + "[" * 5000, '{"name": "f", "arguments"' + "[" * 5000, []),
        ("```json\n{}\n```", "```json\n{}\n```", []),
        ("```python\nprint()\n```", "```python\nprint()\n```", []),
        ("", "", []),
        ("  \n", "  \n", []),
    ],
)
def test_calls_without_tags_are_read_at_the_beginning_only(text: str, words: str, calls: list[Any], size: int) -> None:
    assert read(text, toolset(), size) == (words, calls)


def test_a_call_that_comes_in_pieces_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"characters": 0, "parsed": 0}
    take, call = _ObjectEnd._take, ToolReader._call

    def counted_take(self: _ObjectEnd, character: str) -> None:
        seen["characters"] += 1
        take(self, character)

    def counted_call(self: ToolReader, *arguments: Any) -> Any:
        seen["parsed"] += 1
        return call(self, *arguments)

    monkeypatch.setattr(_ObjectEnd, "_take", counted_take)
    monkeypatch.setattr(ToolReader, "_call", counted_call)
    arguments = json.dumps({"x": "{}" * 500, "y": [{"z": {}}] * 500})
    text = '{"name": "f", "arguments": ' + arguments + "}"
    assert read(text, toolset(), 1) == ("", [("f", arguments)])
    assert seen == {"characters": len(text), "parsed": 1}


def test_what_cannot_become_a_call_any_more_is_not_held_back() -> None:
    reader = ToolReader(toolset())
    said = '{"name": "f", "arguments": {"x": wrong}}'
    assert "".join(told_apart(reader.feed(letter))[0] for letter in said) == said


def test_words_are_not_held_back_longer_than_they_may_be_a_call() -> None:
    for text in ('{"city": ', "```python", "Hello", '{"name": 1', "{}"):
        reader = ToolReader(toolset())
        assert "".join(told_apart(reader.feed(letter))[0] for letter in text).strip() == text.strip()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        ("no call < here <tool_", "no call < here <tool_", []),
        ("Let me see. " + CALL, "Let me see. ", [("f", '{"x": "<tool"}')]),
        (CALL + "\n\nIt is done.  Well.\n", "\n\nIt is done.  Well.\n", [("f", '{"x": "<tool"}')]),
        (CALL + "\n" + CALL.replace('"f"', '"g"'), "", [("f", '{"x": "<tool"}'), ("g", '{"x": "<tool"}')]),
        ("Well. " + CALL + "\n" + CALL.replace('"f"', '"g"'), "Well. ", [("f", '{"x": "<tool"}'), ("g", '{"x": "<tool"}')]),
        (CALL.removesuffix("</tool_call>"), "", [("f", '{"x": "<tool"}')]),
        (CALL.replace('"f"', '"unknown"'), CALL.replace('"f"', '"unknown"'), []),
        ("<tool_call>not json</tool_call> end", "<tool_call>not json</tool_call> end", []),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', []),
        ("<tool_call>" + "[" * 5000, "[" * 5000, []),
        *((text, text, []) for text in (f'<tool_call>{{"name": "f", "arguments": {given}}}</tool_call>' for given in NO_JSON)),
    ],
)
def test_calls_are_told_from_words_however_they_come(text: str, words: str, calls: list[Any], size: int) -> None:
    if len(text) > 1000 and size < 7:
        pytest.skip("only slower")
    assert read(text, toolset(), size) == (words, calls)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_words_and_calls_keep_their_order(size: int) -> None:
    def shape(parts: list[Any]) -> list[str]:
        return [part if isinstance(part, str) else f"{part.name}()" for part in parts]

    for text, order in (
        (f"Well.{CALL}\nThen.{CALL}", ["Well.", "f()", "\nThen.", "f()"]),
        (f"{CALL}\n{CALL}\nDone.", ["f()", "f()", "\nDone."]),
        (f"{BARE}\nDone.", ["f()", "\nDone."]),
        (f"{CALL}\n{BARE}{CALL}```json\n{BARE}\n```.", ["f()", "f()", "f()", "f()", "."]),
        ("", []),
    ):
        assert shape(read_whole(text, toolset())) == order
        reader = ToolReader(toolset())
        parts = [part for at in range(0, len(text), size) for part in reader.feed(text[at : at + size])]
        assert "".join(shape([*parts, *reader.finish()])) == "".join(order)


LLAMA = Toolset("llama3", (ToolFunction(name="f"),))
LLAMA_CALL = '{"name": "f", "parameters": {"x": 1}}'


@pytest.mark.parametrize("size", [1, 3, 6, 1000])
def test_llama_calls_are_whole_answers(size: int) -> None:
    called = ("", [("f", '{"x": 1}')])
    for text in (LLAMA_CALL, f"\n{LLAMA_CALL} ", f"<|python_tag|>{LLAMA_CALL}"):
        assert read(text, LLAMA, size) == called
    said = ("plain {words}", '{"name": "other"}', f"Sure: {LLAMA_CALL}", f"{LLAMA_CALL} It is done.", "<|python", " \n", "")
    for text in said:
        assert read(text, LLAMA, size) == (text, [])


def test_a_brace_among_words_stalls_no_llama_stream() -> None:
    reader, text = ToolReader(LLAMA), "void g() {\n a(); }"
    assert "".join(told_apart(reader.feed(letter))[0] for letter in text) == text


def test_formats_are_those_that_templates_announce() -> None:
    assert format_of(TEMPLATE) == "hermes"
    assert format_of("{{ messages }}") is None
    assert format_of(None) is None
    wire = ChatRequest(messages=ASK, tools=TOOLS)
    with pytest.raises(ApiError, match="template knows no tools"):
        toolset_of(wire, "{{ messages }}")


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_only_where_several_are_not_wanted(client: Any, server: Running, stream: bool) -> None:
    """The answer ends with its first call, and costs no token more; forced here by a form that has two."""
    call = r'<tool_call>\{"name": "stop_all", "arguments": \{\}\}</tool_call>'
    found: dict[bool, tuple[list[str], int, str]] = {}
    for several in (True, False):
        body = {
            "model": "tiny", "messages": ASK, "max_tokens": 400, "tools": TOOLS, "parallel_tool_calls": several, "stream": stream,
            "structured_outputs": {"regex": f"Well\\. {call}\n{call}"},
            "stream_options": {"include_usage": True} if stream else None,
        }  # fmt: skip
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        if stream:
            chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            parts = [choice for chunk in chunks for choice in chunk["choices"]]
            assert "".join(part["delta"].get("content") or "" for part in parts) == "Well. "
            names = [call["function"]["name"] for part in parts for call in part["delta"].get("tool_calls", [])]
            found[several] = (names, chunks[-1]["usage"]["completion_tokens"], parts[-1]["finish_reason"])
        else:
            choice = answer.json()["choices"][0]
            assert choice["message"]["content"] == "Well. "
            names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
            found[several] = (names, answer.json()["usage"]["completion_tokens"], choice["finish_reason"])
    assert found[True][0] == ["stop_all", "stop_all"]
    assert found[False][0] == ["stop_all"]
    assert found[False][1] < 0.7 * found[True][1]
    assert found[True][2] == found[False][2] == "tool_calls"


def test_a_stop_string_of_ours_is_not_told_as_one_of_theirs(server: Running) -> None:
    body = {
        "model": "tiny", "messages": ASK, "max_tokens": 50, "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }  # fmt: skip
    answer = server.post("/v1/messages", body).json()
    assert answer["stop_sequence"] is None
    assert answer["stop_reason"] in ("max_tokens", "end_turn", "tool_use")


def test_a_stop_string_of_ours_is_not_counted_among_theirs(server: Running) -> None:
    assert Limits().max_stop == 16
    with pytest.raises(ConfigError, match="max_stop must be a whole number from 0 to 16"):
        Limits(max_stop=17)
    body = {"messages": ASK, "max_tokens": 2, "tools": TOOLS, "parallel_tool_calls": False, "stop": ["a stop"] * 16}
    assert server.post("/v1/chat/completions", body).status_code == 200
    assert server.post("/v1/chat/completions", body | {"stop": ["a stop"] * 17}).status_code == 400
