"""One model, several threads: they take turns, everybody gets their own text, and nobody waits who must not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from hasten.core.errors import HastenError
from hasten.core.results import Completion
from hasten.core.types import DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.llm import LLM, EventStream
from test_exact import GREEDY, SAMPLED, prompt_of
from tiny import naive_text, tiny_engine

PATIENCE = 60


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr("hasten.engine.llm.load_engine", lambda config, progress: tiny_engine("llama", [SuffixDrafter()]))
    return LLM("tiny")


def at_once(*works: Callable[[], None]) -> None:
    """Run all of them beside one another. Raises what one of them raises."""
    problems: list[BaseException] = []
    together = threading.Barrier(len(works))

    def guarded(work: Callable[[], None]) -> None:
        try:
            together.wait(PATIENCE)
            work()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if problems:
        raise problems[0]


def wanted(seed: int, params: SamplingParams) -> list[int]:
    return naive_text("llama", prompt_of(12, seed), params)


def test_everybody_gets_their_own_text(llm: LLM) -> None:
    expected = [(wanted(seed, GREEDY), wanted(seed, SAMPLED)) for seed in range(6)]

    def generate(seed: int) -> None:
        prompt = list(prompt_of(12, seed))
        for _ in range(3):
            found = llm.generate([prompt, prompt], [GREEDY, SAMPLED])
            assert (found[0].tokens, found[1].tokens) == expected[seed]

    def stream(seed: int) -> None:
        for _ in range(3):
            with llm.stream(list(prompt_of(12, seed)), GREEDY) as events:
                assert [token for event in events for token in event.tokens] == expected[seed][0]
            llm.stream(list(prompt_of(12, seed)), SAMPLED).close()

    at_once(*(lambda seed=seed: (generate, stream)[seed % 2](seed) for seed in range(6)))  # type: ignore[misc]
    assert llm.engine.idle
    llm.engine.scheduler.check_integrity()
    assert llm.engine.scheduler.blocks.used == 0


def test_one_stream_read_by_several_threads_loses_and_repeats_nothing(llm: LLM) -> None:
    prompt = list(prompt_of(12, 1))
    stream = llm.stream(prompt, GREEDY)
    parts: list[list[int]] = [[], [], []]

    def read(part: list[int]) -> None:
        for event in stream:
            part += event.tokens

    at_once(*(lambda part=part: read(part) for part in parts))  # type: ignore[misc]
    assert sorted(token for part in parts for token in part) == sorted(wanted(1, GREEDY))


def test_an_end_that_came_in_a_step_of_somebody_else_s_is_not_waited_for(llm: LLM) -> None:
    """Within ``on_done`` the caller steps the engine himself; a third request runs on."""
    short, middle, long = (replace(GREEDY, max_tokens=count, ignore_eos=True) for count in (1, 3, 200))
    third = llm.stream("third", long)

    def ask_more(place: int, completion: Completion) -> None:
        if place == 1:
            llm.generate("more", replace(middle, max_tokens=30))

    assert len(llm.generate(["one", "two"], [middle, short], on_done=ask_more)) == 2
    assert not third._request.finished
    assert len([token for event in third for token in event.tokens]) == 200


def test_who_closes_a_stream_waits_for_nobody(llm: LLM) -> None:
    """The garbage collector may close a generator in any thread, whatever locks that one holds."""
    stream = llm.stream("one two", GREEDY)
    within, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with llm.engine.turn:
            within.set()
            assert enough.wait(PATIENCE)

    def close() -> None:
        assert within.wait(PATIENCE)
        stream.close()
        enough.set()

    at_once(hold, close)
    assert llm.engine.idle
    assert next(stream, None) is None


class Closing(SuffixDrafter):
    """Somebody's generator, collected within a step, closes its stream."""

    stream: EventStream | None = None

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        if self.stream is not None:
            self.stream.close()
        return super().propose(sequences, budgets)


def test_a_stream_closed_within_a_step_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Closing()
    monkeypatch.setattr("hasten.engine.llm.load_engine", lambda config, progress: tiny_engine("llama", [drafter]))
    llm = LLM("tiny")
    drafter.stream = llm.stream("one two one two", GREEDY)
    assert llm.generate(list(prompt_of(12, 1)), SAMPLED)[0].tokens == wanted(1, SAMPLED)
    assert drafter.stream._request.answers[0].sequence.finish_reason == "cancelled"
    assert llm.engine.idle
    assert llm.engine.scheduler.blocks.used == 0


def test_closing_the_model_while_others_ask(llm: LLM) -> None:
    """They get their text or one sentence."""

    expected = wanted(1, GREEDY)

    def ask() -> None:
        with suppress(HastenError):
            for _ in range(50):
                assert llm.generate(list(prompt_of(12, 1)), GREEDY)[0].tokens == expected

    at_once(ask, ask, llm.close)
