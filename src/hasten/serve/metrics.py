"""``GET /metrics``: Prometheus' text form, with the names that vLLM made common (under ``hasten:``). Nothing is measured twice: the
numbers are read where they are kept when somebody asks.

mean acceptance length = 1 + accepted tokens / drafts; acceptance rate = accepted / draft tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from hasten.serve.models import Host
from hasten.serve.server import Server, server_of
from hasten.serve.totals import Histogram

LABEL = ["model_name"]


async def metrics(request: Request) -> Response:
    """Everything a dashboard wants to know."""
    server = server_of(request)
    registry = CollectorRegistry()
    registry.register(_Requests(server.requests))
    registry.register(_Now(server))
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})


def metrics_text(server: Server) -> str:
    """Of the models alone: what a replica tells the door, which counts the requests itself."""
    registry = CollectorRegistry()
    registry.register(_Now(server))
    return generate_latest(registry).decode()


def requests_family(counts: dict[tuple[str, int], int]) -> Metric:
    """Answers by path and status."""
    requests = CounterMetricFamily("hasten:http_requests", "Answers by path and status", labels=["path", "status"])
    for (path, status), count in sorted(counts.items()):
        requests.add_metric([path, str(status)], count)
    return requests


class _Requests(Collector):
    """What the door has answered."""

    def __init__(self, counts: dict[tuple[str, int], int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        yield requests_family(self._counts)


class _Now(Collector):
    """The state of all loaded models at this moment."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        hosts = [host for host in self._server.models.hosts.values() if host.loaded]
        yield from _gauges(hosts)
        yield from _counters(hosts)
        yield from _drafting(hosts)
        yield from _histograms(hosts)


def _gauges(hosts: list[Host]) -> Iterator[Metric]:
    running = GaugeMetricFamily("hasten:num_requests_running", "Requests in the engine", labels=LABEL)
    waiting = GaugeMetricFamily("hasten:num_requests_waiting", "Requests that wait for a place", labels=LABEL)
    cache = GaugeMetricFamily("hasten:kv_cache_usage_perc", "Share of the key-value blocks in use, 0 to 1", labels=LABEL)
    speedup = GaugeMetricFamily("hasten:speedup", "Decoding against plain decoding, over the requests of late", labels=LABEL)
    for host in hosts:
        llm, worker = host.ready
        blocks = llm.engine.scheduler.blocks
        running.add_metric([host.name], worker.running)
        waiting.add_metric([host.name], worker.waiting)
        cache.add_metric([host.name], blocks.used / blocks.num_blocks)
        if worker.totals.speedup is not None:
            speedup.add_metric([host.name], worker.totals.speedup)
    yield from (running, waiting, cache, speedup)


def _counters(hosts: list[Host]) -> Iterator[Metric]:
    prompt = CounterMetricFamily("hasten:prompt_tokens", "Tokens of prompts", labels=LABEL)
    output = CounterMetricFamily("hasten:generation_tokens", "Tokens of answers", labels=LABEL)
    queries = CounterMetricFamily("hasten:prefix_cache_queries", "Tokens looked for in the prefix cache", labels=LABEL)
    hits = CounterMetricFamily("hasten:prefix_cache_hits", "Tokens found there", labels=LABEL)
    preempted = CounterMetricFamily("hasten:num_preemptions", "Sequences put off for want of blocks", labels=LABEL)
    ended = CounterMetricFamily("hasten:request_success", "Requests by how they ended", labels=[*LABEL, "finished_reason"])
    for host in hosts:
        llm, worker = host.ready
        blocks = llm.engine.scheduler.blocks
        prompt.add_metric([host.name], worker.totals.prompt_tokens)
        output.add_metric([host.name], worker.totals.generation_tokens)
        queries.add_metric([host.name], blocks.statistics.queries * blocks.block_size)
        hits.add_metric([host.name], blocks.statistics.hits * blocks.block_size)
        preempted.add_metric([host.name], llm.engine.scheduler.preemptions)
        for reason, count in sorted(dict(worker.totals.finished).items()):
            ended.add_metric([host.name, reason], count)
    yield from (prompt, output, queries, hits, preempted, ended)


def _drafting(hosts: list[Host]) -> Iterator[Metric]:
    rounds = CounterMetricFamily("hasten:spec_decode_num_drafts", "Verification rounds", labels=LABEL)
    drafted = CounterMetricFamily(
        "hasten:spec_decode_num_draft_tokens", "Drafted tokens that were verified", labels=[*LABEL, "drafter"]
    )
    accepted = CounterMetricFamily(
        "hasten:spec_decode_num_accepted_tokens", "Drafted tokens that were accepted", labels=[*LABEL, "drafter"]
    )
    positions = CounterMetricFamily(
        "hasten:spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by their depth in the draft", labels=[*LABEL, "position"]
    )
    for host in hosts:
        totals = host.ready[1].totals
        rounds.add_metric([host.name], totals.rounds)
        names = {drafter.name for drafter in host.ready[0].engine.drafting.drafters} | set(totals.drafted)
        for name in sorted(names):
            drafted.add_metric([host.name, name], totals.drafted.get(name, 0))
            accepted.add_metric([host.name, name], totals.accepted.get(name, 0))
        for position, count in enumerate(list(totals.accepted_at)):
            positions.add_metric([host.name, str(position)], count)
    yield from (rounds, drafted, accepted, positions)


def _histograms(hosts: list[Host]) -> Iterator[Metric]:
    for name, text, attribute in (
        ("time_to_first_token_seconds", "From arrival to the first token", "first_token"),
        ("request_time_per_output_token_seconds", "Mean time between tokens of a request", "token"),
        ("e2e_request_latency_seconds", "From arrival to the last token", "whole"),
        ("request_queue_time_seconds", "From being queued to the engine", "queue"),
    ):
        family = HistogramMetricFamily(f"hasten:{name}", text, labels=LABEL)
        for host in hosts:
            one: Histogram = getattr(host.ready[1].totals, attribute)
            family.add_metric([host.name], buckets=_cumulative(one), sum_value=one.total)
        yield family


def _cumulative(one: Histogram) -> list[tuple[str, float]]:
    counts = list(one.counts)
    return [
        (f"{border:g}" if border is not None else "+Inf", float(sum(counts[: at + 1])))
        for at, border in enumerate([*one.borders, None])
    ]
