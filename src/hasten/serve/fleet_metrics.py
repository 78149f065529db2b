"""``GET /metrics`` of several replicas: those of each with a label ``replica``, and what only the door knows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from hasten.serve.fleet import Fleet, Lost, Replica
from hasten.serve.metrics import requests_family

LABEL = ["replica"]
ASK_SECONDS = 5.0  # a replica that takes longer is left out this time


async def fleet_metrics(request: Request) -> Response:
    """All replicas that live are asked; one that ends meanwhile is left out."""
    front = request.app.state.server
    told = await asyncio.gather(*(_told(replica) for replica in front.fleet.live))
    registry = CollectorRegistry()
    registry.register(_Now(front.fleet, front.requests, dict(one for one in told if one is not None)))
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})


async def _told(replica: Replica) -> tuple[int, str] | None:
    try:
        return replica.number, await asyncio.wait_for(replica.link.metrics(), ASK_SECONDS)
    except (Lost, TimeoutError):
        return None


class _Now(Collector):
    """The door's own numbers and ``texts``, the metrics of each replica by its number."""

    def __init__(self, fleet: Fleet, requests: dict[tuple[str, int], int], texts: dict[int, str]) -> None:
        self._fleet = fleet
        self._requests = requests
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        yield requests_family(self._requests)
        up = GaugeMetricFamily("hasten:replica_up", "Whether the replica lives", labels=LABEL)
        starts = CounterMetricFamily("hasten:replica_starts", "Processes that were this replica so far", labels=LABEL)
        load = GaugeMetricFamily("hasten:replica_requests", "Requests that the replica has in work", labels=LABEL)
        for replica in self._fleet.replicas:
            up.add_metric([str(replica.number)], float(replica.live))
            starts.add_metric([str(replica.number)], replica.starts)
            load.add_metric([str(replica.number)], replica.load)
        yield from (up, starts, load)
        retried = CounterMetricFamily("hasten:requests_retried", "Requests given to another replica when theirs had ended")
        retried.add_metric([], self._fleet.retried)
        broken = CounterMetricFamily("hasten:requests_broken", "Answers that had begun when their replica ended")
        broken.add_metric([], self._fleet.broken)
        yield from (retried, broken)
        yield from merged(self._texts)


def merged(texts: dict[int, str]) -> Iterator[Metric]:
    """Metrics of the same name as one, each sample with its replica's number."""
    families: dict[str, Metric] = {}
    for number, text in sorted(texts.items()):
        for found in text_string_to_metric_families(text):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": str(number)}, sample.value)
    yield from families.values()
