"""Who waits for a model waits no longer than the request may, and lets no other model go for nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hasten.core.config import EngineConfig
from hasten.engine.llm import LLM
from hasten.serve.errors import ApiError
from hasten.serve.limits import Limits
from hasten.serve.models import Models, hosts_of
from serving import write_model
from serving_here import serving_here
from test_serve_models import FakeLLM, states


class Slow:
    """Models of which some load until they are told to end; room is for one."""

    def __init__(self, *slow: str) -> None:
        self.held = {name: threading.Event() for name in slow}
        self.loaded: list[str] = []
        self.models = Models(hosts_of(("a", "b", "c"), EngineConfig()), 50, self.load, lambda config: 40)

    def load(self, config: EngineConfig) -> Any:
        held = self.held.get(config.model)
        while held is not None and not held.wait(0.01):
            pass
        self.loaded.append(config.model)
        return FakeLLM(config)

    async def refused(self, name: str, patience: float) -> ApiError:
        self.models.patience = patience
        with pytest.raises(ApiError) as caught:
            await self.models.acquire(name)
        self.models.patience = 30.0
        assert self.models.hosts[name].users == 0
        return caught.value


async def until(happened: Any) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.01)


def test_a_load_that_takes_too_long_is_left_and_ends_for_the_next() -> None:
    async def scene() -> None:
        slow = Slow("b")
        models = slow.models
        models.release(await models.acquire("a"))
        found = await slow.refused("b", 0.1)
        assert (found.status, found.code) == (408, "timeout")
        slow.held["b"].set()
        await until(lambda: states(models) == "b")  # "a" went for it
        models.release(await models.acquire("b"))
        assert slow.loaded == ["a", "b"]
        await models.close()

    asyncio.run(scene())


def test_who_gave_up_in_the_queue_lets_no_model_go() -> None:
    async def scene() -> None:
        slow = Slow("c")
        models = slow.models
        other = asyncio.ensure_future(models.acquire("c"))
        await until(models._lock.locked)
        assert (await slow.refused("b", 0.1)).status == 408
        slow.held["c"].set()
        models.release(await other)
        await asyncio.sleep(0.1)
        await until(lambda: not models._lock.locked())
        assert slow.loaded == ["c"]
        assert states(models) == "c"
        await models.close()

    asyncio.run(scene())


def test_who_gave_up_while_the_size_was_asked_lets_no_model_go() -> None:
    async def scene() -> None:
        slow, held = Slow(), threading.Event()
        models = slow.models
        models.release(await models.acquire("a"))

        def estimate(config: EngineConfig) -> int:
            while not held.wait(0.01):
                pass
            return 40

        models._estimate = estimate
        assert (await slow.refused("b", 0.1)).status == 408
        held.set()
        await until(lambda: not models._lock.locked())
        assert (states(models), slow.loaded) == ("a", ["a"])
        models.release(await models.acquire("b"))
        await models.close()

    asyncio.run(scene())


def test_the_end_breaks_off_what_nobody_waits_for() -> None:
    async def scene() -> None:
        slow = Slow("b")
        assert (await slow.refused("b", 0.1)).status == 408
        waiting = asyncio.ensure_future(slow.models.acquire("b"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await slow.models.close()
            with pytest.raises(ApiError, match="stopping"):
                await waiting
        assert slow.loaded == []

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("own", "limit", "status", "code"),
    [({"deadline": 0.3}, 600.0, 503, "deadline"), ({}, 0.3, 408, "timeout"), ({"deadline": 5.0}, 0.3, 408, "timeout")],
)
def test_a_request_waits_for_its_model_as_long_as_it_may(
    tiny_model: Path, tmp_path: Path, own: dict[str, float], limit: float, status: int, code: str
) -> None:
    later = write_model(tmp_path / "later.gguf", seed=1)
    held = threading.Event()

    def slowly(config: EngineConfig) -> LLM:
        if config.model == str(later):
            assert held.wait(30)
        return LLM(config)

    async def scene() -> None:
        body = {"model": "later", "prompt": "x", "max_tokens": 1, **own}
        async with serving_here(
            f"tiny={tiny_model}", f"later={later}", limits=Limits(request_timeout=limit), load=slowly
        ) as client:
            began = time.monotonic()
            answer = await client.post("/v1/completions", json=body)
            took = time.monotonic() - began
            others = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
            held.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert took < 5
        assert others.status_code == 200

    asyncio.run(scene())


def test_texts_that_are_not_ready_in_time_are_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = LLM.encode

    def slowly(self: LLM, prompt: Any) -> list[int]:
        time.sleep(1.0)
        return encode(self, prompt)

    async def scene() -> Any:
        async with serving_here(f"tiny={tiny_model}") as client:
            monkeypatch.setattr(LLM, "encode", slowly)
            return await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, "deadline": 0.2})

    answer = asyncio.run(scene())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline")
