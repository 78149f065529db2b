"""``GET /metrics``: Prometheus' text form, with the names that vLLM made common (under ``hasten:``). Nothing is measured twice: the
numbers are read where they are kept when somebody asks.

mean acceptance length = 1 + accepted tokens / drafts; acceptance rate = accepted / draft tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from hasten.serve.models import Host
from hasten.serve.server import Server, server_of
from hasten.serve.totals import Histogram

LABEL = ["model_name"]
PROCESS = ProcessCollector(registry=None)  # the standard names for memory, open files, processor time and start of this process


async def metrics(request: Request) -> Response:
    """Everything a dashboard wants to know."""
    server = server_of(request)
    registry = CollectorRegistry()
    registry.register(PROCESS)
    registry.register(_Families(lambda: own_families(server)))
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})


def metrics_text(server: Server) -> str:
    """Of the process and its models alone: what a replica tells the door, which counts the requests itself."""
    registry = CollectorRegistry()
    registry.register(PROCESS)
    registry.register(_Families(lambda: _of_models(server)))
    return generate_latest(registry).decode()


def own_families(server: Server) -> Iterator[Metric]:
    """All that ``/metrics`` has at this moment, without the process's."""
    yield requests_family(server.requests)
    yield from _of_models(server)


def _of_models(server: Server) -> Iterator[Metric]:
    hosts = list(server.models.hosts.values())
    loaded = [host for host in hosts if host.loaded]
    yield from _gauges(loaded)
    yield from _stores(loaded)
    yield from _counters(hosts)
    yield from _drafting(hosts)
    yield from _histograms(hosts)


def requests_family(counts: dict[tuple[str, int], int]) -> Metric:
    """Answers by path and status."""
    requests = CounterMetricFamily("hasten:http_requests", "Answers by path and status", labels=["path", "status"])
    for (path, status), count in sorted(counts.items()):
        requests.add_metric([path, str(status)], count)
    return requests


class _Families(Collector):
    """What ``families`` gives whenever somebody asks."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families()


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
        if host.totals.speedup is not None:
            speedup.add_metric([host.name], host.totals.speedup)
    yield from (running, waiting, cache, speedup)


def _stores(hosts: list[Host]) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "hasten:draft_store_bytes", "Memory of what a drafter has indexed and learnt", labels=[*LABEL, "drafter"]
    )
    for host in hosts:
        for drafter in host.ready[0].engine.drafting.drafters:
            held.add_metric([host.name, drafter.name], drafter.bytes)
    yield held


def _counters(hosts: list[Host]) -> Iterator[Metric]:
    prompt = CounterMetricFamily("hasten:prompt_tokens", "Tokens of prompts", labels=LABEL)
    output = CounterMetricFamily("hasten:generation_tokens", "Tokens of answers", labels=LABEL)
    queries = CounterMetricFamily("hasten:prefix_cache_queries", "Tokens looked for in the prefix cache", labels=LABEL)
    hits = CounterMetricFamily("hasten:prefix_cache_hits", "Tokens found there", labels=LABEL)
    preempted = CounterMetricFamily("hasten:num_preemptions", "Sequences put off for want of blocks", labels=LABEL)
    ended = CounterMetricFamily("hasten:request_success", "Requests by how they ended", labels=[*LABEL, "finished_reason"])
    for host in hosts:
        totals, counts = host.totals, host.counts
        prompt.add_metric([host.name], totals.prompt_tokens)
        output.add_metric([host.name], totals.generation_tokens)
        queries.add_metric([host.name], counts.queries)
        hits.add_metric([host.name], counts.hits)
        preempted.add_metric([host.name], counts.preemptions)
        for reason, count in sorted(dict(totals.finished).items()):
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
        totals = host.totals
        rounds.add_metric([host.name], totals.rounds)
        for name in sorted(totals.drafted):
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
            one: Histogram = getattr(host.totals, attribute)
            family.add_metric([host.name], buckets=_cumulative(one), sum_value=one.total)
        yield family


def _cumulative(one: Histogram) -> list[tuple[str, float]]:
    counts = list(one.counts)
    return [
        (f"{border:g}" if border is not None else "+Inf", float(sum(counts[: at + 1])))
        for at, border in enumerate([*one.borders, None])
    ]
