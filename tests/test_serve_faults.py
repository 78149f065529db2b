"""What breaks inside: a step, a drafter, the pool, a slow prompt. The thread that owns the engine goes on, and nothing leaks."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.core.config import EngineConfig
from hasten.core.errors import PromptTooLong
from hasten.core.types import SamplingParams
from hasten.draft.base import Drafter
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.drafting import Drafting
from hasten.engine.engine import Engine
from hasten.serve.embeddings import _embedded
from hasten.serve.errors import ApiError
from hasten.serve.generation import Generation
from hasten.serve.limits import Limits
from hasten.serve.models import Host, Models
from hasten.serve.sse import KEEP_ALIVE, EventStream, data, openai_error
from hasten.serve.tickets import Job, Ticket
from hasten.serve.worker import Worker
from serving import running
from test_serve_models import FakeLLM
from tiny import tiny_engine

PARAMS = SamplingParams(max_tokens=40, ignore_eos=True)


def job(name: str, params: SamplingParams = PARAMS, timeout: float = 60.0, **options: Any) -> Job:
    return Job(name, "", [1, 2, 3, 4], params, timeout, **options)


@contextmanager
def working(engine: Engine, max_sequences: int = 8) -> Iterator[Worker]:
    llm: Any = FakeLLM(EngineConfig())
    llm.engine = engine
    worker = Worker(llm, max_sequences)
    worker.start()
    try:
        yield worker
    finally:
        worker.close()
        worker.join(20)
        assert not worker.is_alive()
        engine.scheduler.check_integrity()
        assert engine.scheduler.blocks.available == engine.scheduler.blocks.num_blocks, "blocks leak"


async def tokens_of(ticket: Ticket) -> list[int]:
    out: list[int] = []
    while events := await ticket.next():
        out += [token for event in events for token in event.tokens]
    return out


async def alone() -> list[int]:
    with working(tiny_engine()) as worker:
        ticket = Ticket(job("alone"), asyncio.get_running_loop())
        worker.submit(ticket)
        return await tokens_of(ticket)


def test_places_go_round_among_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        begun: list[str] = []
        submit = Engine.submit
        monkeypatch.setattr(Engine, "submit", lambda *arguments: begun.append(arguments[4]) or submit(*arguments))
        with working(tiny_engine(), max_sequences=2) as worker:
            names = [("anna", f"a{at}") for at in range(6)] + [("bob", f"b{at}") for at in range(3)] + [("carol", "c0")]
            tickets = [Ticket(replace(job(name), tenant=tenant), asyncio.get_running_loop()) for tenant, name in names]
            worker._commands.put(lambda: [worker._waiting["interactive"].append(ticket) for ticket in tickets])
            for ticket in tickets:
                await tokens_of(ticket)
        assert begun[:2] == ["a0", "b0"], "who holds no place goes before who holds one"
        assert begun.index("c0") < 5
        assert begun.index("b2") < begun.index("a4")
        assert [name for name in begun if name[0] == "a"] == [f"a{at}" for at in range(6)], "each in order of arrival"

    asyncio.run(scene())


def test_what_a_newcomer_waits_for_is_a_round_not_the_whole_queue() -> None:
    llm: Any = FakeLLM(EngineConfig())
    llm.engine = tiny_engine()
    worker = Worker(llm, 1)
    worker._pace = 1.0

    async def queue() -> None:
        worker._waiting["interactive"].extend(
            Ticket(replace(job(str(at)), tenant="anna"), asyncio.get_running_loop()) for at in range(50)
        )

    asyncio.run(queue())
    assert worker.expected_wait("anna", "interactive") == 51.0
    assert worker.expected_wait("bob", "interactive") == 2.0
    assert worker.expected_wait("bob", "batch") == 51.0


def test_texts_to_embed_take_turns_with_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are asked for at once, one piece at most goes before a step."""

    async def scene() -> None:
        order: list[str] = []
        step = Engine.step
        monkeypatch.setattr(Engine, "step", lambda engine: order.append("step") or step(engine))
        with working(tiny_engine()) as worker:
            ticket = Ticket(job("stream"), asyncio.get_running_loop())
            worker.submit(ticket)
            await ticket.next()
            left = dict.fromkeys("xyz", 3)

            def piece(name: str) -> bool:
                order.append(name)
                left[name] -= 1
                return left[name] == 0

            worker._commands.put(lambda: [worker.between_steps(lambda name=name: piece(name)) for name in left])  # type: ignore[misc]
            await tokens_of(ticket)
            while any(left.values()):
                await asyncio.sleep(0.01)
        pieces = [name for name in order if name != "step"]
        assert pieces == [*"xxxyyyzzz"]
        assert all("step" in (before, after) for before, after in itertools.pairwise(order)), order

    asyncio.run(scene())


def test_a_step_that_raises_ends_what_ran_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    forward, calls = engine.executor.forward, 0

    def failing(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("a kernel fell over")
        return forward(batch)

    monkeypatch.setattr(engine.executor, "forward", failing)

    async def scene() -> None:
        with working(engine, max_sequences=1) as worker:
            tickets = [Ticket(job(f"r{at}"), asyncio.get_running_loop()) for at in range(3)]
            for ticket in tickets:
                worker.submit(ticket)
            with pytest.raises(RuntimeError, match="fell over"):
                await tokens_of(tickets[0])
            assert await tokens_of(tickets[1]) == await tokens_of(tickets[2]) == await alone()
            assert worker.totals.finished == {"error": 1, "length": 2}

    asyncio.run(scene())


def raising_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The first call of a method does its work and raises then."""
    work, calls = getattr(owner, name), itertools.count()

    def raising(self: Any, *arguments: Any) -> Any:
        found = work(self, *arguments)
        if next(calls) == 0:
            raise RuntimeError("the books fell over")
        return found

    monkeypatch.setattr(owner, name, raising)


def test_what_got_its_last_token_in_a_step_that_raises_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    raising_once(monkeypatch, Drafting, "settle")

    async def scene() -> None:
        with working(tiny_engine()) as worker:
            loop = asyncio.get_running_loop()
            short, running = Ticket(job("short", SamplingParams(max_tokens=1)), loop), Ticket(job("running"), loop)
            worker._commands.put(
                lambda: [worker.submit(ticket) for ticket in (short, running)]
            )  # so that they share their first step
            async with asyncio.timeout(20):
                assert len(await tokens_of(short)) == 1
                with pytest.raises(RuntimeError, match="fell over"):
                    await tokens_of(running)
            assert worker.totals.finished == {"length": 1, "error": 1}

    asyncio.run(scene())


def test_time_that_is_up_is_told_even_where_taking_the_request_out_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    raising_once(monkeypatch, Engine, "cancel")
    engine = tiny_engine()
    forward = engine.executor.forward

    def slow(batch: Any) -> Any:  # the answer must not be at its end before its time is
        time.sleep(0.01)
        return forward(batch)

    monkeypatch.setattr(engine.executor, "forward", slow)

    async def scene() -> None:
        with working(engine) as worker:
            endless = SamplingParams(max_tokens=None, ignore_eos=True)
            ticket, later = (Ticket(job("r", endless, timeout=0.5), asyncio.get_running_loop()) for _ in range(2))
            worker.submit(ticket)
            async with asyncio.timeout(20):
                with pytest.raises(RuntimeError, match="fell over"):
                    await tokens_of(ticket)
                worker.submit(later)
                with pytest.raises(ApiError):
                    await tokens_of(later)

    asyncio.run(scene())


def test_a_request_that_the_engine_forgets_runs_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "step", lambda self: self.cancel_all() or [])

    async def scene() -> None:
        with working(tiny_engine()) as worker:
            ticket = Ticket(job("r", timeout=0.5), asyncio.get_running_loop())
            worker.submit(ticket)
            async with asyncio.timeout(20):
                with pytest.raises(ApiError, match="longer than"):
                    await tokens_of(ticket)

    asyncio.run(scene())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    raising_once(monkeypatch, Worker, "_deliver")

    async def scene() -> None:
        with working(tiny_engine(), max_sequences=1) as worker:
            tickets = [Ticket(job(f"r{at}"), asyncio.get_running_loop()) for at in range(3)]
            for ticket in tickets[:2]:
                worker.submit(ticket)
            async with asyncio.timeout(20):
                for ticket in tickets[:2]:
                    with pytest.raises(ApiError, match="has ended"):
                        await tokens_of(ticket)
                worker.submit(tickets[2])
                with pytest.raises(ApiError, match="has ended"):
                    await tokens_of(tickets[2])
                with pytest.raises(ApiError, match="has ended"):
                    await _embedded(worker, [1, 2, 3], "mean")

    asyncio.run(scene())


def test_a_drafter_that_raises_costs_only_itself() -> None:
    class Broken(Drafter):
        name = "broken"

        def propose(self, sequences: Any, budgets: Any) -> Any:
            raise MemoryError("no room for guesses")

    async def scene() -> None:
        with working(tiny_engine(drafters=[Broken()])) as worker:
            ticket = Ticket(job("r"), asyncio.get_running_loop())
            worker.submit(ticket)
            assert await tokens_of(ticket) == await alone()

    asyncio.run(scene())


def test_after_a_cancel_at_most_the_step_that_runs_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    step, steps = engine.step, 0

    def counted(self: Engine) -> Any:
        nonlocal steps
        steps += 1
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(Engine, "step", counted)

    async def scene() -> None:
        with working(engine) as worker:
            ticket = Ticket(job("r", SamplingParams(max_tokens=400, ignore_eos=True)), asyncio.get_running_loop())
            worker.submit(ticket)
            await ticket.next()
            worker.cancel(ticket)
            before = steps
            while engine.scheduler.blocks.used:
                await asyncio.sleep(0.001)
            assert steps <= before + 1
            worker.cancel(ticket)  # a second time does nothing

    asyncio.run(scene())


def test_time_limits_end_what_waits_and_what_runs() -> None:
    async def scene() -> None:
        with working(tiny_engine(), max_sequences=1) as worker:
            loop = asyncio.get_running_loop()
            endless = SamplingParams(max_tokens=None, ignore_eos=True)
            running, waiting = Ticket(job("a", endless, timeout=0.15), loop), Ticket(job("b", endless, timeout=0.1), loop)
            for ticket in (running, waiting):
                worker.submit(ticket)
            for ticket in (waiting, running):
                with pytest.raises(ApiError) as caught:
                    await tokens_of(ticket)
                assert caught.value.status == 408
                assert caught.value.headers["x-should-retry"] == "false"  # official clients would send it again

    asyncio.run(scene())


def test_stopping_tells_those_who_wait() -> None:
    async def scene() -> None:
        with working(tiny_engine(), max_sequences=1) as worker:
            loop = asyncio.get_running_loop()
            tickets = [Ticket(job(name, SamplingParams(max_tokens=400, ignore_eos=True)), loop) for name in "ab"]
            for ticket in tickets:
                worker.submit(ticket)
            worker.close()
            for ticket in tickets:
                with pytest.raises(ApiError) as caught:
                    await tokens_of(ticket)
                assert caught.value.status == 503

    asyncio.run(scene())


def test_a_small_pool_is_shared_by_preemption() -> None:
    """More is asked than the pool holds at once; every answer is still the one it would be alone."""
    long = SamplingParams(max_tokens=100, ignore_eos=True)

    async def scene() -> None:
        with working(tiny_engine(num_blocks=3)) as worker:
            tickets = [Ticket(job(f"r{at}", long), asyncio.get_running_loop()) for at in range(6)]
            for ticket in tickets:
                worker.submit(ticket)
            expected = [await tokens_of(ticket) for ticket in tickets]
            assert all(found == expected[0] for found in expected)
            assert len(expected[0]) == 100

    asyncio.run(scene())


PACED = Limits(stream_interval=0.2)


@contextmanager
def generating(jobs: list[Job], limits: Limits = PACED) -> Iterator[Generation]:
    with working(tiny_engine()) as worker:
        llm: Any = worker.llm
        host = Host("tiny", EngineConfig(), llm=llm, worker=worker, users=1)
        generation = Generation(Models([host], load=lambda config: llm), host, jobs, limits)
        yield generation
        generation.end()
        assert (host.users, host.tickets.total()) == (0, 0)


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_fixed_pace_hides_the_steps(prompts: int) -> None:
    """From the first token, for which a stream waits before it begins, and to the last, after which nothing is waited for."""

    async def scene() -> None:
        params = SamplingParams(max_tokens=400, ignore_eos=True)
        with generating([job(f"r{at}", params) for at in range(prompts)]) as generation:
            await generation.begin(20)
            times: dict[int, list[float]] = {prompt: [] for prompt in range(prompts)}
            async for prompt, _ in generation.events():
                times[prompt].append(time.monotonic())
            end = time.monotonic()
        for own in times.values():
            assert all(later - earlier >= 0.19 for earlier, later in itertools.pairwise(own))
            assert 1 < len(own) < 60
        assert end - max(own[-1] for own in times.values()) < 0.19

    asyncio.run(scene())


@pytest.mark.parametrize("prompts", [1, 2])
def test_the_pace_of_streams_does_not_hold_up_whole_answers(prompts: int) -> None:
    async def scene() -> None:
        with generating([job(f"r{at}") for at in range(prompts)], Limits(stream_interval=60.0)) as generation:
            async with asyncio.timeout(20):
                assert [len(answer.tokens) for answer in await generation.collect()] == [40] * prompts

    asyncio.run(scene())


def test_the_tokens_of_what_ran_out_of_time_are_told() -> None:
    async def scene() -> None:
        with working(tiny_engine()) as worker:
            llm: Any = worker.llm
            host = Host("tiny", EngineConfig(), llm=llm, worker=worker, users=1)
            endless = job("r", SamplingParams(max_tokens=None, ignore_eos=True), timeout=0.1)
            generation = Generation(Models([host], load=lambda config: llm), host, [endless], Limits())
            with pytest.raises(ApiError, match="longer than"):
                await generation.collect()
            assert generation.completion_tokens > 0
            assert not generation.whole
            generation.end()

    asyncio.run(scene())


async def sent(parts: AsyncIterator[bytes], leave_after: float = 60.0) -> tuple[list[bytes], list[str]]:
    """What a client gets of an event stream that it leaves after so long, and what was called."""
    bodies: list[bytes] = []
    called: list[str] = []

    async def send(message: Any) -> None:
        bodies.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.sleep(leave_after)
        return {"type": "http.disconnect"}

    stream = EventStream(parts, 0.05, lambda: called.append("end"), openai_error, lambda problem: called.append("problem"))
    await stream({"type": "http"}, receive, send)
    return bodies, called


def test_a_silent_stream_is_kept_alive_and_an_error_becomes_an_event() -> None:
    async def parts() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.18)
        yield b"one"
        raise ApiError(503, "Too late.", code="late")

    bodies, called = asyncio.run(sent(parts()))
    assert bodies.count(KEEP_ALIVE) in (2, 3)
    assert bodies.index(b"one") > bodies.index(KEEP_ALIVE)
    assert b'"code":"late"' in bodies[-2]
    assert called == ["problem", "end"]


def test_what_is_no_users_mistake_is_not_told() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise KeyError("secret of the inside")

    bodies, _ = asyncio.run(sent(parts()))
    assert b"secret" not in b"".join(bodies)
    assert b"server_error" in bodies[-2]


def test_an_event_is_one_line_whatever_counts_as_its_end() -> None:
    said = {"text": "a\u2028b\u2029c\x85d\ne"}
    lines = data(said).decode().splitlines()
    assert [json.loads(line.removeprefix("data: ")) for line in lines if line] == [said]


def test_a_client_that_leaves_ends_the_stream() -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await asyncio.sleep(0.01)

    bodies, called = asyncio.run(sent(parts(), leave_after=0.1))
    assert 2 < len(bodies) < 30
    assert called == ["end"]


@pytest.mark.parametrize("method", ["begin", "serves", "propose", "observe", "end"])
def test_a_drafter_that_raises_anywhere_costs_only_itself(method: str) -> None:
    def broken(self: Any, *arguments: Any) -> Any:
        raise RuntimeError("no guess today")

    name = f"breaks-{method}"
    made: Any = type("Breaks", (SuffixDrafter,), {"name": name, method: broken})

    async def scene() -> None:
        with working(tiny_engine(drafters=[made(), SuffixDrafter()])) as worker:
            tickets = [Ticket(job(f"r{at}"), asyncio.get_running_loop()) for at in range(2)]
            for ticket in tickets:
                worker.submit(ticket)
            assert [await tokens_of(ticket) for ticket in tickets] == [await alone()] * 2
            assert worker.totals.drafted["suffix"] > 0  # the others go on
            assert worker.totals.finished == {"length": 2}

    asyncio.run(scene())


def test_a_request_that_outgrows_the_whole_pool_ends_alone() -> None:
    """It gets as far as the pool reaches and ends by its length; a prompt that could never fit is refused before it is queued."""
    engine = tiny_engine(num_blocks=2)

    async def scene() -> None:
        with working(engine) as worker:
            loop = asyncio.get_running_loop()
            large = Ticket(job("large", SamplingParams(max_tokens=400, ignore_eos=True)), loop)
            small = Ticket(job("small"), loop)
            for ticket in (large, small):
                worker.submit(ticket)
            assert 4 + len(await tokens_of(large)) == engine.scheduler.capacity
            assert await tokens_of(small) == await alone()
            assert worker.totals.finished == {"length": 2}
            with pytest.raises(PromptTooLong):
                engine.check([1] * engine.scheduler.capacity, PARAMS, [])

    asyncio.run(scene())


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Years forward and back at every look at the clock: no deadline comes sooner, no time limit is missed."""
    jumps = itertools.cycle([4e9, 0.0, 1.0, 2e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(jumps) * 1e9))

    async def scene() -> None:
        with working(tiny_engine(), max_sequences=1) as worker:
            loop = asyncio.get_running_loop()
            first = Ticket(job("first", deadline=30.0), loop)
            second = Ticket(job("second", deadline=30.0), loop)
            late = Ticket(job("late", SamplingParams(max_tokens=None, ignore_eos=True), timeout=0.2), loop)
            for ticket in (first, second, late):
                worker.submit(ticket)
            assert await tokens_of(first) == await tokens_of(second) == await alone()
            with pytest.raises(ApiError) as caught:
                await tokens_of(late)
            assert caught.value.status == 408

    asyncio.run(scene())


def test_nothing_but_dates_reads_the_wall_clock() -> None:
    """``created`` in answers, log lines and the place of a span in time; all waiting and measuring is monotonic."""
    source = Path(hasten.__file__).parent
    allowed = {"chat.py", "completions.py", "responses.py", "models.py", "tracing.py"}
    for room in ("serve", "engine", "control", "cache", "draft", "sampling"):
        for file in sorted((source / room).rglob("*.py")):
            calls = re.findall(r"time\.time(?:_ns)?\(|datetime\.(?:now|utcnow|today)\(", file.read_text(encoding="utf-8"))
            assert not calls or (room == "serve" and file.name in allowed), f"{room}/{file.name}: {calls}"


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path, tiny_model: Path) -> None:
    """The server may write no byte into any file: neither converted weights nor what it learns, nor outputs for later guesses."""
    refuse = ("prlimit", "--fsize=0", "--")
    with running("--draft", "suffix+memory", home=tmp_path, models=(f"tiny={tiny_model}",), before=refuse) as server:
        body = {"prompt": "one two " * 20, "max_tokens": 60, "temperature": 0, "speculation": "on", "ignore_eos": True}
        answers = [server.post("/v1/completions", body) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
        server.wait_idle()
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size]
    assert not [line for line in server.log if "Traceback" in line]
