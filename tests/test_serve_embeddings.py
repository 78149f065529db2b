"""Embeddings beside the engine's requests: they wait for room, keep to the limits and are counted."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from hasten.core.types import SamplingParams
from hasten.engine.embedding import embed
from hasten.serve import embeddings
from hasten.serve.limits import Limits
from serving_here import serving_here
from tiny import run_all, tiny_engine

ASK: dict[str, Any] = {"model": "tiny", "input": "one two"}


def test_a_text_waits_for_the_blocks_that_others_have() -> None:
    engine = tiny_engine(num_blocks=3)
    request = engine.submit([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True))
    engine.step()
    chunks = embed(engine, [1] * 150, "mean")  # as many as the pool has
    assert next(chunks) is None
    assert engine.scheduler.blocks.used == 1, "nothing is taken while it waits"
    run_all(engine, [request])
    assert [vector for vector in chunks if vector is not None]
    assert engine.scheduler.blocks.available == 3


def test_beside_others_a_text_is_read_in_quarters(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(num_blocks=8)
    rows: list[int] = []
    hidden = engine.executor.hidden
    monkeypatch.setattr(engine.executor, "hidden", lambda batch: rows.append(batch.segments[0].rows) or hidden(batch))
    alone = [vector for vector in embed(engine, [1] * 150, "mean") if vector is not None]
    assert rows == [64, 64, 22]
    rows.clear()
    request = engine.submit([1, 2, 3], SamplingParams(max_tokens=60, ignore_eos=True))
    engine.step()
    beside = [vector for vector in embed(engine, [1] * 150, "mean") if vector is not None]
    assert rows == [16] * 9 + [6]
    assert torch.allclose(beside[0], alone[0])
    run_all(engine, [request])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Embeddings that are done once this is set."""
    done = threading.Event()

    def waiting(*arguments: Any) -> Iterator[torch.Tensor | None]:
        while not done.wait(0.01):
            yield None
        yield torch.ones(4)

    monkeypatch.setattr(embeddings, "embed", waiting)
    yield done
    done.set()


async def metric(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    return float(text.split(f"\nhasten:{name}{{")[1].split("} ")[1].split("\n")[0])


def test_they_are_requests_that_run(tiny_model: Path, held: threading.Event) -> None:
    async def scene() -> None:
        async with serving_here(f"tiny={tiny_model}", limits=Limits(max_queue=1)) as client:
            first = asyncio.ensure_future(client.post("/v1/embeddings", json=ASK))
            while not await metric(client, "num_requests_running"):
                await asyncio.sleep(0.01)
            second = await client.post("/v1/embeddings", json=ASK)
            assert (second.status_code, second.json()["error"]["code"]) == (429, "queue_full")
            assert int(second.headers["retry-after"]) >= 1
            held.set()
            answer = await first
            assert answer.status_code == 200
            assert await metric(client, "prompt_tokens_total") == answer.json()["usage"]["prompt_tokens"] > 0
            assert await metric(client, "num_requests_running") == 0
            assert (await client.post("/v1/embeddings", json=ASK)).status_code == 200, "its place is free again"

    asyncio.run(scene())


def test_one_that_takes_too_long_is_ended_and_not_sent_again(tiny_model: Path, held: threading.Event) -> None:
    async def scene() -> None:
        async with serving_here(f"tiny={tiny_model}", limits=Limits(request_timeout=0.1)) as client:
            answer = await client.post("/v1/embeddings", json=ASK)
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")
            assert answer.headers["x-should-retry"] == "false"
            while await metric(client, "num_requests_running"):
                await asyncio.sleep(0.01)

    asyncio.run(scene())


def test_many_texts_at_once_and_the_limits_of_each(tiny_model: Path) -> None:
    async def scene() -> None:
        async with serving_here(f"tiny={tiny_model}", limits=Limits(max_prompt_tokens=8, max_embedding_inputs=100)) as client:
            answer = await client.post("/v1/embeddings", json=ASK | {"input": ["a"] * 100})
            assert [entry["index"] for entry in answer.json()["data"]] == list(range(100))
            many = await client.post("/v1/embeddings", json=ASK | {"input": ["a"] * 101})
            assert many.status_code == 400
            assert "from 1 to 100" in many.json()["error"]["message"]
            long = await client.post("/v1/embeddings", json=ASK | {"input": ["a", "one two three " * 10]})
            assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")

    asyncio.run(scene())


def test_vectors_are_written_beside_the_event_loop_and_no_longer_than_their_precision(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    vectors = [torch.nn.functional.normalize(torch.randn(64, generator=random) * scale, dim=0) for scale in (1, 1e-3, 1e3)]
    vectors[0][:3] = torch.tensor([0.0, -1e-38, 1e-7])
    upcoming: Iterator[torch.Tensor] = iter(vectors * 2)
    monkeypatch.setattr(embeddings, "embed", lambda *arguments: (next(upcoming) for _ in range(1)))
    writers: set[int] = set()
    written = embeddings._written

    def watched(vector: torch.Tensor, form: str | None) -> str:
        writers.add(threading.get_ident())
        return written(vector, form)

    monkeypatch.setattr(embeddings, "_written", watched)

    async def scene() -> None:
        async with serving_here(f"tiny={tiny_model}") as client:
            body = ASK | {"input": ["a"] * 3}
            floats = await client.post("/v1/embeddings", json=body)
            packed = await client.post("/v1/embeddings", json=body | {"encoding_format": "base64"})
        assert floats.headers["content-type"] == packed.headers["content-type"] == "application/json"
        assert threading.get_ident() not in writers
        found = [entry["embedding"] for entry in floats.json()["data"]]
        assert [torch.tensor(one, dtype=torch.float32).tolist() for one in found] == [vector.tolist() for vector in vectors]
        same = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").tolist() for entry in packed.json()["data"]]
        assert same == [vector.tolist() for vector in vectors]
        assert len(floats.text) < 3 * 64 * 15

    asyncio.run(scene())
    with pytest.raises(ValueError, match="not finite"):
        written(torch.tensor([1.0, float("nan")]), "float")
