"""JSON schemas of which not all can be held: what is left out without ``strict``, and what is said with it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hasten.engine.llm import LLM
from hasten.serve.errors import ApiError
from hasten.serve.tools import toolset_of
from hasten.serve.wire import ChatRequest
from serving import Running

pytest.importorskip("llguidance")
from hasten.engine.schemas import complaint, eased
from hasten.serve.constraints import _eased, constraint_of

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Oslo?"}],
    "max_tokens": 400,
    "seed": 5,
    "parallel_tool_calls": False,
}


def with_a(**schema: Any) -> dict[str, Any]:
    """An object whose ``a`` has that schema, beside one that can be held."""
    properties = {"a": schema, "city": {"enum": ["Oslo", "Rome"]}}
    return {"type": "object", "properties": properties, "required": ["a", "city"], "additionalProperties": False}


NAMES = {"type": "object", "maxProperties": 2, "additionalProperties": {"enum": ["x", "y"]}}
DIGIT = {"type": "string", "pattern": "^[0-9]$"}
# A schema, the keyword that cannot be held, and the schema without it.
ODD: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "propertyNames": (with_a(**NAMES, propertyNames={"pattern": "^q"}), "propertyNames", with_a(**NAMES)),
    "uniqueItems": (
        with_a(type="array", items={"enum": [1, 2]}, maxItems=2, uniqueItems=True),
        "uniqueItems",
        with_a(type="array", items={"enum": [1, 2]}, maxItems=2),
    ),
    "not": (with_a(enum=["x", "y"], **{"not": {"const": "x"}}), "not", with_a(enum=["x", "y"])),
    "if": (
        with_a(enum=["x"]) | {"if": {"properties": {"a": {"const": "x"}}}, "then": {"required": ["city"]}},
        "if",
        with_a(enum=["x"]),
    ),
    "contains": (
        with_a(type="array", items={"enum": [1]}, maxItems=1, contains={"const": 1}),
        "contains",
        with_a(type="array", items={"enum": [1]}, maxItems=1),
    ),
    "dependentRequired": (with_a(enum=["x"]) | {"dependentRequired": {"a": ["b"]}}, "dependentRequired", with_a(enum=["x"])),
    "unevaluatedProperties": (with_a(enum=["x"]) | {"unevaluatedProperties": False}, "unevaluatedProperties", with_a(enum=["x"])),
    "format": (with_a(**DIGIT, format="binary"), "binary", with_a(**DIGIT)),
    "look-ahead": (with_a(type="string", pattern="^(?!x).*$", maxLength=1), "pattern", with_a(type="string", maxLength=1)),
    "overlapping oneOf": (
        with_a(oneOf=[{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "integer", "minimum": 5, "maximum": 7}]),
        "oneOf",
        with_a(type="integer", minimum=0, maximum=9),
    ),
    "a long range": (with_a(type="integer", minimum=-(2**63), maximum=5), "minimum", with_a(type="integer", maximum=5)),
    "no null": (with_a(**DIGIT, enum=None) | {"$comment": None}, "enum", with_a(**DIGIT)),
}


def chat(server: Running, schema: dict[str, Any], strict: bool | None, tool: bool) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": strict}}
    function = {"name": "weather", "parameters": schema, "strict": strict}
    asked = (
        {"tools": [{"type": "function", "function": function}], "tool_choice": "required"} if tool else {"response_format": form}
    )
    return server.post("/v1/chat/completions", ASK | asked)


@pytest.mark.parametrize("tool", [False, True], ids=["format", "tool"])
@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_held_is_left_out_and_the_rest_holds(server: Running, name: str, tool: bool) -> None:
    schema, _, rest = ODD[name]
    choice = chat(server, schema, None, tool)
    assert choice.status_code == 200, choice.text
    message = choice.json()["choices"][0]["message"]
    jsonschema.validate(json.loads(message["tool_calls"][0]["function"]["arguments"] if tool else message["content"]), rest)


@pytest.mark.parametrize("tool", [False, True], ids=["format", "tool"])
@pytest.mark.parametrize("name", ODD)
def test_with_strict_it_is_refused_by_name(server: Running, name: str, tool: bool) -> None:
    schema, keyword, _ = ODD[name]
    refused = chat(server, schema, True, tool)
    said = refused.json()["error"]["message"]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools" if tool else "response_format")
    assert keyword in said
    assert ("'weather'" if tool else "response_format") in said
    assert said.endswith("take that out, or leave strict out.")
    assert "%json" not in said
    assert "whitespace" not in said


def test_the_tool_that_is_to_blame_is_named_among_others(server: Running) -> None:
    plain, odd = ODD["not"][2], ODD["not"][0]
    tools: list[dict[str, Any]] = [{"name": "weather", "input_schema": plain, "strict": True}, {"name": "tag", "input_schema": odd}]
    body = {"model": "tiny", "max_tokens": 300, "messages": ASK["messages"], "tools": tools, "tool_choice": {"type": "any"}}
    assert server.post("/v1/messages", body).status_code == 200
    tools[1]["strict"] = True
    refused = server.post("/v1/messages", body)
    assert refused.status_code == 400
    assert "'tag'" in refused.json()["error"]["message"]
    assert (
        server.post("/v1/messages", body | {"tool_choice": {"type": "auto"}, "max_tokens": 2}).status_code == 200
    )  # bounds nothing
    named = body | {"tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}}
    assert server.post("/v1/messages", named).status_code == 200


def test_a_format_is_named_as_its_interface_has_it(server: Running) -> None:
    odd = ODD["not"][0]
    form = {"type": "json_schema", "name": "place", "schema": odd, "strict": True}
    refused = server.post("/v1/responses", {"input": "Oslo?", "max_output_tokens": 9, "text": {"format": form}}).json()["error"]
    assert (refused["param"], "text.format" in refused["message"]) == ("text.format", True)
    body = {"model": "tiny", "max_tokens": 9, "messages": ASK["messages"]}
    refused = server.post("/v1/messages", body | {"output_config": {"format": {"type": "json_schema", "schema": odd}}}).json()
    assert "output_config.format" in refused["error"]["message"]


@pytest.mark.parametrize(
    "schema",
    [with_a(type="colour"), with_a(**{"$ref": "#/$defs/none"}), with_a(**{"$ref": "http://127.0.0.1/x.json"}), with_a(enum=[])],
    ids=["type", "nowhere", "elsewhere", "nothing"],
)
def test_a_schema_that_is_wrong_is_refused_either_way(server: Running, schema: dict[str, Any]) -> None:
    for strict in (None, True):
        refused = chat(server, schema, strict, tool=True)
        assert (refused.status_code, "'weather'" in refused.json()["error"]["message"]) == (400, True), refused.text


def test_a_format_beside_tools_is_left_out_of_where_it_cannot_be_held(server: Running) -> None:
    """The answer that is no call, which begins with a brace."""
    schema, _, rest = ODD["look-ahead"]
    brace = server.post("/tokenize", {"prompt": "{", "add_special_tokens": False}).json()["tokens"][0]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema, "strict": True}}]
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    body = ASK | {"tools": tools, "response_format": form, "logit_bias": {brace: 100}, "temperature": 0}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), rest)


MUCH = {
    "type": "object",
    "properties": {f"p{at}": {"enum": [f"{at}_{of}" for of in range(40)]} for at in range(700)},
    "description": "x" * 300_000,
}


@pytest.mark.parametrize(("tool", "said"), [(True, "Prompt is too long"), (False, "more than an answer can be held to")])
def test_too_much_is_said_without_its_text(server: Running, tool: bool, said: str) -> None:
    """Of a tool, which the model is shown, it is the prompt that is too long first."""
    refused = chat(server, MUCH, None, tool)
    message = refused.json()["error"]["message"]
    assert refused.status_code == 400
    assert said in message
    assert tool or "response_format" in message
    assert len(message) < 200


def test_too_many_parameters_of_tools_are_called_so(tiny_model: Path) -> None:
    function = {"name": "weather", "parameters": MUCH}
    wire = ChatRequest.model_validate(ASK | {"tools": [{"type": "function", "function": function}], "tool_choice": "required"})
    with LLM(str(tiny_model)) as llm:
        tools = toolset_of(wire.with_allowed_tools(), llm.chat_template)
        with pytest.raises(ApiError, match="tools that may be called are more than an answer can be held to") as caught:
            constraint_of(llm, "", None, None, tools)
    assert len(caught.value.message) < 200


def test_only_what_cannot_be_held_is_left_out() -> None:
    bounds = {"type": "string", "minLength": 2, "pattern": "(?!a)", "maxLength": 5}
    less, left = eased({"$defs": {"x": bounds}, "anyOf": [{"items": bounds}, {"prefixItems": [bounds]}], "const": bounds})
    kept = {name: bounds[name] for name in bounds if name != "pattern"}
    assert less == {"$defs": {"x": kept}, "anyOf": [{"items": kept}, {"prefixItems": [kept]}], "const": bounds}
    assert left == ["pattern"]
    named = {"type": "object", "properties": {"pattern": {"type": "string"}, "minimum": {"type": "integer"}}}
    assert eased(named) == (named, [])
    assert eased({"patternProperties": [1], "additionalProperties": False})[0] == {"additionalProperties": False}  # no schema


def test_what_names_of_a_pattern_may_be_is_not_lost_with_the_pattern() -> None:
    """Else no name would be allowed any more, or each would have the value of the others."""
    for patterns in ({"^(?!x)": DIGIT}, {"^a": DIGIT, "b$": DIGIT}):
        less, left = eased({"type": "object", "patternProperties": patterns, "additionalProperties": False})
        assert less == {"type": "object", "additionalProperties": {"anyOf": [*patterns.values(), False]}}
        assert left == ["patternProperties"]
        assert complaint(less, lenient=True) is None
    assert eased({"type": "object", "patternProperties": {"(?!x)": DIGIT}})[0] == {"type": "object"}


def test_a_reference_to_itself_stands_alone_where_it_has_to() -> None:
    schema = {"type": "object", "properties": {"more": {"$ref": "#", "nullable": True}}}
    assert complaint(schema, lenient=True) is not None
    assert _eased(schema, False, "The schema", "tools") == {"type": "object", "properties": {"more": {"$ref": "#"}}}
    with pytest.raises(ApiError, match=r"nullable: circular references"):
        _eased(schema, True, "The schema", "tools")


def test_a_hostile_schema_costs_little_time() -> None:
    schema = {"anyOf": [{"type": "number", "minimum": 1e-300 * at} for at in range(1, 6000)]}
    began = time.monotonic()
    eased(schema)
    assert time.monotonic() - began < 20
