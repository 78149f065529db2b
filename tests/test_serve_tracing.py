"""Traces: which spans there are, what they say and never say, and that they arrive at a collector."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hasten.core.errors import ConfigError
from hasten.serve.tracing import Tracing, tracing_of
from serving import running
from serving_here import serving_here

export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
attributes = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")

WORD = "zebrafish"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": f"{WORD} one two"}], "max_tokens": 8, "ignore_eos": True}
CALLER = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


def is_phase(span: Any) -> bool:
    return span.parent is not None and not span.parent.is_remote


@pytest.fixture
def spans_of(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs requests against a traced server and gives the answers and the spans, the request's own before its phases."""
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))

    def run(*requests: tuple[str, dict[str, Any], dict[str, str]]) -> tuple[list[Any], list[Any]]:
        exporter = memory.InMemorySpanExporter()
        tracing = Tracing(export.SimpleSpanProcessor(exporter))

        async def scene() -> list[Any]:
            async with serving_here(f"tiny={tiny_model}", tracing=tracing) as client:
                return [await client.post(path, json=body, headers=headers) for path, body, headers in requests]

        answers = asyncio.run(scene())
        return answers, sorted(exporter.get_finished_spans(), key=lambda span: (is_phase(span), span.start_time))

    return run


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_and_its_phases(spans_of: Any, stream: bool) -> None:
    before = time.time_ns()
    answers, spans = spans_of(("/v1/chat/completions", {**CHAT, "stream": stream, "seed": 7, "temperature": 0.5}, {}))
    assert answers[0].status_code == 200
    assert [span.name for span in spans] == ["chat tiny", "queue", "prefill", "decode"]
    request, queue, prefill, decode = spans
    assert {span.parent.span_id for span in spans[1:]} == {request.context.span_id}
    assert {span.context.trace_id for span in spans} == {request.context.trace_id}
    assert before <= request.start_time <= queue.start_time
    assert queue.end_time == prefill.start_time
    assert prefill.end_time == decode.start_time
    assert decode.start_time < decode.end_time <= request.end_time <= time.time_ns()
    assert request.attributes[attributes.GEN_AI_OPERATION_NAME] == "chat"
    assert request.attributes[attributes.GEN_AI_PROVIDER_NAME] == "hasten"
    assert request.attributes[attributes.GEN_AI_REQUEST_MODEL] == "tiny"
    assert request.attributes[attributes.GEN_AI_REQUEST_MAX_TOKENS] == 8
    assert request.attributes[attributes.GEN_AI_REQUEST_SEED] == 7
    assert request.attributes[attributes.GEN_AI_REQUEST_TEMPERATURE] == 0.5
    assert request.attributes[attributes.GEN_AI_USAGE_OUTPUT_TOKENS] == 8
    assert request.attributes[attributes.GEN_AI_USAGE_INPUT_TOKENS] > 8
    assert request.attributes[attributes.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    known = {value for name, value in vars(attributes).items() if name.startswith("GEN_AI_") and isinstance(value, str)}
    ours = {name for span in spans for name in span.attributes if name.startswith("gen_ai.")}
    assert ours - known <= {"gen_ai.usage.cache_read.input_tokens"}  # newer than some versions of the list


def test_no_word_of_a_prompt_or_an_answer(spans_of: Any) -> None:
    body = {**CHAT, "stop": [f"{WORD}-stop"], "tools": [], "user": WORD, "metadata": {"a": WORD}}
    answers, spans = spans_of(
        ("/v1/chat/completions", body, {}),
        ("/v1/completions", {"prompt": [WORD, f"{WORD} two"], "max_tokens": 3, "ignore_eos": True}, {}),
        ("/v1/embeddings", {"input": WORD}, {}),
        ("/v1/messages", {"model": "tiny", "max_tokens": 2, "system": WORD, "messages": CHAT["messages"]}, {}),
        ("/v1/chat/completions", {"messages": [{"role": WORD, "content": WORD}]}, {}),
        (f"/v1/{WORD}", {}, {}),
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 400, 404]
    told = json.dumps([json.loads(span.to_json()) for span in spans])
    assert WORD not in told
    assert answers[0].json()["choices"][0]["message"]["content"] not in told
    names = [span.name for span in spans if span.parent is None]
    assert names == [
        "chat tiny", "text_completion tiny", "embeddings tiny", "chat tiny", "POST /v1/chat/completions", "POST other",
    ]  # fmt: skip
    refused = next(span for span in spans if span.name == "POST /v1/chat/completions")
    assert refused.attributes["http.response.status_code"] == 400
    prompts = [span.attributes["hasten.prompt.index"] for span in spans if "hasten.prompt.index" in span.attributes]
    assert sorted(prompts) == [0, 0, 0, 1, 1, 1]


def test_the_callers_trace_goes_on_and_nonsense_begins_a_new_one(spans_of: Any) -> None:
    _, spans = spans_of(
        ("/v1/chat/completions", CHAT, {"traceparent": CALLER}),
        ("/v1/chat/completions", CHAT, {"traceparent": "00-zz-11-01", "tracestate": "=" * 5000}),
    )
    first, second = (span for span in spans if span.name == "chat tiny")
    assert first.context.trace_id == int(CALLER.split("-")[1], 16)
    assert first.parent.span_id == int(CALLER.split("-")[2], 16)
    assert second.parent is None


def test_when_there_are_traces(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    here = "http://127.0.0.1:9"
    assert tracing_of(None, {}) is None
    assert tracing_of(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": here, "OTEL_SDK_DISABLED": "true"}) is None
    assert tracing_of(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": here, "OTEL_TRACES_EXPORTER": "none"}) is None
    assert tracing_of(None, {"OTEL_TRACES_EXPORTER": "console"}) is None
    assert "console" in caplog.text
    for found in (tracing_of(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": here}), tracing_of(here + "/v1/traces", {})):
        assert found is not None
        found.close()
    with pytest.raises(ConfigError, match="trace endpoint"):
        tracing_of("localhost", {})
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"hasten\[trace\]"):
        tracing_of(here, {})
    assert tracing_of(None, {"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "hasten[trace]" in caplog.text


class Collector(BaseHTTPRequestHandler):
    """Keeps the bodies of what is sent to it."""

    bodies: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def test_spans_arrive_at_a_collector_that_the_environment_names(tmp_path: Path, tiny_model: Path) -> None:
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_SERVICE_NAME": "our-hasten",
        }
        with running(home=tmp_path, models=(f"tiny={tiny_model}",), environment=environment) as server:
            assert server.post("/v1/chat/completions", CHAT).status_code == 200
        collector.shutdown()  # what was left came while the server ended
    assert {path for path, _ in Collector.bodies} == {"/v1/traces"}
    names, services = set(), set()
    for _, body in Collector.bodies:
        for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            services |= {one.value.string_value for one in resource.resource.attributes if one.key == "service.name"}
            names |= {span.name for scope in resource.scope_spans for span in scope.spans}
        assert WORD.encode() not in body
    assert names == {"chat tiny", "queue", "prefill", "decode"}
    assert services == {"our-hasten"}
