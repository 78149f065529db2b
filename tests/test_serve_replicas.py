"""Several replicas behind one door: who gets a request, what becomes of it when a replica dies, and that the door changes nothing.

The replicas here are scripts, or engines of this process; test_serve_replicas_ray.py kills real ones.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import hasten.serve.fleet as fleet_module
from hasten.core.config import EngineConfig
from hasten.core.errors import HastenError
from hasten.serve.affinity import SLACK, STEP, Affinity, trail_of
from hasten.serve.app import make_app
from hasten.serve.errors import ApiError
from hasten.serve.fleet import ATTEMPTS, Call, Fleet, Lost, Message
from hasten.serve.front import Front, make_front
from hasten.serve.guard import LOOPBACK_NAMES, Policy
from hasten.serve.keys import Keys, new_key
from hasten.serve.limits import Limits
from hasten.serve.replica import Contents, Replica, loaded
from hasten.serve.sse import KEEP_ALIVE, named

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
END = {"type": "http.response.body", "body": b"", "more_body": False}
DIES, HANGS = "dies", "hangs"


def part(text: str) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


@dataclass
class Scripted:
    """A replica that says what it is told to: the first script for the first call of all that share ``turn``, and so on; the last
    one for all further ones."""

    scripts: list[list[Message | str]]
    calls: list[Call] = field(default_factory=list)
    turn: list[Call] = field(default_factory=list)
    open: int = 0
    starts: int = 0
    startable: bool = True
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def die(self) -> None:
        self.ended.set()
        self.ended = asyncio.Event()

    async def stay(self) -> AsyncGenerator[int, None]:
        if not self.startable:
            raise Lost("no such model")
        self.starts += 1
        yield 1000 + self.starts
        await self.ended.wait()
        raise Lost("killed")

    async def ask(self, call: Call) -> AsyncGenerator[list[Message], None]:
        script = self.scripts[min(len(self.turn), len(self.scripts) - 1)]
        self.calls.append(call)
        self.turn.append(call)
        self.open += 1
        try:
            for step in script:
                if step == DIES:
                    self.die()
                    raise Lost("killed")
                if step == HANGS:
                    await asyncio.Event().wait()
                assert isinstance(step, dict)
                yield [step]
                await asyncio.sleep(0)
        finally:
            self.open -= 1

    async def metrics(self) -> str:
        return "# TYPE hasten:x gauge\nhasten:x 1\n"


def pair(*scripts: list[Message | str]) -> list[Scripted]:
    turn: list[Call] = []
    return [Scripted(list(scripts), turn=turn) for _ in range(2)]


GOOD: list[Message | str] = [START, part("a"), part("b"), END]
CALL = Call("POST", "/v1/chat/completions", b"", [], b"{}", "req-1", "")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "PAUSE", 0.01)


async def fleet_of(*links: Scripted, wait: float = 5.0) -> Fleet:
    found = Fleet(wait)
    await found.start(links)
    return found


async def said(fleet: Fleet, call: Call = CALL, trail: tuple[bytes, ...] = ()) -> str:
    return "".join([message["body"].decode() async for message in fleet.answer(call, trail) if "body" in message])


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


# Which replica


def chat(*words: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": word} for word in words], **more}


def test_a_conversation_that_goes_on_goes_where_it_was() -> None:
    affinity, idle = Affinity(), {0: 0, 1: 0, 2: 0}
    first = trail_of("anna", chat("x" * 3 * STEP))
    later = trail_of("anna", chat("x" * 3 * STEP, "answer", "y" * 2 * STEP))
    assert len(first) == 3
    assert later[: len(first)] == first
    home = affinity.choose(first, idle)
    assert all(affinity.choose(trail_of("anna", chat(letter * 900)), idle) != home for letter in "pq"), "others take turns"
    assert affinity.choose(later, idle) == home


def test_another_tenant_or_model_or_tool_shares_no_beginning() -> None:
    said_once = chat("x" * 1000)
    trails = [trail_of("anna", said_once), trail_of("bert", said_once), trail_of("", said_once)]
    trails += [trail_of("anna", {**said_once, "model": "other"}), trail_of("anna", {**said_once, "tools": [{"a": 1}]})]
    assert len({beginning for trail in trails for beginning in trail}) == sum(map(len, trails))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * 600},
        {"prompt": ["x" * 600]},
        {"prompt": [7] * 600},
        {"input": "x" * 600},
        {"system": "x" * 600},
        chat("x" * 600),
    ],
)
def test_every_interface_leaves_a_trail(body: dict[str, Any]) -> None:
    assert len(trail_of("", body)) >= 2


@pytest.mark.parametrize(
    "body", [{}, {"messages": None}, {"messages": 3}, {"prompt": ["\ud800" * 600]}, {"prompt": [[1], None]}, chat("hi")]
)
def test_what_has_no_beginning_has_no_trail_or_an_odd_one(body: dict[str, Any]) -> None:
    assert Affinity().choose(trail_of("", body), {0: 1, 1: 0}) == 1


def test_a_replica_that_is_clearly_more_loaded_is_passed_over() -> None:
    affinity, trail = Affinity(), trail_of("", chat("x" * 1000))
    home = affinity.choose(trail, {0: 0, 1: 0})
    other = 1 - home
    assert affinity.choose(trail, {home: SLACK, other: 0}) == home
    assert affinity.choose(trail, {home: SLACK + 1, other: 0}) == other
    assert affinity.choose(trail, {home: 2 * 5 + SLACK, other: 5}) == other, "both know it now: the less loaded one"
    affinity.forget(other)
    assert affinity.choose(trail, {home: 1, other: 0}) == home
    assert affinity.choose(trail, {other: 9}) == other, "only what lives is chosen"


def test_what_is_remembered_is_bounded() -> None:
    affinity = Affinity(most=10)
    for number in range(50):
        affinity.choose(trail_of("", chat(f"{number:04}" * 200)), {0: 0, 1: 0})
    assert len(affinity) == 10


# When a replica dies


@pytest.mark.parametrize(
    "before", [[DIES], [START, DIES], [START, part(KEEP_ALIVE.decode()), DIES]], ids=["silent", "start", "kept alive"]
)
def test_what_has_not_begun_is_asked_of_another(before: list[Message | str]) -> None:
    async def work() -> None:
        links = pair(before, GOOD)
        fleet = await fleet_of(*links)
        heard = await said(fleet)
        assert heard.replace(KEEP_ALIVE.decode(), "") == "ab"
        assert (fleet.retried, fleet.broken) == (1, 0)
        assert sorted(len(link.calls) for link in links) == [1, 1]
        assert [replica.load for replica in fleet.replicas] == [0, 0]
        await fleet.close()

    run(work)


def test_the_client_gets_one_start_only() -> None:
    async def work() -> None:
        fleet = await fleet_of(*pair([START, part(KEEP_ALIVE.decode()), DIES], GOOD))
        kinds = [message["type"] async for message in fleet.answer(CALL, [])]
        assert kinds.count("http.response.start") == 1
        await fleet.close()

    run(work)


def test_what_had_begun_ends_with_an_error() -> None:
    async def work() -> None:
        fleet = await fleet_of(*(Scripted([[START, part("a"), DIES]]) for _ in range(2)))
        messages = fleet.answer(CALL, [])
        assert [(await anext(messages)).get("body") for _ in range(2)] == [None, b"a"]
        with pytest.raises(ApiError, match="was answering has ended") as caught:
            await anext(messages)
        assert (caught.value.status, caught.value.code) == (503, "replica_lost")
        assert (fleet.retried, fleet.broken) == (0, 1)
        await fleet.close()

    run(work)


def test_a_call_that_hangs_on_a_dead_replica_goes_to_another() -> None:
    async def work() -> None:
        links = pair([HANGS], GOOD)
        fleet = await fleet_of(*links)
        asked = asyncio.ensure_future(said(fleet))
        while not links[0].turn:
            await asyncio.sleep(0.005)
        victim = next(link for link in links if link.calls)
        victim.die()
        assert await asked == "ab"
        assert victim.open == 0
        await fleet.close()

    run(work)


def test_a_request_that_ends_every_replica_does_not_end_them_for_ever() -> None:
    async def work() -> None:
        links = [Scripted([[DIES]]), Scripted([[DIES]])]
        fleet = await fleet_of(*links)
        with pytest.raises(ApiError, match=f"{ATTEMPTS} replicas ended over this request") as caught:
            await said(fleet)
        assert caught.value.status == 503
        assert sum(len(link.calls) for link in links) == ATTEMPTS
        while len(fleet.live) < 2:
            await asyncio.sleep(0.01)
        assert sum(replica.starts for replica in fleet.replicas) == 2 + ATTEMPTS
        await fleet.close()

    run(work)


def test_a_later_replica_may_refuse_what_has_been_kept_alive() -> None:
    refusal = json.dumps({"error": {"message": "The queue is full.", "type": "x", "param": None, "code": "queue_full"}})
    refused: list[Message | str] = [{**START, "status": 429}, {**part(refusal), "more_body": False}]

    async def work() -> None:
        fleet = await fleet_of(*pair([START, part(KEEP_ALIVE.decode()), DIES], refused))
        with pytest.raises(ApiError, match="The queue is full") as caught:
            await said(fleet)
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        await fleet.close()

    run(work)


def test_where_none_lives_a_request_waits_for_one_and_not_for_ever() -> None:
    async def work() -> None:
        link = Scripted([GOOD])
        fleet = await fleet_of(link, wait=0.2)
        link.startable = False
        link.die()
        while fleet.live:
            await asyncio.sleep(0.005)
        with pytest.raises(ApiError, match="No replica lives") as caught:
            await said(fleet)
        assert caught.value.status == 503
        asked = asyncio.ensure_future(said(fleet))
        await asyncio.sleep(0.02)
        link.startable = True
        assert await asked == "ab"
        await fleet.close()

    run(work)


def test_who_goes_away_ends_the_request_there() -> None:
    async def work() -> None:
        link = Scripted([[START, part("a"), HANGS]])
        fleet = await fleet_of(link)
        asked = asyncio.ensure_future(said(fleet))
        while not link.calls:
            await asyncio.sleep(0.005)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert link.open == 0
        assert fleet.replicas[0].load == 0
        await fleet.close()

    run(work)


def test_a_fleet_that_cannot_start_says_so() -> None:
    async def work() -> None:
        broken = Scripted([GOOD], startable=False)
        with pytest.raises(HastenError, match="Replica 1 could not start"):
            await fleet_of(Scripted([GOOD]), broken)

    run(work)


# The door


@dataclass
class Near:
    """A whole replica in this process."""

    replica: Replica
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def stay(self) -> AsyncGenerator[int, None]:
        return self.replica.stay()

    def ask(self, call: Call) -> AsyncGenerator[list[Message], None]:
        return self.replica.ask(call)

    async def metrics(self) -> str:
        return await self.replica.metrics()


def contents(model: Path) -> Contents:
    config = EngineConfig(model="tiny", threads=1)
    return Contents((f"tiny={model}",), config, Limits())


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=60)


def stable(text: str) -> Any:
    """An answer without ids, times, and what caches and drafters knew already."""
    if text.startswith("data: "):  # how a text is cut into chunks is chance
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
        choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
        said = "".join(choice["delta"].get("content", "") for choice in choices)
        return choices[0], said, choices[-1], lines[-1]
    return _stable(json.loads(text)) if text.startswith("{") else text


def _stable(value: Any) -> Any:
    if isinstance(value, list):
        return [_stable(item) for item in value]
    if not isinstance(value, dict):
        return value
    chance = {"id", "item_id", "created", "created_at", "cached_tokens", "cache_read_input_tokens", "input_tokens"}
    chance |= {"accepted_prediction_tokens", "rejected_prediction_tokens"}
    kept = {name: _stable(item) for name, item in value.items() if name not in chance}
    if "hasten" in kept:
        kept["hasten"] = {name: kept["hasten"].get(name) for name in ("exact", "precision", "pieces", "pooling")}
    return kept


WORDS = "The river walks over seven green stones. " * 20
SAME: list[tuple[str, dict[str, Any] | None]] = [
    ("/v1/chat/completions", chat(WORDS, max_tokens=12, temperature=0, logprobs=True, top_logprobs=2)),
    ("/v1/chat/completions", chat(WORDS, max_tokens=12, seed=3, n=2, provenance=True)),
    ("/v1/chat/completions", chat(WORDS, max_tokens=12, seed=4, speculation="off", stream=True)),
    ("/v1/chat/completions", chat(WORDS, nonsense=1)),
    ("/v1/chat/completions", chat(WORDS, model="none-such")),
    ("/v1/completions", {"prompt": ["one", "two"], "max_tokens": 6, "seed": 1, "echo": True}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 20, "temperature": 0}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "model": "tiny", "temperature": 0}),
    ("/v1/messages", {"messages": [], "max_tokens": 6, "model": "tiny"}),
    ("/v1/embeddings", {"input": "hello"}),
    ("/tokenize", {"prompt": "hello"}),
    ("/detokenize", {"tokens": [70, 71]}),
    ("/v1/models/tiny", None),
    ("/v1/nothing", None),
    ("/openapi.json", None),
    ("/", None),
]


def test_the_door_before_replicas_answers_like_the_server_itself(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hasten.access")

    async def work() -> None:
        alone = await loaded(contents(tiny_model))
        servers = [await loaded(contents(tiny_model)) for _ in range(2)]
        policy = Policy(None, LOOPBACK_NAMES)
        fleet = Fleet(5.0)
        await fleet.start([Near(Replica(server)) for server in servers])
        front = Front(fleet, Limits())
        try:
            async with client(make_app(alone, policy)) as one, client(make_front(front, policy)) as several:
                for path, body in SAME:
                    answers = [await (each.get(path) if body is None else each.post(path, json=body)) for each in (one, several)]
                    assert stable(answers[0].text) == stable(answers[1].text), (path, body)
                    assert answers[0].status_code == answers[1].status_code
                    kinds = [answer.headers["content-type"] for answer in answers]
                    assert kinds[0] == kinds[1]
                    assert set(answers[0].headers) - {"content-length"} == set(answers[1].headers) - {"content-length"}
                for broken in (b"{", b"[" * 5000, b"3"):
                    found = [
                        await each.post("/v1/completions", content=broken, headers={"content-type": "application/json"})
                        for each in (one, several)
                    ]
                    assert found[0].text == found[1].text
                await _operation(several, fleet)
                lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "hasten.access"]
                chats = [line for line in lines if line["path"] == "/v1/chat/completions" and line["status"] == 200]
                assert len(chats) == 6
                kept = [{name: line.get(name) for name in ("model", "completion_tokens", "finish_reason")} for line in chats]
                assert kept[::2] == kept[1::2]
                assert all(line["completion_tokens"] >= 12 for line in kept)
        finally:
            await fleet.close()
            for server in (alone, *servers):
                await server.models.close()

    run_long(work)


def test_token_ids_come_on_request(tiny_model: Path) -> None:
    async def work() -> None:
        server = await loaded(contents(tiny_model))
        try:
            async with client(make_app(server, Policy(None, LOOPBACK_NAMES))) as one:
                body = {"prompt": "one", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
                (plain,) = (await one.post("/v1/completions", json=body)).json()["choices"]
                (told,) = (await one.post("/v1/completions", json={**body, "return_token_ids": True})).json()["choices"]
                text = (await one.post("/detokenize", json={"tokens": told["token_ids"]})).json()["prompt"]
                assert "token_ids" not in plain
                assert len(told["token_ids"]) == 6
                assert text == told["text"] == plain["text"]
        finally:
            await server.models.close()

    run_long(work)


async def _operation(several: httpx.AsyncClient, fleet: Fleet) -> None:
    """Health and metrics say which replicas live and what each has done; both have done something."""
    health = (await several.get("/health")).json()
    assert [(one["replica"], one["live"], one["starts"]) for one in health["replicas"]] == [(0, True, 1), (1, True, 1)]
    text = (await several.get("/metrics")).text
    assert 'hasten:replica_up{replica="0"} 1.0' in text
    assert 'hasten:replica_up{replica="1"} 1.0' in text
    done = dict(re.findall(r'hasten:generation_tokens_total\{model_name="tiny",replica="(\d)"\} ([\d.]+)', text))
    assert set(done) == {"0", "1"}
    assert all(float(count) > 0 for count in done.values())
    assert 'hasten:http_requests_total{path="/tokenize",status="200"} 1.0' in text
    assert 'hasten:http_requests_total{path="/v1/models/{name}",status="200"} 1.0' in text
    assert text.count("# TYPE hasten:generation_tokens") == 1
    hits = dict(re.findall(r'hasten:prefix_cache_hits_total\{model_name="tiny",replica="(\d)"\} ([\d.]+)', text))
    assert sorted(float(count) > 0 for count in hits.values()) == [False, True], "the long prompt went to one replica each time"
    for replica in fleet.replicas:
        replica.process = None
    assert (await several.get("/health")).status_code == 503


def run_long(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 120))


def test_tenants_and_keys_hold_before_replicas(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    anna, bert = new_key(keys, "anna"), new_key(keys, "bert")

    async def work() -> None:
        server = await loaded(contents(tiny_model))
        link = Near(Replica(server))
        asked: list[Call] = []
        plain = link.ask
        link.ask = lambda call: (asked.append(call), plain(call))[1]  # type: ignore[method-assign,func-returns-value]
        fleet = Fleet(5.0)
        await fleet.start([link])
        try:
            async with client(make_front(Front(fleet, Limits(max_body_bytes=4000)), Policy(Keys(keys), LOOPBACK_NAMES))) as several:
                body = chat("x" * 1500, max_tokens=2)
                assert (await several.post("/v1/chat/completions", json=body)).status_code == 401
                for key, cached in ((anna, 0), (bert, 0), (anna, 1)):
                    headers = {"authorization": f"Bearer {key}", "cookie": "a=b"}
                    found = (await several.post("/v1/chat/completions", json=body, headers=headers)).json()
                    assert (found["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) == bool(cached)
                assert [call.tenant for call in asked] == ["anna", "bert", "anna"]
                assert all(name not in (b"authorization", b"cookie") for call in asked for name, _ in call.headers)
                large = await several.post("/v1/chat/completions", json=chat("x" * 5000), headers=headers)
                assert large.status_code == 413
                assert len(asked) == 3
        finally:
            await fleet.close()
            await server.models.close()

    run_long(work)


def test_a_stream_that_breaks_ends_with_the_interfaces_own_error() -> None:
    async def work() -> None:
        for path, mark in (
            ("/v1/chat/completions", "data: "),
            ("/v1/messages", "event: error\n"),
            ("/v1/responses", "event: error\n"),
        ):
            fleet = await fleet_of(*(Scripted([[START, part("data: 1\n\n"), DIES]]) for _ in range(2)))
            async with client(make_front(Front(fleet, Limits()), Policy(None, LOOPBACK_NAMES))) as several:
                found = await several.post(path, json={"stream": True})
                assert found.status_code == 200
                assert found.text.startswith("data: 1\n\n" + mark)
                told = (
                    json.loads(found.text.splitlines()[-2 if found.text.endswith("\n\n") else -1].removeprefix("data: ") or "{}")
                    or {}
                )
                assert "was answering has ended" in json.dumps(told)
            await fleet.close()

    run(work)


def test_a_response_that_breaks_ends_as_one_of_a_single_process_does() -> None:
    async def work() -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1", "status": "in_progress"}}
        script: list[Message | str] = [START, part(KEEP_ALIVE.decode()), part(named("response.created", created).decode()), DIES]
        fleet = await fleet_of(Scripted([script]))
        async with client(make_front(Front(fleet, Limits()), Policy(None, LOOPBACK_NAMES))) as several:
            text = (await several.post("/v1/responses", json={"stream": True})).text
        events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
        assert [(event["type"], event["sequence_number"]) for event in events] == [
            ("response.created", 0),
            ("error", 1),
            ("response.failed", 2),
        ]
        assert (events[1]["code"], events[2]["response"]["id"]) == ("replica_lost", "resp_1")
        assert events[2]["response"]["status"] == "failed"
        assert events[2]["response"]["error"] == {"code": "server_error", "message": events[1]["message"]}
        await fleet.close()

    run(work)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_door_that_stops_tells_those_who_wait(path: str) -> None:
    async def work() -> None:
        link = Scripted([[START, part('event: a\ndata: "1"\n\n'), part(KEEP_ALIVE.decode()), HANGS], [HANGS]])
        fleet = await fleet_of(link)
        door = make_front(Front(fleet, Limits()), Policy(None, LOOPBACK_NAMES))
        async with client(door) as several:
            begun = asyncio.ensure_future(several.post(path, json={"stream": True}))
            while not link.open:
                await asyncio.sleep(0.005)
            waiting = asyncio.ensure_future(several.post(path, json={}))
            while link.open < 2:
                await asyncio.sleep(0.005)
            door.break_off()
            last = (await begun).text.split("\n\n")[-2]
            told = json.loads(last.split("data: ")[1])
            assert (told if path == "/v1/responses" else told["error"])["code"] == "stopping"
            assert told.get("sequence_number", 1) == 1
            assert ((await waiting).status_code, (await waiting).json()["error"]["code"]) == (503, "stopping")
            assert link.open == 0
        await fleet.close()

    run(work)
