"""OpenTelemetry traces: one span a request, and under it the time in the queue, in prefill and in decoding.

A span is made when its request is over, from times that were taken anyway, so nothing is added to the path of a token. Names follow
OpenTelemetry's semantic conventions for HTTP and for generative AI. No span ever has a word of a prompt or an answer, nor a stop
string. Needs ``hasten[trace]``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten import __version__
from hasten.core.errors import ConfigError
from hasten.serve.generation import Generation
from hasten.serve.tickets import Ticket

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

log = logging.getLogger(__name__)
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
Attributes = dict[str, Any]


def tracing_of(endpoint: str | None, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Traces sent by OTLP over HTTP to ``endpoint``, else to where OpenTelemetry's own variables say; None where neither asks.

    Raises ConfigError when traces are asked for by ``endpoint`` and cannot be made."""
    if endpoint is None and not _asked_for(environment):
        return None
    check_endpoint(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as problem:
        if endpoint is not None:
            raise ConfigError("Traces need further packages; install them with: pip install 'hasten[trace]'") from problem
        log.warning(
            "The environment asks for traces, but they need further packages (pip install 'hasten[trace]'); there are none."
        )
        return None
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


def check_endpoint(endpoint: str | None) -> None:
    """Raises ConfigError where that is an endpoint and no address of the web."""
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"A trace endpoint is written http://name:port/v1/traces, not {endpoint!r}.")


def _asked_for(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables turn traces on: an endpoint or the exporter is named, and nothing turns them off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        log.warning("Traces are only sent by OTLP here, so OTEL_TRACES_EXPORTER=%s has no effect.", exporter)
    return exporter == "otlp" or (not exporter and any(environment.get(name) for name in ENDPOINTS))


class Tracing:
    """Makes spans and gives them to ``processor``. ``close`` sends what is left and may take seconds: not for the event loop."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = Resource.create({"service.name": "hasten", "service.version": __version__})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("hasten.serve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        self._provider.shutdown()

    def record(
        self, method: str, path: str, headers: Mapping[str, str], status: int, began: float, state: Mapping[str, Any]
    ) -> None:
        """A request is over. ``began``: monotonic seconds; ``state``: the request's own, with ``log`` and, where tokens were made,
        ``generation``. A ``traceparent`` among the headers makes the span part of the caller's trace."""
        from opentelemetry import trace

        noted, generation = state["log"], state.get("generation")
        clock = _Clock()
        attributes: Attributes = {
            "http.request.method": method,
            "http.route": path,
            "http.response.status_code": status,
            "hasten.request.id": state["request_id"],
        }
        if state["tenant"]:
            attributes["hasten.tenant"] = state["tenant"]
        if "error" in noted:
            attributes["error.type"] = noted["error"]
        operation, model = OPERATIONS.get(path), noted.get("model")
        if operation is not None:
            attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "hasten"}
        if operation is not None and model is not None:
            attributes |= {"gen_ai.request.model": model, "gen_ai.response.model": model}
            attributes["gen_ai.usage.input_tokens"] = noted["prompt_tokens"]
        if generation is not None:
            attributes |= _of_generation(generation)
        span = self._tracer.start_span(
            f"{operation} {model}" if operation and model else f"{method} {path}",
            self._propagator.extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers}),
            trace.SpanKind.SERVER,
            attributes,
            start_time=clock.wall(began),
        )
        if status >= 500 or (status < 400 and "error" in noted):  # the latter: an error in a stream that had begun
            span.set_status(trace.StatusCode.ERROR)
        if generation is not None:
            context = trace.set_span_in_context(span)
            for at, ticket in enumerate(generation.tickets):
                self._phases(ticket, context, clock, {"hasten.prompt.index": at} if len(generation.tickets) > 1 else {})
        span.end(clock.now_wall)

    def _phases(self, ticket: Ticket, context: Context, clock: _Clock, common: Attributes) -> None:
        """What the engine did for one prompt: each phase ends where the next begins, or with the request."""
        times = ticket.times
        borders = [
            ("queue", times.queued, times.started),
            ("prefill", times.started, times.first),
            ("decode", times.first, times.last),
        ]
        for name, begin, end in borders:
            if begin is None:
                return
            attributes = {**common, "gen_ai.usage.input_tokens": len(ticket.job.prompt)} if name == "prefill" else common
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=clock.wall(begin))
            span.end(clock.now_wall if end is None else clock.wall(end))


class _Clock:
    """Nanoseconds since the epoch of monotonic seconds: durations stay true when somebody sets the machine's clock."""

    def __init__(self) -> None:
        self.now_wall = time.time_ns()
        self._now = time.monotonic()

    def wall(self, moment: float) -> int:
        return self.now_wall - round((self._now - moment) * 1e9)


def _of_generation(generation: Generation) -> Attributes:
    job, whole = generation.tickets[0].job, generation.whole
    params = job.params
    attributes: Attributes = {
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.usage.output_tokens": generation.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": sum(one.usage.cached_tokens for one in whole),
        "gen_ai.response.finish_reasons": [answer.finish_reason for one in whole for answer in one.answers] or ["cancelled"],
        "hasten.priority": job.priority,
        "hasten.speculation.mode": job.speculation.mode,
        "hasten.speculation.rounds": sum(one.speculation.rounds for one in whole),
        "hasten.speculation.drafted": sum(one.speculation.drafted for one in whole),
        "hasten.speculation.accepted": sum(one.speculation.accepted for one in whole),
    }
    if params.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = params.max_tokens
    if params.seed is not None and params.seed < 2**63:
        attributes["gen_ai.request.seed"] = params.seed
    if params.n > 1:
        attributes["gen_ai.request.choice.count"] = params.n
    if len(whole) == 1 and whole[0].speed.speedup is not None:
        attributes["hasten.speedup"] = whole[0].speed.speedup
    return attributes
