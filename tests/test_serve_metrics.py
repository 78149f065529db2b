"""What the metrics say: time by answer, counters that outlast an engine, and no name that the page lacks."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from doc_blocks import ROOT
from hasten.core.config import EngineConfig
from hasten.core.results import Speculation
from hasten.serve.limits import Limits
from hasten.serve.metrics import metrics_text
from hasten.serve.models import Models, hosts_of
from hasten.serve.server import Server
from hasten.serve.tickets import Times
from hasten.serve.totals import SECONDS_A_TOKEN, Totals
from serving_here import serving_here
from test_serve_models import FakeLLM


@pytest.mark.parametrize(("lengths", "seconds"), [([21], 0.1), ([21, 21, 21, 21], 0.1), ([1, 5, 21], 0.1), ([1, 1], None)])
def test_the_time_of_a_token_is_that_of_an_answers_own(lengths: list[int], seconds: float | None) -> None:
    request: Any = SimpleNamespace(
        answers=[SimpleNamespace(sequence=SimpleNamespace(prompt_length=3, output_length=length)) for length in lengths],
        speculation=Speculation(),
        plain_seconds=0.0,
        first_token=None,
        last_token=None,
    )
    totals = Totals()
    totals.add(request, Times(0.0, 0.0, started=1.0, first=2.0, last=4.0), "stop")
    observed = totals.token.total if any(totals.token.counts) else None
    assert observed == (None if seconds is None else pytest.approx(seconds))
    assert seconds is None or totals.token.counts[SECONDS_A_TOKEN.index(0.1)] == 1
    assert (totals.prompt_tokens, totals.generation_tokens) == (3, sum(lengths))
    assert totals.finished == {"stop": 1}


def samples(server: Server) -> dict[tuple[str, str], float]:
    """Counters and histograms of the models by name and labels."""
    return {
        (sample.name, str(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics_text(server))
        if family.type in ("counter", "histogram") and family.name.startswith("hasten:")
        for sample in family.samples
    }


def test_a_counter_never_goes_back_when_models_come_and_go() -> None:
    def load(config: EngineConfig) -> Any:
        return FakeLLM(config)

    async def scene() -> None:
        models = Models(hosts_of(("a", "b"), EngineConfig()), 50, load, lambda config: 40)
        server = Server(models, Limits())
        before: dict[tuple[str, str], float] = {}
        for name in ("a", "b", "a", "b"):
            host = await models.acquire(name)
            llm, worker = host.ready
            worker.totals.add_embedding(5)
            worker.totals.drafted["suffix"] = worker.totals.drafted.get("suffix", 0) + 2
            worker.totals.queue.observe(0.2)
            llm.engine.scheduler.preemptions += 1
            llm.engine.scheduler.blocks.statistics.queries += 4
            llm.engine.scheduler.blocks.statistics.hits += 3
            now = samples(server)
            assert {key: value for key, value in before.items() if now.get(key, -1.0) < value} == {}
            before = now
            models.release(host)
        block = models.hosts["b"].ready[0].engine.scheduler.blocks.block_size
        await models.close()
        assert samples(server) == before
        for name, value in (
            ("hasten:prompt_tokens_total", 10),
            ("hasten:num_preemptions_total", 2),
            ("hasten:prefix_cache_queries_total", 8 * block),
            ("hasten:prefix_cache_hits_total", 6 * block),
            ("hasten:request_queue_time_seconds_count", 2),
        ):
            for model in ("a", "b"):
                assert before[name, f"[('model_name', '{model}')]"] == value, (name, model)

    asyncio.run(scene())


def test_the_page_has_the_names_that_are_told(tiny_model: Path) -> None:
    async def scene() -> str:
        async with serving_here(f"tiny={tiny_model}") as client:
            await client.post("/v1/completions", json={"prompt": "one two", "max_tokens": 3})
            return (await client.get("/metrics")).text

    told = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(asyncio.run(scene()))
    }
    page = (ROOT / "docs/reference/server.md").read_text(encoding="utf-8").split("## Metrics")[1]
    assert set(re.findall(r"`((?:hasten:|process_)\w+)`", page)) == told
    assert {"hasten:http_requests_total", "process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"} <= told
