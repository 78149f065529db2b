"""The official ``openai`` package against a running server: whole and streamed answers, every parameter, errors."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from hasten.core.types import TokenLogprob
from hasten.serve.logprobs import text_logprobs
from serving import Running

openai = pytest.importorskip("openai")

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "def fibonacci(number):"}]
PROVENANCE: dict[str, Any] = {"extra_body": {"provenance": True}}


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(client: Any, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 40, "seed": 5, **options})


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "hasten"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("large")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_says_what_the_whole_answer_says(client: Any, temperature: float) -> None:
    whole = chat(client, temperature=temperature)
    choice = whole.choices[0]
    assert whole.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert 0 < whole.usage.completion_tokens <= 40
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(chat(client, temperature=temperature, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == choice.finish_reason
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_the_raw_stream_ends_with_the_mark_and_has_no_usage_unless_asked(server: Running) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "seed": 1, "stream": True}
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all("usage" not in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)
    assert chunks[-1]["hasten"]["exact"] is True


def test_speculation_changes_nothing_and_accounts_for_itself(client: Any) -> None:
    texts = set()
    for mode in ("auto", "on", "off", {"mode": "on", "nodes": 3}):
        answer = chat(client, temperature=0.9, max_tokens=80, extra_body={"speculation": mode})
        texts.add(answer.choices[0].message.content)
        own = answer.model_extra["hasten"]
        assert own["exact"] is True
        assert own["drafted"] == sum(count["drafted"] for count in own["by_drafter"].values())
        assert own["accepted"] <= own["drafted"]
        if mode == "off":
            assert own["drafted"] == 0
            assert own["by_drafter"] == {}
        if mode == "on":
            assert own["drafted"] > 0
    assert len(texts) == 1


def test_provenance_is_one_letter_a_token_whole_and_streamed(client: Any) -> None:
    options = {"temperature": 0.0, "max_tokens": 60, "extra_body": {"provenance": True, "speculation": "on"}}
    answer = chat(client, **options)
    own = answer.model_extra["hasten"]
    assert len(own["provenance"][0]) == len(own["pieces"][0]) == answer.usage.completion_tokens
    assert "".join(own["pieces"][0]) == answer.choices[0].message.content
    assert set(own["provenance"][0]) <= set(own["legend"])
    assert set(own["decisions"]) >= {"suffix", "recycling"}  # why each was on or off
    assert own["legend"]["m"] == "model"
    assert len(own["provenance"][0]) - own["provenance"][0].count("m") == own["accepted"]
    codes, pieces = "", []
    for chunk in chat(client, stream=True, **options):
        found = chunk.model_extra.get("hasten", {})
        if "pieces" in found:
            codes += found["provenance"]
            pieces += found["pieces"]
            assert "".join(found["pieces"]) == chunk.choices[0].delta.content
            assert set(found["provenance"]) <= set(found["legend"])
    assert pieces == own["pieces"][0]
    assert len(codes) - codes.count("m") == found["accepted"]  # drafters learn, so another token may be theirs now


def test_logprobs_one_entry_a_token(client: Any) -> None:
    answer = chat(client, temperature=0.0, logprobs=True, top_logprobs=3, max_tokens=20)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
    streamed = [
        entry
        for chunk in chat(client, temperature=0.0, logprobs=True, top_logprobs=3, max_tokens=20, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in entries]


def test_n_answers(client: Any) -> None:
    answer = chat(client, n=3, temperature=1.0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.choices[0].message.content == chat(client, temperature=1.0).choices[0].message.content
    texts = {0: "", 1: "", 2: ""}
    ends = {}
    for chunk in chat(client, n=3, temperature=1.0, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason
    assert list(texts.values()) == [choice.message.content for choice in answer.choices]
    assert None not in ends.values()


def test_stop_seed_and_penalties(client: Any) -> None:
    whole = chat(client, temperature=0.0, max_tokens=60).choices[0].message.content
    stop = whole[12:14]
    cut = chat(client, temperature=0.0, max_tokens=60, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert (
        chat(client, temperature=2.0, seed=1).choices[0].message.content
        != chat(client, temperature=2.0, seed=2).choices[0].message.content
    )
    assert (
        chat(client, temperature=1.0, seed=-3).choices[0].message.content
        == chat(client, temperature=1.0, seed=-3).choices[0].message.content
    )
    penalised = chat(client, temperature=0.0, max_tokens=60, frequency_penalty=2.0, presence_penalty=2.0)
    assert penalised.choices[0].message.content != whole
    forced = chat(client, max_tokens=5, logit_bias={"33": 100}, temperature=0.0, logprobs=True)
    assert len({entry.token for entry in forced.choices[0].logprobs.content}) == 1
    narrow = chat(client, temperature=1.0, extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0}, max_tokens=60)
    assert narrow.choices[0].message.content == whole
    no_end = chat(client, temperature=1.0, max_tokens=200, extra_body={"ignore_eos": True})
    assert no_end.usage.completion_tokens == 200


def test_prediction_counts(client: Any) -> None:
    text = chat(client, temperature=0.0, max_tokens=60).choices[0].message.content
    answer = chat(
        client, temperature=0.0, max_tokens=60, prediction={"type": "content", "content": text}, extra_body={"speculation": "on"}
    )
    assert answer.choices[0].message.content == text
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 5
    assert details.rejected_prediction_tokens >= 0
    wrong = chat(
        client, temperature=0.0, max_tokens=60, prediction={"type": "content", "content": [{"type": "text", "text": "no no"}]}
    )
    assert wrong.choices[0].message.content == text


def test_completions_of_several_prompts(client: Any) -> None:
    prompts = ["one two one two one", "def f(x):", "The "]
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0.7, "seed": 3}
    answer = client.completions.create(prompt=prompts, n=2, **options)
    assert [choice.index for choice in answer.choices] == list(range(6))
    alone = [client.completions.create(prompt=prompt, n=2, **options) for prompt in prompts]
    assert [choice.text for choice in answer.choices] == [choice.text for one in alone for choice in one.choices]
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    texts = [""] * 6
    for chunk in client.completions.create(prompt=prompts, n=2, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in answer.choices]


def test_completions_take_tokens_echo_and_logprobs(server: Running, client: Any) -> None:
    tokens = server.post("/tokenize", {"prompt": "one two", "add_special_tokens": False}).json()["tokens"]
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "temperature": 0.0}
    by_tokens = client.completions.create(prompt=tokens, **options).choices[0].text
    assert by_tokens == client.completions.create(prompt=[tokens], **options).choices[0].text
    assert client.completions.create(prompt=tokens, echo=True, **options).choices[0].text == "one two" + by_tokens
    answer = client.completions.create(prompt=tokens, logprobs=2, **options)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == answer.usage.completion_tokens
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_cached_tokens_are_reported(client: Any) -> None:
    long = [{"role": "user", "content": "many words " * 60}]
    chat(client, messages=long, max_tokens=2)
    assert chat(client, messages=long, max_tokens=2).usage.prompt_tokens_details.cached_tokens >= 64


def test_logprobs_of_parts_of_characters_are_told_apart() -> None:
    pieces = [b"a", b"\xf0", b"\xf0\x9f", b"a", b"z"]
    tokenizer: Any = SimpleNamespace(token_bytes=lambda token: pieces[token])
    entry = TokenLogprob(4, -5.0, ((0, -0.5), (1, -1.0), (2, -2.0), (3, -3.0)))
    told = text_logprobs([entry], ["z"], 0, tokenizer)
    assert told["tokens"] == ["z"]
    assert told["top_logprobs"] == [{"a": -0.5, "bytes:\\xf0": -1.0, "bytes:\\xf0\\x9f": -2.0, "z": -5.0}]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e9}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "y" * 257}, "stop"),
    ({"stop": ""}, "each"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "each"),
    ({"logit_bias": {"999999": 1}}, "Token"),
    ({"seed": 2**70}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"extra_body": {"response_format": {"type": "json_schema"}}}, "response_format.json_schema"),
    ({"store": True}, "store"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"extra_body": {"audio": {"voice": "x"}}}, "audio"),
    ({"extra_body": {"speculation": "always"}}, "speculation"),
    ({"extra_body": {"min_p": 2}}, "min_p"),
    ({"extra_body": {"priority": "first"}}, "priority"),
    ({"extra_body": {"deadline": -1}}, "deadline"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages.0.mood"),
    ({"extra_body": {"chat_template_kwargs": {"messages": "x"}}}, "messages"),
    ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template"),
    ({"tool_choice": "required"}, "tool_choice"),
]


@pytest.mark.parametrize(
    ("options", "named"), WRONG, ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value
)
def test_what_cannot_be_is_a_400_that_names_it(client: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **options)
    error = caught.value.body
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert named in error["message"] or error["param"] == named or (error["param"] or "").startswith(named)
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]


def test_other_errors(client: Any, server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        chat(client, model="gpt-9")
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "word " * 5000}])
    assert caught.value.code == "context_length_exceeded"
    assert server.get("/v2/nothing").status_code == 404
    assert server.get("/v1/chat/completions").status_code == 405
    assert server.get("/v1/chat/completions").json()["error"]["message"].endswith("does not take GET.")


def test_tokenize_and_back(server: Running) -> None:
    text = "Grüße, 世界! 🙂\n"
    tokens = server.post("/tokenize", {"prompt": text, "add_special_tokens": False, "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert server.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": text}
    chat_tokens = server.post("/tokenize", {"messages": HELLO}).json()["tokens"]
    assert "assistant" in server.post("/detokenize", {"tokens": chat_tokens}).json()["prompt"]
    assert server.post("/tokenize", {"prompt": "x", "messages": HELLO}).status_code == 400
    assert server.post("/detokenize", {"tokens": [-1]}).status_code == 400
    unknown = server.post("/detokenize", {"tokens": [tokens["tokens"][0], 2**31 - 1]})
    assert unknown.status_code == 400
    assert str(2**31 - 1) in unknown.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/", "/v1//chat/completions"])
def test_a_route_that_is_one_slip_away_is_told(server: Running, path: str) -> None:
    """Clients that are given an address without /v1 ask for /chat/completions; nobody is redirected, perhaps out of TLS."""
    answer = server.post(path, {})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].endswith("; did you mean /v1/chat/completions?")
    assert server.post("/nothing", {}).json()["error"]["message"].endswith("POST /nothing.")


def test_request_ids_are_echoed_or_made(server: Running) -> None:
    assert server.get("/health", headers={"x-request-id": "abc-1_2"}).headers["x-request-id"] == "abc-1_2"
    for hostile in ("http://127.0.0.1/", "a" * 65, "a b", "x;y"):
        assert server.get("/health", headers={"x-request-id": hostile}).headers["x-request-id"].startswith("req-")


def test_the_log_has_numbers_and_no_words(server: Running) -> None:
    word = "zebrafish" + os.urandom(4).hex()
    server.post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": word}], "max_tokens": 3})
    server.post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": word, "content": word}], "max_tokens": 3})
    server.wait_idle()
    assert not [line for line in server.log if word in line]
    assert [line for line in server.access() if line.get("completion_tokens", 0) and line["status"] == 200]
