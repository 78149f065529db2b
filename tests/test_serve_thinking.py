"""Thoughts over the three interfaces, by the official clients: whole and streamed, kept out of forms and calls, and sent back."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from hasten.core.config import EngineConfig
from hasten.core.results import StreamEvent
from hasten.engine.llm import LLM
from hasten.serve.anthropic_in import MessagesRequest
from hasten.serve.anthropic_in import as_chat as chat_of_messages
from hasten.serve.body import validated
from hasten.serve.generation import merged
from hasten.serve.responses_in import ResponsesRequest
from hasten.serve.responses_in import as_chat as chat_of_items
from serving import write_model
from serving_here import serving_here
from thinkers import MARKS, OPENED, OPENS_ITSELF, Script

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
httpx2 = pytest.importorskip("httpx2")  # which Anthropic's client is made of
pytest.importorskip("llguidance")

ASK: list[Any] = [{"role": "user", "content": "two and two"}]
SAYS = "\nI add.\n</think>\n\nFour."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class Server:
    """The application over a model that thinks, and its clients."""

    def __init__(self, script: Script, client: httpx.AsyncClient) -> None:
        self.script = script
        self.http = client
        options: dict[str, Any] = {"api_key": "none", "max_retries": 0}
        self.openai: Any = openai.AsyncOpenAI(base_url="http://localhost/v1", http_client=client, **options)
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(client._transport.app))  # type: ignore[attr-defined]
        self.anthropic: Any = anthropic.AsyncAnthropic(base_url="http://localhost", http_client=http, **options)

    @property
    def prompt(self) -> str:
        tokens = self.script.asked
        return "".join(map(self.script.engine.tokenizer.token_text, tokens))

    async def chat(self, **options: Any) -> Any:
        return await self.openai.chat.completions.create(**{"model": "tiny", "messages": ASK, "max_tokens": 90, **options})

    async def chunks(self, **options: Any) -> list[Any]:
        return [chunk async for chunk in await self.chat(stream=True, **options)]


@pytest.fixture(scope="module", params=["opened", "opens"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = OPENED if request.param == "opened" else OPENS_ITSELF
    return write_model(tmp_path_factory.mktemp(request.param) / "tiny.gguf", template=template, marks=MARKS)


def asked(path: Path, says: str, test: Callable[[Server], Awaitable[None]]) -> None:
    """Run a test against a server whose model says this, and its opening mark first where its template leaves that to it."""
    scripts: list[Script] = []

    def load(config: EngineConfig) -> LLM:
        llm = LLM(EngineConfig(model=str(path), draft="none", precision="fp32"))
        scripts.append(Script(llm.engine))
        scripts[0].say(("<think>" if llm.chat_template == OPENS_ITSELF else "") + says)
        return llm

    async def run() -> None:
        async with serving_here(f"tiny={path}", load=load) as client:
            await test(Server(scripts[0], client))

    asyncio.run(run())


def test_a_chat_tells_the_thought_beside_the_content(path: Path) -> None:
    async def test(server: Server) -> None:
        whole = await server.chat(extra_body={"provenance": True}, logprobs=True)
        message, own = whole.choices[0].message, whole.hasten
        assert (message.reasoning_content, message.content) == ("I add.", "Four.")
        assert "".join(own["pieces"][0]) == "I add.Four."
        assert len(own["provenance"][0]) == whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
        assert 0 < whole.usage.completion_tokens_details.reasoning_tokens < whole.usage.completion_tokens
        chunks = await server.chunks(extra_body={"provenance": True}, logprobs=True, stream_options={"include_usage": True})
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        thoughts = [getattr(delta, "reasoning_content", None) for delta in deltas]
        assert "".join(filter(None, thoughts)) == "I add."
        assert "".join(delta.content or "" for delta in deltas) == "Four."
        assert not any(thought is not None and delta.content is not None for thought, delta in zip(thoughts, deltas, strict=True))
        for chunk in chunks:
            if getattr(chunk, "hasten", None) and "pieces" in chunk.hasten:
                delta = chunk.choices[0].delta
                assert "".join(chunk.hasten["pieces"]) == (delta.content or "") + (getattr(delta, "reasoning_content", None) or "")
        codes = "".join(chunk.hasten.get("provenance", "") for chunk in chunks if getattr(chunk, "hasten", None))
        assert codes == own["provenance"][0]
        assert chunks[-1].usage == whole.usage

    asked(path, SAYS, test)


def test_a_thought_can_be_left_in_the_content(path: Path) -> None:
    async def test(server: Server) -> None:
        for format, content in (("none", SAYS), ("auto", "Four."), ("deepseek", "Four.")):
            message = (await server.chat(extra_body={"reasoning_format": format})).choices[0].message
            assert message.content.removeprefix("<think>") == content
            assert hasattr(message, "reasoning_content") == (format != "none")
        with pytest.raises(openai.BadRequestError, match="reasoning_format"):
            await server.chat(extra_body={"reasoning_format": "some"})

    asked(path, SAYS, test)


def test_a_thought_that_is_cut_has_no_answer(path: Path) -> None:
    async def test(server: Server) -> None:
        choice = (await server.chat(max_tokens=4)).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("length", "")
        assert "I add.".startswith(choice.message.reasoning_content)
        items = (await server.openai.responses.create(model="tiny", input="x", max_output_tokens=4, store=False)).output
        assert [(item.type, item.status) for item in items] == [("reasoning", "incomplete")]
        ask = {"model": "tiny", "max_tokens": 4, "messages": ASK, "thinking": {"type": "adaptive"}}
        message = await server.anthropic.messages.create(**ask)
        assert ([block.type for block in message.content], message.stop_reason) == (["thinking"], "max_tokens")
        async with server.anthropic.messages.stream(**ask) as stream:
            assert [block.type for block in (await stream.get_final_message()).content] == ["thinking"]

    asked(path, SAYS, test)


def test_forms_calls_and_stop_strings_are_the_answers(path: Path) -> None:
    """The model wants to answer in words; its thought has the stop string and a call."""

    async def test(server: Server) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
        for options in ({"response_format": form}, {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}):
            message = (await server.chat(**options, max_tokens=400)).choices[0].message
            assert message.reasoning_content == f"STOP {CALL}"
            given = message.tool_calls[0].function.arguments if "tools" in options else message.content
            assert json.loads(given)["city"] in ("Oslo", "Rome")
        message = (await server.chat(tools=TOOLS, stop=["STOP"])).choices[0].message
        assert (message.reasoning_content, message.content, message.tool_calls) == (f"STOP {CALL}", "No ", None)
        message = (await server.chat(stop=["STOP"], extra_body={"reasoning_format": "none"})).choices[0].message
        assert message.content in ("", "<think>")

    asked(path, f"STOP {CALL}</think>\n\nNo STOP", test)


def test_calls_behind_a_thought_are_read(path: Path) -> None:
    async def test(server: Server) -> None:
        choice = (await server.chat(tools=TOOLS)).choices[0]
        assert (choice.message.reasoning_content, choice.message.content) == ("Where?", None)
        assert choice.message.tool_calls[0].function.name == "weather"
        streamed = await server.chunks(tools=TOOLS)
        assert [call.function.name for chunk in streamed for call in chunk.choices[0].delta.tool_calls or []] == ["weather"]
        blocks = (
            await server.anthropic.messages.create(
                model="tiny",
                max_tokens=90,
                messages=ASK,
                thinking={"type": "enabled", "budget_tokens": 1024},
                tools=[{"name": "weather", "input_schema": SCHEMA}],
            )
        ).content
        assert [block.type for block in blocks] == ["thinking", "tool_use"]

    asked(path, f"Where?</think>\n\n{CALL}", test)


def test_a_response_has_an_item_of_reasoning(path: Path) -> None:
    async def test(server: Server) -> None:
        ask = {"model": "tiny", "input": "two and two", "max_output_tokens": 90, "store": False}
        whole = await server.openai.responses.create(**ask)
        assert [item.type for item in whole.output] == ["reasoning", "message"]
        assert (whole.output[0].content[0].text, whole.output[0].summary, whole.output_text) == ("I add.", [], "Four.")
        assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
        kinds, thought = [], ""
        async with server.openai.responses.stream(**ask) as stream:
            async for event in stream:
                kinds.append((event.type.removeprefix("response."), getattr(event, "output_index", None)))
                thought += event.delta if event.type == "response.reasoning_text.delta" else ""
            final = await stream.get_final_response()
        assert (thought, final.output_text) == ("I add.", "Four.")
        assert list(dict.fromkeys(kinds)) == [
            ("created", None),
            ("in_progress", None),
            *[(name, 0) for name in ("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done")],
            *[(name, 0) for name in ("content_part.done", "output_item.done")],
            *[(name, 1) for name in ("output_item.added", "content_part.added", "output_text.delta", "output_text.done")],
            *[(name, 1) for name in ("content_part.done", "output_item.done")],
            ("completed", None),
        ]
        again = await server.openai.responses.create(**ask | {"input": [*whole.output, {"role": "user", "content": "more"}]})
        assert again.output_text == "Four."

    asked(path, SAYS, test)


def test_messages_have_blocks_of_thinking_where_they_are_asked_for(path: Path) -> None:
    async def test(server: Server) -> None:
        ask = {"model": "tiny", "max_tokens": 90, "messages": ASK}
        for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
            blocks = (await server.anthropic.messages.create(**ask, thinking=thinking)).content
            assert [block.type for block in blocks] == ["thinking", "text"]
            assert (blocks[0].thinking, blocks[0].signature, blocks[1].text) == ("I add.", "", "Four.")
            async with server.anthropic.messages.stream(**ask, thinking=thinking) as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_message()
            assert [block.model_dump() for block in final.content] == [block.model_dump() for block in blocks]
            assert {"thinking", "signature", "text"} < set(kinds)
            turn = {"role": "assistant", "content": [block.model_dump() for block in final.content]}
            await server.anthropic.messages.create(**ask | {"messages": [*ASK, turn, *ASK]}, thinking=thinking)
        for options in ({}, {"thinking": {"type": "adaptive", "display": "omitted"}}):
            blocks = (await server.anthropic.messages.create(**ask, **options)).content
            assert [(block.type, block.text) for block in blocks] == [("text", "Four.")]
            async with server.anthropic.messages.stream(**ask, **options) as stream:
                final = await stream.get_final_message()
            assert [(block.type, block.text) for block in final.content] == [("text", "Four.")]

    asked(path, SAYS, test)


def test_who_guessed_is_told_of_all_tokens_on_every_interface(path: Path) -> None:
    asks: dict[str, Any] = {
        "/v1/chat/completions": {"messages": ASK, "max_tokens": 90},
        "/v1/responses": {"input": "two and two", "max_output_tokens": 90},
        "/v1/messages": {"messages": ASK, "max_tokens": 90, "thinking": {"type": "adaptive"}},
    }
    asks["/v1/messages?hidden"] = {name: value for name, value in asks["/v1/messages"].items() if name != "thinking"}

    async def test(server: Server) -> None:
        for route, ask in asks.items():
            body = {"model": "tiny", "provenance": True, **ask}
            own = (await server.http.post(route, json=body)).json()["hasten"]
            codes, pieces = (own[name][0] if "chat" in route else own[name] for name in ("provenance", "pieces"))
            assert ("".join(pieces), len(codes)) == ("I add.Four.", len(pieces))
            lines = (await server.http.post(route, json=body | {"stream": True})).text.splitlines()
            events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
            told = [event["hasten"] for event in events if "pieces" in event.get("hasten", {})]
            assert "".join(each["provenance"] for each in told) == codes
            assert [piece for each in told for piece in each["pieces"]] == pieces

    asked(path, SAYS, test)


@pytest.mark.parametrize("seed", range(30))
def test_events_that_come_together_are_told_apart(seed: int) -> None:
    """However the events of an answer are put together, the parts say what its tokens say."""
    draw = random.Random(seed)
    early, thought, words = draw.randrange(2), draw.randrange(1, 9), draw.randrange(9)
    texts = ["t" if draw.random() < 0.7 else "" for _ in range(thought)] + [
        "w" if draw.random() < 0.7 else "" for _ in range(words)
    ]
    events: list[StreamEvent] = []
    while len(events) < early:
        events.append(StreamEvent(0, "", [-1], ["m"], pieces=[""]))  # a blank that was the thought's, as turned out later
    at = 0
    while at < len(texts):
        end = min(len(texts), at + draw.randrange(1, 4))
        pieces, inside = texts[at:end], max(0, min(end, thought) - at)
        split = "".join(pieces[:inside]), "".join(pieces[inside:])
        numbers = list(range(at, end))
        events.append(StreamEvent(0, split[1], numbers, ["m"] * len(pieces), None, pieces, [], None, split[0], inside))
        at = end
    whole: list[StreamEvent] = []
    while events:
        count = draw.randrange(1, len(events) + 1)
        (merging,) = merged([(0, event) for event in events[:count]])
        whole += merging[1].apart()
        events = events[count:]
    assert "".join(event.thought for event in whole) == "".join(texts[:thought])
    assert "".join(event.text for event in whole) == "".join(texts[thought:])
    assert [token for event in whole for token in event.tokens] == [-1] * early + list(range(len(texts)))
    for event in whole:
        assert not (event.thought and event.text)
        assert "".join(event.pieces) == event.thought + event.text
        assert len(event.pieces) == len(event.tokens) == len(event.provenance)


def test_what_is_thought_is_not_where_it_is_switched_off(path: Path) -> None:
    async def test(server: Server) -> None:
        server.script.say("<think>Four.")
        message = (await server.chat(reasoning_effort="none")).choices[0].message
        assert (message.content, hasattr(message, "reasoning_content")) == ("<think>Four.", False)

    if "opens" in str(path):
        asked(path, SAYS, test)


@pytest.mark.parametrize("seen", [True, False])
def test_the_template_says_which_thoughts_are_shown(path: Path, seen: bool) -> None:
    """Those behind the last question, by a template that shows any."""
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "REMEMBER"}
    answer = {"role": "tool", "tool_call_id": "c", "content": "warm"}

    async def test(server: Server) -> None:
        await server.chat(messages=[*ASK, turn, answer, *([] if seen else ASK)], tools=TOOLS)
        shown = seen and "opens" in str(path)
        assert ("REMEMBER" in server.prompt) == shown
        added = server.script.engine.tokenizer.added
        marks = [added[token] for token in server.script.asked if added.get(token) in MARKS]
        assert marks == ([*MARKS] if shown else []) + (["<think>"] if "opened" in str(path) else [])

    asked(path, SAYS, test)


def test_thoughts_of_other_interfaces_become_the_messages() -> None:
    thought = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
    message = {"type": "message", "role": "assistant", "content": "one"}
    user = {"role": "user", "content": "x"}

    def turns(*items: Any) -> list[Any]:
        made = chat_of_items(validated(ResponsesRequest, {"input": [user, *items, user]})).messages[1:-1]
        return [(turn["content"], turn.get("reasoning_content"), len(turn.get("tool_calls") or [])) for turn in made]

    assert turns(thought, message) == [("one", "hm", 0)]
    assert turns(thought, call) == [("", "hm", 1)]
    assert turns(thought, message, thought, call) == [("one", "hm\nhm", 1)]
    assert turns(thought) == []
    assert turns({"type": "reasoning", "id": "r", "summary": []}, message) == [("one", None, 0)]
    assert turns({"type": "reasoning", "content": 3, "summary": []}, thought | {"content": [7, {"type": "reasoning_text"}]}) == []


@pytest.mark.parametrize(
    ("keep", "kept"),
    [(None, [None, "b"]), ("all", ["a", "b"]), ({"type": "all"}, ["a", "b"]), ({"type": "thinking_turns", "value": 2}, ["a", "b"])],
)
def test_thinking_of_earlier_turns_is_cleared_as_asked(keep: Any, kept: list[str | None]) -> None:
    def turn(thought: str) -> list[Any]:
        blocks = [{"type": "thinking", "thinking": thought, "signature": ""}, {"type": "text", "text": "x"}]
        return [*ASK, {"role": "assistant", "content": blocks}]

    edit = {"type": "clear_thinking_20251015"} | ({"keep": keep} if keep is not None else {})
    body = {"model": "m", "max_tokens": 1, "messages": [*turn("a"), *turn("b"), *ASK], "context_management": {"edits": [edit]}}
    made = chat_of_messages(validated(MessagesRequest, body)).messages
    assert [message.get("reasoning_content") for message in made if message["role"] == "assistant"] == kept
