"""Answers that end inside a call: no markup among the words, no call that looks finished, and the same streamed and whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from hasten.core.config import EngineConfig
from hasten.engine.llm import LLM
from hasten.serve.tools import Part, ToolReader, Toolset, read_whole, told_apart
from hasten.serve.wire import ToolFunction
from serving_here import serving_here
from test_serve_agents import events_of
from thinkers import Script

FUNCTIONS = (ToolFunction(name="f"), ToolFunction(name="g"))
HERMES, LLAMA = Toolset("hermes", FUNCTIONS), Toolset("llama3", FUNCTIONS)
OPEN, CLOSE = "<tool_call>", "</tool_call>"
CALL = f'{OPEN}\n{{"name": "g", "arguments": {{}}}}\n{CLOSE}'
WHOLE = ("g", "{}", True)


def shape(parts: list[Part]) -> tuple[str, list[tuple[str, str, bool]]]:
    words, calls = told_apart(parts)
    return words, [(call.name, call.arguments, call.whole) for call in calls]


CASES: list[tuple[Toolset, str, str, list[tuple[str, str, bool]]]] = [
    *((HERMES, f"So. {OPEN}{begun}", "So. ", []) for begun in ("", "\n", "\n{", '{"na', '{"name": "', '{"name": "unknown", "a')),
    (HERMES, f'{OPEN}{{"arguments": {{"x": 1}}, "name": "f', "", []),
    (HERMES, f'{OPEN}{{"name": "f"', "", [("f", "", False)]),
    (HERMES, f'{OPEN}{{"name": "f", "argum', "", [("f", "", False)]),
    (HERMES, f'So. {OPEN}\n{{"name": "f", "arguments": ', "So. ", [("f", "", False)]),
    (HERMES, f'{OPEN}{{"name": "f", "arguments": {{"x": [1, "}}\\"', "", [("f", '{"x": [1, "}\\"', False)]),
    (HERMES, f'{OPEN}{{"name": "f", "arguments": {{"x": 1}}', "", [("f", '{"x": 1}', False)]),
    (HERMES, f'{OPEN}{{"name": "f", "arguments": {{"x": 1}}, "m', "", [("f", '{"x": 1}', False)]),
    (HERMES, f'{OPEN}{{"name": "f", "arguments": [1', "", []),
    (HERMES, f'{OPEN}{{"name": "f", "arguments": {{}}}}\n</tool_', "", [("f", "{}", True)]),
    (HERMES, f'{CALL}\n{OPEN}\n{{"na', "", [WHOLE]),
    (HERMES, f'{CALL}\n{OPEN}\n{{"name": "f", "arguments": {{"x', "", [WHOLE, ("f", '{"x', False)]),
    (HERMES, f"{OPEN}no call", "no call", []),
    (HERMES, f"{OPEN}no {OPEN}call", "no call", []),
    (HERMES, f'{OPEN}{{"name": "f"}} and words', '{"name": "f"} and words', []),
    (HERMES, '{"name": "f", "arguments": {"x', "", [("f", '{"x', False)]),
    (HERMES, '```json\n{"name": "f", "arguments": {"x', "", [("f", '{"x', False)]),
    (HERMES, '{"name": "g", "arguments": {}}\n{"name": "f", "arguments": {"x', "", [WHOLE, ("f", '{"x', False)]),
    *(
        (HERMES, said, said, [])
        for said in ('{"name": "f"', '{"name": "f", "arg', '{"name": "f", "age": 3', '{"name": "Jo", "argum')
    ),
    (HERMES, '{"name": "f", "arguments": "x', '{"name": "f", "arguments": "x', []),
    (LLAMA, '{"name": "f", "parameters": {"x', "", [("f", '{"x', False)]),
    (LLAMA, '<|python_tag|>{"name": "f"', "", [("f", "", False)]),
    (LLAMA, '<|python_tag|>{"na', "", []),
    *((LLAMA, said, said, []) for said in ('{"name": "f"', '{"name": "Jo", "parameters": {"x', "<|python_tag|>print(")),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("tools", "text", "words", "calls"), CASES, ids=[case[1] for case in CASES])
def test_a_call_that_breaks_off_is_no_words(tools: Toolset, text: str, words: str, calls: list[Any], size: int) -> None:
    reader = ToolReader(tools)
    parts = [part for at in range(0, len(text), size) for part in reader.feed(text[at : at + size])]
    assert shape([*parts, *reader.finish()]) == shape(read_whole(text, tools)) == (words, calls)


def test_a_second_call_that_breaks_off_is_left_out_where_one_is_wanted() -> None:
    text = f'{CALL}{OPEN}{{"name": "f", "arguments": {{"x'
    assert shape(read_whole(text, Toolset("hermes", FUNCTIONS, several=False))) == ("", [WHOLE])


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_wherever_a_call_breaks_off_the_words_are_those_before_it(size: int) -> None:
    text = f'Let me see.{OPEN}\n{{"name": "f", "arguments": {{"x": "a\\"b}}", "y": [1, {{}}]}}}}\n{CLOSE}'
    given = '{"x": "a\\"b}", "y": [1, {}]}'
    for end in range(len("Let me see.") + len(OPEN), len(text) + 1):
        reader = ToolReader(HERMES)
        parts = [part for at in range(0, end, size) for part in reader.feed(text[at : min(at + size, end)])]
        words, calls = shape([*parts, *reader.finish()])
        assert words == "Let me see."
        assert all(name == "f" and given.startswith(arguments) for name, arguments, _ in calls)
        assert [whole for *_, whole in calls] == ([] if end < text.index('",') + 1 else [end >= text.index("}}\n") + 2])


# Over the interfaces

ASK: list[Any] = [{"role": "user", "content": "Oslo?"}]
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
BEGUN = 'Well. <tool_call>\n{"name": "weather", "arguments": {"city": "Os'
PARTIAL = '{"city": "Os'
FIRST = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>\n'
FUNCTION = {"name": "weather", "parameters": CITY}
Scene = Callable[[Callable[[str, dict[str, Any]], Awaitable[Any]]], Awaitable[None]]


def asked(tiny_model: Path, says: str, rest: str, scene: Scene) -> None:
    """Run ``scene`` against a model that says ``says`` and then ``rest``, which is more than it has tokens for. What ``scene`` gets
    posts a body to a path: the answer, or the events where it is streamed."""
    scripts: list[Script] = []

    def load(config: EngineConfig) -> LLM:
        llm = LLM(EngineConfig(model=str(tiny_model), draft="none", precision="fp32"))
        scripts.append(Script(llm.engine))
        scripts[0].say(says, rest)
        return llm

    async def run() -> None:
        async with serving_here(f"tiny={tiny_model}", load=load) as client:

            async def post(path: str, body: dict[str, Any]) -> Any:
                length = len(scripts[0].engine.tokenizer.encode(says, add_bos=False))
                length = body.pop("length", length)
                named = {"max_output_tokens" if path == "/v1/responses" else "max_tokens": length}
                answer: httpx.Response = await client.post(path, json={"model": "tiny", **named, **body})
                assert answer.status_code == 200, answer.text
                return events_of(answer.text.replace("data: [DONE]\n", "")) if body.get("stream") else answer.json()

            await scene(post)

    asyncio.run(run())


def message_of(chunks: list[dict[str, Any]]) -> tuple[dict[str, Any], str | None]:
    """(message, finish reason) of a streamed chat, as clients put it together."""
    message: dict[str, Any] = {"content": ""}
    finish = None
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        message["content"] += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", []):
            message.setdefault("tool_calls", []).append({name: call[name] for name in call if name != "index"})
        finish = choice["finish_reason"] or finish
    return message, finish


@pytest.mark.parametrize(
    ("says", "rest", "options", "content", "arguments", "finish"),
    [
        (BEGUN, 'lo"}}', {}, "Well. ", [PARTIAL], "length"),
        (FIRST + BEGUN.removeprefix("Well. "), 'lo"}}', {}, "", ["{}", PARTIAL], "length"),
        ('Well. <tool_call>\n{"na', 'me"', {}, "Well. ", [], "length"),
        (BEGUN, ' STOP"}}', {"stop": ["STOP"], "length": 200}, "Well. ", [PARTIAL + " "], "stop"),
        (FIRST + BEGUN, ' STOP"}}', {"stop": ["STOP"], "length": 200}, "\nWell. ", ["{}", PARTIAL + " "], "stop"),
        (BEGUN, 'lo"}}\n</tool_call>', {"length": 200}, "Well. ", ['{"city": "Oslo"}'], "tool_calls"),
    ],
)
def test_a_chat_tells_what_there_is_of_a_call(
    tiny_model: Path, says: str, rest: str, options: dict[str, Any], content: str, arguments: list[str], finish: str
) -> None:
    async def scene(post: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        body = {"messages": ASK, "tools": [{"type": "function", "function": FUNCTION}], **options}
        choice = (await post("/v1/chat/completions", dict(body)))["choices"][0]
        streamed = message_of(await post("/v1/chat/completions", body | {"stream": True}))
        for message, reason in ((choice["message"], choice["finish_reason"]), streamed):
            assert ((message["content"] or ""), reason) == (content, finish)
            calls = message.get("tool_calls", [])
            assert [call["function"]["arguments"] for call in calls] == arguments
            assert all(call["function"]["name"] == "weather" and call["id"] for call in calls)
        turns = [*ASK, choice["message"], *ASK]
        assert (await post("/v1/chat/completions", body | {"messages": turns}))["choices"]

    asked(tiny_model, says, rest, scene)


@pytest.mark.parametrize("provenance", [False, True])
@pytest.mark.parametrize(
    ("says", "rest", "options", "blocks", "ending"),
    [
        (BEGUN, 'lo"}}', {}, [("text", "Well. ")], ("max_tokens", None)),
        (BEGUN.removeprefix("Well. "), 'lo"}}', {}, [("text", "")], ("max_tokens", None)),
        (FIRST + BEGUN, 'lo"}}', {}, [("tool_use", {}), ("text", "\nWell. ")], ("max_tokens", None)),
        (BEGUN, ' STOP"}}', {"stop_sequences": ["STOP"], "length": 200}, [("text", "Well. ")], ("stop_sequence", "STOP")),
        (
            FIRST + BEGUN.removeprefix("Well. "), ' STOP"}}', {"stop_sequences": ["STOP"], "length": 200},
            [("tool_use", {})], ("stop_sequence", "STOP"),
        ),
    ],
)  # fmt: skip
def test_a_message_leaves_out_a_call_without_an_end(
    tiny_model: Path,
    says: str,
    rest: str,
    options: dict[str, Any],
    blocks: list[tuple[str, Any]],
    ending: tuple[str, str | None],
    provenance: bool,
) -> None:
    async def scene(post: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        tools = [{"name": "weather", "input_schema": CITY}]
        body = {"messages": ASK, "tools": tools, "temperature": 0, "provenance": provenance, **options}
        whole = await post("/v1/messages", dict(body))
        assert [(block["type"], block.get("text", block.get("input"))) for block in whole["content"]] == blocks
        assert (whole["stop_reason"], whole["stop_sequence"]) == ending
        events = await post("/v1/messages", body | {"stream": True})
        begun = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
        said = "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
        assert (begun, said) == ([kind for kind, _ in blocks], "".join(text for kind, text in blocks if kind == "text"))
        (delta,) = [event["delta"] for event in events if event["type"] == "message_delta"]
        assert (delta["stop_reason"], delta["stop_sequence"]) == ending
        if provenance:
            told = [piece for event in events for piece in event.get("hasten", {}).get("pieces", [])]
            assert told == whole["hasten"]["pieces"]

    asked(tiny_model, says, rest, scene)


def test_a_response_has_an_item_for_a_call_without_an_end(tiny_model: Path) -> None:
    async def scene(post: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        body = {"input": "Oslo?", "tools": [{"type": "function", **FUNCTION}]}
        whole = await post("/v1/responses", dict(body))
        events = await post("/v1/responses", body | {"stream": True})
        assert events[-1]["type"] == "response.incomplete"
        for response in (whole, events[-1]["response"]):
            assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
            message, call = response["output"]
            assert (message["status"], message["content"][0]["text"]) == ("completed", "Well. ")
            assert (call["type"], call["name"], call["arguments"], call["status"]) == (
                "function_call",
                "weather",
                PARTIAL,
                "incomplete",
            )
        done = [event for event in events if event["type"] == "response.output_item.done"]
        assert [event["item"] for event in done] == events[-1]["response"]["output"]
        again = await post("/v1/responses", body | {"input": [*ASK, *whole["output"], *ASK]})
        assert again["output"]

    asked(tiny_model, BEGUN, 'lo"}}', scene)


def test_a_response_has_no_item_for_a_call_without_a_name(tiny_model: Path) -> None:
    async def scene(post: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        body = {"input": "Oslo?", "tools": [{"type": "function", **FUNCTION}]}
        whole = await post("/v1/responses", dict(body))
        streamed = (await post("/v1/responses", body | {"stream": True}))[-1]["response"]
        for response in (whole, streamed):
            assert response["status"] == "incomplete"
            (item,) = response["output"]
            assert (item["type"], item["status"], item["content"][0]["text"]) == ("message", "incomplete", "")

    asked(tiny_model, '<tool_call>\n{"na', 'me"', scene)
