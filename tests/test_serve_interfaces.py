"""Anthropic's client, OpenAI's responses and embeddings, and the metrics, against a running server."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.core.types import Batch, SamplingParams, Segment
from hasten.engine.embedding import embed
from serving import Running
from serving_here import serving_here
from tiny import run_all, tiny_engine

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")

GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0.0}}  # newer versions of the client leave it out
ASK: list[Any] = [{"role": "user", "content": "def fibonacci(number):"}]


@pytest.fixture(scope="module")
def claude(server: Running) -> Any:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_messages_whole_and_streamed(claude: Any, client: Any) -> None:
    options = {"model": "tiny", "messages": ASK, "max_tokens": 40}
    whole = claude.messages.create(**options, **GREEDY)
    same = client.chat.completions.create(**options, temperature=0.0)
    assert whole.role == "assistant"
    assert whole.content[0].text == same.choices[0].message.content
    assert whole.stop_reason == {"stop": "end_turn", "length": "max_tokens"}[same.choices[0].finish_reason]
    assert whole.usage.output_tokens == same.usage.completion_tokens
    with claude.messages.stream(**options, **GREEDY) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"


def test_messages_with_system_blocks_and_stop(claude: Any) -> None:
    text = claude.messages.create(model="tiny", messages=ASK, max_tokens=40, **GREEDY).content[0].text
    stop = text[8:10]
    cut = claude.messages.create(model="tiny", messages=ASK, max_tokens=40, **GREEDY, stop_sequences=[stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].text == text[: text.index(stop)]
    blocks: list[Any] = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    assert claude.messages.create(model="tiny", messages=blocks, max_tokens=40, **GREEDY).content[0].text == text
    other = claude.messages.create(model="tiny", messages=ASK, max_tokens=40, **GREEDY, system="Answer in verse.")
    assert other.usage.input_tokens + other.usage.cache_read_input_tokens > 20


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"extra_body": {"temperature": 2.0}}, "temperature"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]}, "image"),
        ({"extra_body": {"mcp_servers": []}}, "mcp_servers"),
    ],
)
def test_messages_errors_have_anthropics_shape(claude: Any, change: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**{"model": "tiny", "messages": ASK, "max_tokens": 4, **change})
    assert caught.value.body["type"] == "error"
    assert named in caught.value.body["error"]["message"]


CHAT = {"model": "tiny", "messages": ASK, "max_tokens": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/messages": CHAT,
}


@pytest.mark.parametrize(
    ("path", "change", "sentence"),
    [
        *((path, {"temperature": 2.01}, "temperature must be a number from 0 to 2, not 2.01.") for path in list(OTHERS)[:3]),
        ("/v1/messages", {"temperature": 1.01}, "temperature must be a number from 0 to 1, not 1.01."),
        *((path, {"temperature": -0.01}, ", not -0.01.") for path in OTHERS),
        *((path, {"top_p": -0.1}, "top_p must be a number from 0 to 1, not -0.1.") for path in OTHERS),
        ("/v1/messages", {"top_k": -2}, "top_k must be a whole number of at least 1, or 0 for no limit, not -2."),
        ("/v1/chat/completions", {"top_k": 1.5}, "Invalid value for 'top_k': Input should be a valid integer."),
        ("/v1/completions", {"min_p": 1.1}, "min_p must be a number from 0 to 1, not 1.1."),
        ("/v1/completions", {"presence_penalty": -2.1}, "presence_penalty must be a number from -2 to 2, not -2.1."),
        ("/v1/completions", {"frequency_penalty": 3}, "frequency_penalty must be a number from -2 to 2, not 3.0."),
        ("/v1/completions", {"repetition_penalty": 0}, "repetition_penalty must be a number from 0.01 to 100, not 0.0."),
        ("/v1/completions", {"n": 9}, "n must be a whole number from 1 to 8 here, not 9."),
        ("/v1/completions", {"n": 0}, "n must be a whole number from 1 to 8 here, not 0."),
        ("/v1/completions", {"logprobs": 21}, "logprobs must be a whole number from 0 to 20 here, not 21."),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": -1}, "top_logprobs must be a whole number from 0 to 20 here"),
        ("/v1/chat/completions", {"max_tokens": 0}, "max_tokens must be a whole number from 1 to 2147483647, not 0."),
        ("/v1/chat/completions", {"max_completion_tokens": 2**31}, "max_completion_tokens must be a whole number from 1 to 2147"),
        ("/v1/responses", {"max_output_tokens": 0}, "max_output_tokens must be a whole number from 1 to 2147483647, not 0."),
        ("/v1/messages", {"max_tokens": -1}, "max_tokens must be a whole number from 1 to 2147483647, not -1."),
        ("/v1/chat/completions", {"stop": ["a"] * 17}, "A request takes at most 16 stop strings here, not 17."),
        ("/v1/messages", {"stop_sequences": ["x" * 257]}, "A stop string has at most 256 characters here."),
        ("/v1/messages", {"stop_sequences": [""]}, "each stop string must have at least one character, not ''."),
        ("/v1/chat/completions", {"stop": [1]}, "Invalid value for 'stop.0': Input should be a valid string."),
        ("/v1/chat/completions", {"logit_bias": {"5": 101}}, "each logit_bias value must be a number from -100 to 100"),
        ("/v1/chat/completions", {"speculation": {"nodes": -1}}, "Invalid value for 'speculation.nodes': "),
        ("/v1/completions", {"prompt": ["a", 1]}, "Invalid value for 'prompt.1': Input should be a valid string."),
        ("/v1/responses", {"input": []}, "Invalid value for 'input': List should have at least 1 item"),
        ("/v1/responses", {"instructions": "x", "input": [{"role": "x", "content": "y"}]}, "input[0] has the role 'x'; it must"),
    ],
)
def test_what_is_out_of_range_is_refused_under_its_own_name(
    server: Running, path: str, change: dict[str, Any], sentence: str
) -> None:
    answer = server.post(path, {**OTHERS[path], **change})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
    param = answer.json()["error"].get("param")
    assert path == "/v1/messages" or param.split(".")[0] in change


@pytest.mark.parametrize("path", OTHERS)
def test_the_ends_of_ranges_are_inside(server: Running, path: str) -> None:
    ends = [{"temperature": 0}, {"temperature": 1 if path == "/v1/messages" else 2}, {"top_p": 0}, {"top_p": 1}]
    if path != "/v1/responses":
        ends += [{"top_k": top_k} for top_k in (-1, 0, 1)]
    answers = [server.post(path, {**OTHERS[path], **end}) for end in ends]
    assert [answer.status_code for answer in answers] == [200] * len(ends), [answer.text for answer in answers]


def text_of(answer: dict[str, Any]) -> str:
    if "choices" in answer:
        choice = answer["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])
    return str((answer["content"] if "content" in answer else answer["output"][0]["content"])[0]["text"])


@pytest.mark.parametrize("path", OTHERS)
def test_top_p_0_is_the_likeliest_text(server: Running, path: str) -> None:
    body = {**OTHERS[path], "max_output_tokens" if path == "/v1/responses" else "max_tokens": 30}
    asked = ({"temperature": 0}, {"temperature": 1, "top_p": 0}, {"top_p": 0, "speculation": "off"})
    texts = [text_of(server.post(path, body | one).json()) for one in asked]
    assert texts == [texts[0]] * 3
    assert texts[0]


TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"system": "Answer in verse."},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {
            "messages": [
                *ASK,
                {"role": "assistant", "content": "So"},
                {"role": "user", "content": [{"type": "text", "text": "Ä ö"}]},
            ]
        },
    ],
)
def test_counted_tokens_are_those_of_the_answer(claude: Any, more: dict[str, Any]) -> None:
    asked = {"model": "tiny", "messages": ASK, **more}
    usage = claude.messages.create(max_tokens=2, **asked).usage
    assert claude.messages.count_tokens(**asked).input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_a_conversation_is_counted_that_no_context_holds(claude: Any, server: Running) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    counted = claude.messages.with_raw_response.count_tokens(model="tiny", messages=long)
    assert counted.parse().input_tokens > 3000
    assert counted.headers["request-id"] == counted.headers["x-request-id"]
    with pytest.raises(anthropic.BadRequestError, match="context"):
        claude.messages.create(model="tiny", messages=long, max_tokens=2)
    server.wait_idle()


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"model": "tiny"}, 400, "messages"),
        ({"messages": ASK}, 400, "model"),
        ({"model": "other", "messages": ASK}, 404, "other"),
        ({"model": "tiny", "messages": []}, 400, "messages"),
        ({"model": "tiny", "messages": ASK, "max_tokens": 2}, 400, "max_tokens"),
        ({"model": "tiny", "messages": ASK, "tools": [TOOL, TOOL]}, 400, "same name"),
        ({"model": "tiny", "messages": ASK, "tools": [{**TOOL, "name": "two words"}]}, 400, "tools.0.name"),
        (
            {"model": "tiny", "messages": ASK, "tools": [{**TOOL, "name": f"t{at}"} for at in range(65)]},
            400,
            "at most 64 entries here, not 65; send fewer, or start the server with a higher --max-tools",
        ),
        ({"model": "tiny", "messages": ASK, "tool_choice": {"type": "tool", "name": "x"}, "tools": [TOOL]}, 400, "tool_choice"),
        ({"model": "tiny", "messages": ASK, "thinking": {"type": "adaptive", "budget_tokens": 1024}}, 400, "thinking"),
    ],
)
def test_what_cannot_be_counted_is_said_in_anthropics_shape(server: Running, body: dict[str, Any], status: int, named: str) -> None:
    answer = server.post("/v1/messages/count_tokens", body)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert named in answer.json()["error"]["message"]


def test_responses_whole_and_streamed(client: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "input": "one two one", "instructions": "Be short.", "temperature": 0.0}
    whole = client.responses.create(max_output_tokens=30, **options)
    assert whole.output_text
    assert whole.status in ("completed", "incomplete")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(client.responses.create(max_output_tokens=30, stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == f"response.{whole.status}"
    assert events[-1].response.output_text == whole.output_text
    turns: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "one two one"}]}]
    assert client.responses.create(max_output_tokens=30, **{**options, "input": turns}).output_text == whole.output_text


@pytest.mark.parametrize(
    "change", [{"store": True}, {"previous_response_id": "resp_1"}, {"background": True}, {"truncation": "auto"}]
)
def test_responses_refuse_what_needs_a_memory(client: Any, change: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(change))):
        client.responses.create(model="tiny", input="x", **change)


def test_embeddings(client: Any, server: Running) -> None:
    texts = ["one two three", "one two three", "def f(x):\n    return x"]
    answer = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    vectors = np.array([entry.embedding for entry in answer.data])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(vectors[0], vectors[1])
    assert abs(vectors[0] @ vectors[2]) < 0.999
    last = server.post("/v1/embeddings", {"model": "tiny", "input": texts, "pooling": "last"}).json()
    assert last["hasten"]["pooling"] == "last"
    assert not np.allclose(last["data"][0]["embedding"], vectors[0], atol=1e-3)
    coded = server.post("/v1/embeddings", {"model": "tiny", "input": texts[2], "encoding_format": "base64"}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4"), vectors[2], atol=1e-7)
    assert server.post("/v1/embeddings", {"input": "x", "encoding_format": None, "user": None}).status_code == 200
    for wrong in ({"input": []}, {"input": ""}, {"input": [""]}, {"dimensions": 8, "input": "x"}, {"pooling": "max", "input": "x"}):
        assert server.post("/v1/embeddings", {"model": "tiny", **wrong}).status_code == 400
    server.wait_idle()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_is_the_hidden_state_whatever_the_chunks(pooling: Any) -> None:
    """Against one whole pass of another engine; the blocks come back, and decoding beside it is not disturbed."""
    tokens = [(7 * at + 3) % 50 for at in range(150)]
    engine = tiny_engine(max_rows=32)
    request = engine.submit([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True))
    found = None
    for vector in embed(engine, tokens, pooling):
        found = vector
        engine.step()
    run_all(engine, [request])
    alone = tiny_engine()
    assert run_all(alone, [plain := alone.submit([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True))])
    assert plain.answers[0].sequence.output == request.answers[0].sequence.output
    whole = tiny_engine(max_rows=512).executor.hidden(Batch([Segment(list(range(3)), 0, tokens)]))
    expected = whole[-1] if pooling == "last" else whole.sum(dim=0)
    assert found is not None
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=0), atol=1e-9)
    half = embed(engine, tokens, pooling)
    next(half)
    half.close()
    assert engine.scheduler.blocks.available == engine.scheduler.blocks.num_blocks


def test_metrics_have_the_fields_names(server: Running) -> None:
    server.post("/v1/completions", {"prompt": "one two " * 20, "max_tokens": 60, "temperature": 0, "speculation": "on"})
    text = server.get("/metrics").text
    for name in (
        "hasten:spec_decode_num_drafts_total",
        "hasten:spec_decode_num_draft_tokens_total",
        "hasten:spec_decode_num_accepted_tokens_total",
        'hasten:spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny",position="0"}',
        "hasten:num_requests_running",
        "hasten:num_requests_waiting",
        "hasten:kv_cache_usage_perc",
        "hasten:prefix_cache_queries_total",
        "hasten:time_to_first_token_seconds_bucket",
        "hasten:request_time_per_output_token_seconds_sum",
        "hasten:e2e_request_latency_seconds_count",
        "hasten:request_queue_time_seconds_count",
        "hasten:generation_tokens_total",
        "hasten:http_requests_total",
    ):
        assert name in text, name
    accepted = server.metric("hasten:spec_decode_num_accepted_tokens_total")
    assert 0 < accepted <= server.metric("hasten:spec_decode_num_draft_tokens_total")
    assert accepted == server.metric("hasten:spec_decode_num_accepted_tokens_per_pos_total")
    assert server.metric("hasten:time_to_first_token_seconds_count") == server.metric("hasten:e2e_request_latency_seconds_count")


def test_requests_are_counted_by_their_routes(tiny_model: Path) -> None:
    async def scene() -> str:
        async with serving_here(f"tiny={tiny_model}") as client:
            for name in ("tiny", "none", "some/one", "{name:path}"):
                await client.get(f"/v1/models/{name}")
            for path in ("/v1/models", "/v1/model/tiny", "/elsewhere"):
                await client.get(path)
            return (await client.get("/metrics")).text

    found = re.findall(r'hasten:http_requests_total\{path="([^"]*)",status="(\d+)"\} ([\d.]+)', asyncio.run(scene()))
    counts = {(path, int(status)): float(count) for path, status, count in found}
    assert counts == {("/v1/models", 200): 1, ("/v1/models/{name}", 200): 1, ("/v1/models/{name}", 404): 3, ("other", 404): 2}
