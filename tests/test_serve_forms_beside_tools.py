"""A form of the answer beside functions that the model may call, as agents ask for: it holds what is no call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving import Running

pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Oslo?"}],
    "max_tokens": 300,
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
    "parallel_tool_calls": False,
    "response_format": FORM,
}


def test_an_answer_is_a_call_or_has_the_form(server: Running) -> None:
    """Whichever the model begins."""
    tag = server.post("/tokenize", {"prompt": "<", "add_special_tokens": False}).json()["tokens"][0]
    for begins, kind in ((100, "tool_calls"), (-100, "stop")):
        choice = server.post("/v1/chat/completions", ASK | {"seed": 5, "logit_bias": {tag: begins}}).json()["choices"][0]
        assert choice["finish_reason"] == kind
        if kind == "tool_calls":
            assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
        else:
            assert json.loads(choice["message"]["content"])["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_leaves_no_words_to_hold_to_a_form(server: Running, choice: Any) -> None:
    answer = server.post("/v1/chat/completions", ASK | {"tool_choice": choice}).json()["choices"][0]
    assert answer["message"]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("schema", [{"enum": [5, {"city": "Oslo"}]}, {"maxProperties": 0}], ids=["any of", "untyped"])
def test_a_forced_call_has_an_object_whatever_else_its_schema_allows(server: Running, schema: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    five = server.post("/tokenize", {"prompt": "5", "add_special_tokens": False}).json()["tokens"][0]
    forced = {"tools": tools, "tool_choice": "required", "response_format": None, "logit_bias": {five: 100}}
    answer = server.post("/v1/chat/completions", ASK | forced).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls", answer


def test_without_calls_the_form_holds_alone(server: Running) -> None:
    for seed in range(4):
        answer = server.post("/v1/chat/completions", ASK | {"tool_choice": "none", "seed": seed}).json()["choices"][0]
        assert json.loads(answer["message"]["content"])["city"] in ("Oslo", "Rome")


def test_a_response_says_which_form_it_was_held_to(server: Running) -> None:
    """LangChain reads a streamed answer by it."""
    form = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}
    for stream in (False, True):
        body = {"input": "Oslo?", "text": form, "max_output_tokens": 300, "stream": stream}
        answer = server.post("/v1/responses", body)
        last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))["response"] if stream else answer.json()
        assert last["text"] == form
    for text, told in (({}, {}), ({"text": {"verbosity": "medium"}}, {"verbosity": "medium"})):
        answer = server.post("/v1/responses", {"input": "x", "max_output_tokens": 2, **text}).json()
        assert answer["text"] == {"format": {"type": "text"}, **told}
