"""Several models in one server: aliases, loading on demand, a budget, the least recently used goes, one in use stays."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, ModelNotFound
from hasten.engine.footprint import footprint
from hasten.engine.llm import LLM
from hasten.engine.loading import load_engine
from hasten.model import catalogue
from hasten.model.kept_weights import draft_precision
from hasten.model.loaders import open_source
from hasten.model.storage import speculator_path
from hasten.serve.errors import ApiError
from hasten.serve.limits import Limits
from hasten.serve.models import Models, hosts_of
from hasten.serve.provenance import Legend
from serving import write_model
from serving_here import serving_here
from tiny import tiny_engine


class FakeLLM:
    """An LLM as far as hosts know one, over a tiny engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = tiny_engine()
        self.name = config.model
        self.closed = threading.Event()

    def close(self) -> None:
        self.engine.cancel_all()
        self.closed.set()


def made(budget: int, loaded: list[str], broken: str = "") -> Models:
    def load(config: EngineConfig) -> Any:
        if config.model == broken:
            raise ModelNotFound(f"There is no {broken}.")
        loaded.append(config.model)
        return FakeLLM(config)

    hosts = hosts_of(("a", "b", "c"), EngineConfig())
    return Models(hosts, budget, load, lambda config: 40)


def states(models: Models) -> str:
    return "".join(name for name, host in models.hosts.items() if host.loaded)


def test_the_least_recently_used_goes_and_one_in_use_stays() -> None:
    async def scene() -> None:
        loaded: list[str] = []
        models = made(100, loaded)
        assert not models.ready
        await models.preload()
        assert models.ready
        for name in ("b", "a", "c"):
            models.release(await models.acquire(name))
        assert states(models) == "ac"  # b was used before a
        assert loaded == ["a", "b", "c"]
        in_use = await models.acquire("a")
        models.release(await models.acquire("b"))
        assert states(models) == "ab"
        also = await models.acquire("b")
        with pytest.raises(ApiError) as caught:
            await models.acquire("c")
        assert caught.value.status == 503
        assert "Retry-After" in caught.value.headers
        models.release(also)
        models.release(await models.acquire("c"))
        assert states(models) == "ac"
        models.release(in_use)
        await models.close()
        assert states(models) == ""

    asyncio.run(scene())


def test_one_that_comes_into_use_while_room_is_made_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        models = made(100, [])
        models.hosts["c"].bytes = 100
        for name in ("a", "b"):
            models.release(await models.acquire(name))
        letting_go, gone = threading.Event(), threading.Event()
        join = models.hosts["a"].ready[1].join

        def slow_join() -> None:
            letting_go.set()
            assert gone.wait(20)
            join()

        monkeypatch.setattr(models.hosts["a"].ready[1], "join", slow_join)
        needs_both = asyncio.ensure_future(models.acquire("c"))
        assert await asyncio.to_thread(letting_go.wait, 20)
        in_use = await models.acquire("b")
        gone.set()
        with pytest.raises(ApiError, match="no room"):
            await needs_both
        assert in_use.ready
        models.release(in_use)
        await models.close()

    asyncio.run(scene())


def test_a_model_is_loaded_once_for_all_who_wait_and_names_are_checked() -> None:
    async def scene() -> None:
        loaded: list[str] = []
        models = made(0, loaded)
        hosts = await asyncio.gather(*(models.acquire("b") for _ in range(8)))
        assert loaded == ["b"]
        assert hosts[0].users == 8
        with pytest.raises(ApiError, match="not served"):
            models.find("d")
        await models.close()

    asyncio.run(scene())


def test_what_cannot_be_loaded_or_is_too_large_costs_its_request_only() -> None:
    async def scene() -> None:
        models = made(0, [], broken="b")
        with pytest.raises(ApiError, match="'b' could not be loaded"):
            await models.acquire("b")
        assert models.hosts["b"].users == 0
        models.release(await models.acquire("a"))
        small = made(30, [])
        with pytest.raises(ApiError, match="--memory-budget"):
            await small.acquire("a")
        await models.close()
        with pytest.raises(ModelNotFound):  # at the start it is the operator who is told
            await made(0, [], broken="a").preload()

    asyncio.run(scene())


def test_who_waits_for_a_model_that_fails_does_not_load_it_again() -> None:
    tried: list[str] = []

    def load(config: EngineConfig) -> Any:
        tried.append(config.model)
        time.sleep(0.2)
        raise ModelNotFound("There is none.")

    async def scene() -> None:
        models = Models(hosts_of(("a", "b"), EngineConfig()), 0, load)
        found = await asyncio.gather(*(models.acquire("b") for _ in range(4)), return_exceptions=True)
        for one in found:
            assert isinstance(one, ApiError)
            assert (one.code, one.headers) == ("model_unavailable", {"x-should-retry": "false"})
        assert tried == ["b"]
        with pytest.raises(ApiError, match="could not be loaded"):
            await models.acquire("b")
        assert tried == ["b", "b"]

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["told to stop", "failed"])
def test_who_waits_while_the_first_load_ends_is_sent_away(how: str) -> None:
    tried, failing = [], threading.Event()

    def load(config: EngineConfig) -> Any:
        tried.append(config.model)
        while not failing.wait(0.01):
            pass
        raise ModelNotFound("There is none.")

    async def scene() -> None:
        models = Models(hosts_of(("a", "b"), EngineConfig()), 0, load)
        loading = asyncio.ensure_future(models.preload())
        await asyncio.sleep(0.1)
        waiting = [asyncio.ensure_future(models.acquire(name)) for name in ("a", "b")]
        await asyncio.sleep(0.1)
        if how == "failed":
            failing.set()
        else:
            loading.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(loading, return_exceptions=True)
            for one in waiting:
                with pytest.raises(ApiError, match="stopping"):
                    await one
        assert tried == ["a"]

    asyncio.run(scene())


def test_aliases() -> None:
    hosts = hosts_of(("quick=smollm2-135m", "owner/name:q4_0@main", "/models/x=1.gguf"), EngineConfig())
    assert [(host.name, host.config.model) for host in hosts[:2]] == [("quick", "smollm2-135m"), ("owner/name:q4_0@main",) * 2]
    with pytest.raises(ConfigError, match="alias"):
        hosts_of(("a", "a"), EngineConfig())


def test_the_footprint_is_that_of_the_loaded_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    config = EngineConfig(model=str(tiny_model), draft="none", precision="fp32")
    engine = load_engine(config)
    pool = engine.executor.pool
    weights = engine.executor.decoder.weights
    held = [pool.keys, pool.values, weights.embedding, weights.head.weight]  # type: ignore[attr-defined]
    for layer in weights.layers:
        held += [layer.qkv.weight, layer.output.weight, layer.mlp.gate_up.weight, layer.mlp.down.weight]  # type: ignore[attr-defined]
    assert footprint(config) == sum(tensor.numel() * tensor.itemsize for tensor in held)


def test_the_footprint_counts_the_models_that_draft(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    other = write_model(tmp_path / "a suffix-lm.gguf", seed=1)
    names = {"model": str(tiny_model), "precision": "int8"}
    alone = footprint(EngineConfig(draft="none", **names))
    own = draft_precision("int8", torch.device("cpu"), open_source(other))
    beside = footprint(EngineConfig(model=str(other), draft="none", precision=own))
    wide = footprint(EngineConfig(model=str(other), draft="none", precision="fp32"))
    for draft, named, bytes_beside in (
        ("none", other, 0),
        ("suffix", other, 0),
        ("auto", None, 0),
        ("auto", other, beside),
        ("suffix+lm", other, beside),
        (f"suffix+lm(model={str(other)!r})", None, beside),
        (f"foreign(model={str(other)!r}, precision=fp32)", None, wide),
        (f"auto+lm(model={str(other)!r})", other, beside),
        (f"lm(model={str(other)!r})+foreign", other, 2 * beside),
    ):
        config = EngineConfig(draft=draft, draft_model=None if named is None else str(named), **names)
        assert footprint(config) == alone + bytes_beside, (draft, named)


def test_the_footprint_counts_a_speculator(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    alone = footprint(EngineConfig(model=str(tiny_model), draft="none"))
    path = speculator_path(open_source(tiny_model).fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(1000))
    for draft, beside in (("none", False), ("suffix", False), ("auto", True), ("speculator", True)):
        assert (footprint(EngineConfig(model=str(tiny_model), draft=draft)) >= alone + 1000) is beside


def test_a_natural_draft_model_that_cannot_be_had_is_not_counted(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading leaves it out, too; one that was asked for has to be there."""
    resolve = catalogue.resolve

    def known(name: str, **options: Any) -> catalogue.ResolvedModel:
        if name == "far-away":
            raise ModelNotFound("There is no far-away.")
        return replace(resolve(name, **options), draft="far-away")

    monkeypatch.setattr(catalogue, "resolve", known)
    config = EngineConfig(model=str(tiny_model))
    assert footprint(config) == footprint(replace(config, draft="none"))
    with pytest.raises(ModelNotFound):
        footprint(replace(config, draft_model="far-away"))


def test_a_server_of_two_models(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    other = write_model(tmp_path / "other.gguf", seed=1, template=None)
    budget = footprint(EngineConfig(model=str(tiny_model))) * 3 // 2

    async def scene() -> None:
        async with serving_here(f"one={tiny_model}", f"two={other}", budget=budget) as client:

            async def loaded() -> list[str]:
                return [model["id"] for model in (await client.get("/v1/models")).json()["data"] if model["loaded"]]

            async def text(model: str) -> str:
                body = {"prompt": "one two", "max_tokens": 12, "temperature": 0, "model": model}
                return str((await client.post("/v1/completions", json=body)).json()["choices"][0]["text"])

            assert await loaded() == ["one"]
            first = await text("one")
            second = await text("two")
            assert await loaded() == ["two"]
            assert first != second
            assert await text("one") == first
            ask = {"model": "two", "messages": [{"role": "user", "content": "x"}]}
            assert (await client.post("/v1/chat/completions", json=ask)).status_code == 400  # it has no template

    asyncio.run(scene())


def test_why_a_model_cannot_be_loaded_is_told_to_the_operator_only(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\xff" * 100)
    names = (f"tiny={tiny_model}", f"damaged={damaged}", f"gone={tmp_path / 'gone.gguf'}")

    async def scene() -> None:
        async with serving_here(*names) as client:
            for name in ("damaged", "gone"):
                answer = await client.post("/v1/completions", json={"prompt": "x", "model": name})
                assert answer.status_code == 503
                assert answer.json()["error"] == {
                    "message": f"The model '{name}' could not be loaded; the operator finds the cause in the log.",
                    "type": "service_unavailable_error",
                    "param": None,
                    "code": "model_unavailable",
                }
            assert (await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})).status_code == 200

    asyncio.run(scene())
    assert str(damaged) in caplog.text


def test_the_time_of_loading_counts_as_the_requests(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))

    def slowly(config: EngineConfig) -> LLM:
        if config.model == str(later):
            time.sleep(2.5)
        return LLM(config)

    later = write_model(tmp_path / "later.gguf", seed=1)
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "model": "later"}

    async def status(body: dict[str, Any], limits: Limits) -> int:
        async with serving_here(f"tiny={tiny_model}", f"later={later}", load=slowly, limits=limits) as client:
            first = await client.post("/v1/chat/completions", json=body)
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200  # it is loaded now
            return first.status_code

    assert asyncio.run(status(chat, Limits(request_timeout=2.0))) == 408
    assert asyncio.run(status(chat | {"deadline": 2.0}, Limits())) == 503


def test_letters_of_a_legend() -> None:
    legend = Legend(["suffix", "memory", "suffix2"])
    assert legend.names() == {"m": "model", "s": "suffix", "e": "memory", "u": "suffix2"}
    assert legend.codes(["model", "new", "suffix"]) == "mns"
    many = Legend(f"x{number}" for number in range(200))
    assert len(many.names()) >= 62
