"""Drafters that break their contract in ways that look harmless: each is held to it, told about, and changes no text."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from drafters import OutOfVocabulary, Raising, Right, TestDrafter, TooLong
from hasten.core.config import SpeculationParams
from hasten.core.types import MODEL_SOURCE, DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.engine.drafting import LET_GO
from hasten.engine.engine import Engine
from hasten.engine.requests import Request
from test_drafting import KIND, ON, PROMPT, curve, greedy
from tiny import naive_text, run_all, tiny_engine

TRUTH = naive_text(KIND, PROMPT, greedy(40))


def answered(engine: Engine, wish: SpeculationParams = ON, tokens: int = 40) -> Request:
    """A request that gets its text, whatever the drafters do."""
    engine.explain = True
    request = engine.submit(list(PROMPT), greedy(tokens), speculation=wish)
    assert run_all(engine, [request]) == [TRUTH[:tokens]]
    return request


class Named(Right):
    """Guesses rightly under names that are not its own."""

    name = "named"

    def __init__(self, names: object) -> None:
        super().__init__(lambda _: list(TRUTH))
        self._names = names

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        tree = super().tree(sequence, budget)
        tree.drafters = [self._names] * len(tree)  # type: ignore[list-item]
        return tree


@pytest.mark.parametrize("name", [MODEL_SOURCE, None, "other", ["named"], 3])
def test_who_names_somebody_else_is_switched_off(name: object, caplog: pytest.LogCaptureFixture) -> None:
    request = answered(tiny_engine(KIND, [Named(name)]))
    assert set(request.answers[0].sequence.provenance) == {MODEL_SOURCE}
    assert request.speculation.by_drafter == {}
    assert len(caplog.records) == 1
    assert "'named' failed" in caplog.text
    assert request.speculation.decisions["named"].startswith("named: off, it failed (ValueError: a draft node is not named 'named'")


class Writing(Right):
    """Writes into what it is shown."""

    name = "writing"

    def __init__(self, write: Callable[[Sequence], None], *moments: str) -> None:
        super().__init__(lambda _: list(TRUTH))
        self._write, self._moments = write, moments

    def begin(self, sequence: Sequence) -> None:
        self._at("begin", sequence)

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        tree = super().tree(sequence, budget)
        self._at("propose", sequence)
        return tree

    def observe(self, sequence: Sequence, tree: object, verdict: object) -> None:
        self._at("observe", sequence)

    def end(self, sequence: Sequence) -> None:
        self._at("end", sequence)

    def _at(self, moment: str, sequence: Sequence) -> None:
        if moment in self._moments:
            self._write(sequence)


def last(sequence: Sequence) -> None:
    sequence.tokens[-1] = 5


def first(sequence: Sequence) -> None:
    sequence.tokens[0] = 5


def longer(sequence: Sequence) -> None:
    sequence.tokens.append(5)


def shorter(sequence: Sequence) -> None:
    del sequence.tokens[-2:]


def no_blocks(sequence: Sequence) -> None:
    sequence.blocks.clear()
    sequence.provenance.clear()
    sequence.length_limit = 3


@pytest.mark.parametrize("write", [last, first, longer, shorter, no_blocks])
@pytest.mark.parametrize("moment", ["begin", "propose", "observe", "end"])
def test_what_a_drafter_writes_stays_with_it(write: Callable[[Sequence], None], moment: str) -> None:
    writer = Writing(write, moment)
    engine = tiny_engine(KIND, [writer, Right(lambda _: list(TRUTH))])
    for _ in range(2):
        request = answered(engine)
        assert len(request.answers[0].sequence.provenance) == 40


@pytest.mark.parametrize("write", [last, longer, shorter])
def test_who_changes_the_text_that_it_guesses_from_is_told(
    write: Callable[[Sequence], None], caplog: pytest.LogCaptureFixture
) -> None:
    answered(tiny_engine(KIND, [Writing(write, "propose")]))
    assert "it changes the text that it is to guess from" in caplog.text
    assert len(caplog.records) == 1


class Unsure(Right):
    """Right, with a score that is none."""

    name = "unsure"

    def tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        tree = super().tree(sequence, budget)
        tree.scores = [float("nan")] * len(tree)
        return tree


@pytest.mark.parametrize(
    ("drafter", "fault"),
    [
        (OutOfVocabulary(), "tokens outside of the vocabulary"),
        (TooLong(), "more or deeper guesses than its budget allows"),
        (Unsure(lambda _: list(TRUTH)), "scores that are no numbers from 0 to 1"),
    ],
)
def test_guesses_that_are_mended_are_told_once(drafter: Drafter, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = tiny_engine(KIND, [drafter])
    for _ in range(2):
        answered(engine)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"Drafter '{drafter.name}' proposes {fault}" in caplog.text


class Silent(TestDrafter):
    name = "silent"

    def serves(self, sequence: Sequence) -> bool:
        return False


def test_why_a_drafter_takes_no_part_is_explained() -> None:
    engine = tiny_engine(KIND, [Raising("propose"), Silent(), Right(lambda _: list(TRUTH))])
    decisions = answered(engine).speculation.decisions
    assert decisions["raising"] == "raising: off, it failed (RuntimeError: deliberate failure in propose)"
    assert decisions["silent"] == "silent: off, it has nothing to guess for this text"
    assert decisions["right"].startswith("right: on")


def test_who_is_let_go_is_neither_begun_nor_ended_and_says_why() -> None:
    class Counting(Raising):
        name = "counting"

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def _fail(self, moment: str) -> None:
            self.calls.append(moment)

    drafter = Counting()
    engine = tiny_engine(KIND, [drafter], curve=curve())
    engine.controller.upkeep.charge("counting", "begin", 100.0, 1e-3)
    assert answered(engine, SpeculationParams()).speculation.decisions == {"counting": f"counting: off, {LET_GO}"}
    assert drafter.calls == []
    answered(engine)  # who insists has it
    assert {"begin", "propose", "end"} <= set(drafter.calls)


def test_sampled_text_is_what_it_was_too() -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.9, seed=7)
    truth = naive_text(KIND, PROMPT, params)
    engine = tiny_engine(KIND, [Writing(last, "begin", "observe"), Named("model")])
    assert run_all(engine, [engine.submit(list(PROMPT), params, speculation=ON)]) == [truth]
