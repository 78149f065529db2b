"""What drafters learn of the target's rows is looked for once a step, and charged to those who want to know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch

from hasten.control.rounds import Round
from hasten.core.config import SpeculationParams
from hasten.core.types import Batch, SamplingParams
from hasten.draft.recycling import RecyclingDrafter
from hasten.engine import likeliest_rows
from hasten.engine.likeliest_rows import LikeliestRows
from hasten.model import sketch
from hasten.model.precision import INT8
from hasten.model.sketch import sketch_of
from hasten.sampling.likeliest import likeliest
from tiny import BASE, DESCRIPTIONS, VOCABULARY, tiny_engine

LOGITS = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))


@dataclass
class Learner:
    name: str
    likeliest_wanted: int


def round_of(sequence: int, *drafters: str) -> Round:
    round = Round(sequence, "greedy", 10, 1, 10, SpeculationParams())
    round.seconds = dict.fromkeys(drafters, 0.0)
    return round


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each look took in."""
    out: list[int] = []
    monkeypatch.setattr(likeliest_rows, "likeliest", lambda rows, count: (out.append(len(rows)), likeliest(rows, count))[1])
    return out


def test_rows_of_several_rounds_are_looked_at_once(looked: list[int]) -> None:
    clock = count(0.0, 1.0).__next__
    four, six, none = Learner("four", 4), Learner("six", 6), Learner("none", 0)
    rounds = [round_of(1, "four", "none"), round_of(2, "four", "six"), round_of(3, "none")]
    asked = [(rounds[0], [four, none]), (rounds[1], [four, six]), (rounds[2], [none])]
    rows = LikeliestRows()
    rows.look(LOGITS[:, :40], asked, clock)  # type: ignore[arg-type]
    for first, last in ((0, 3), (3, 4), (4, 9), (9, 9)):
        found = rows.find(LOGITS[first:last, :40], [four], rounds[0], clock)  # type: ignore[list-item]
        assert found == likeliest(LOGITS[first:last, :40], 6)
    assert looked == [9]
    assert [round.seconds for round in rounds] == [{"four": 1 / 3, "none": 0.0}, {"four": 1 / 3, "six": 1 / 3}, {"none": 0.0}]
    assert rows.find(LOGITS[:3], [none], rounds[0], clock) == []  # type: ignore[list-item]


def test_a_single_round_is_looked_at_when_it_asks(looked: list[int]) -> None:
    clock, four = count(0.0, 1.0).__next__, Learner("four", 4)
    round, rows = round_of(1, "four"), LikeliestRows()
    rows.look(LOGITS, [(round, [four])], clock)  # type: ignore[list-item]
    assert looked == []
    assert rows.find(LOGITS[2:5], [four], round, clock) == likeliest(LOGITS[2:5], 4)  # type: ignore[list-item]
    assert (looked, round.seconds) == ([3], {"four": 1.0})


def test_rows_of_another_step_are_looked_at_anew(looked: list[int]) -> None:
    clock, four = count(0.0, 1.0).__next__, Learner("four", 4)
    rounds, rows, others = [round_of(1, "four"), round_of(2, "four")], LikeliestRows(), LOGITS.flip(0).clone()
    rows.look(LOGITS, [(round, [four]) for round in rounds], clock)  # type: ignore[misc]
    assert rows.find(others[1:3], [four], rounds[0], clock) == likeliest(others[1:3], 4)  # type: ignore[list-item]
    rows.forget()
    assert rows.find(LOGITS[1:3], [four], None, clock) == likeliest(LOGITS[1:3], 4)  # type: ignore[list-item]
    assert looked == [9, 2, 2]


def test_what_the_head_has_told_is_not_looked_for(looked: list[int]) -> None:
    clock, four = count(0.0, 1.0).__next__, Learner("four", 4)
    rounds, rows, told = [round_of(1, "four"), round_of(2, "four")], LikeliestRows(), torch.tensor(likeliest(LOGITS, 4))
    rows.know(LOGITS, told)
    assert rows.find(LOGITS[1:3, :40], [four], rounds[0], clock) == told[1:3].tolist()  # type: ignore[list-item]
    assert looked == []
    assert rounds[0].seconds == {"four": 0.0}
    told[5, 3] = -1  # fewer logits above -infinity than were asked for
    rows.know(LOGITS, told)
    assert rows.find(LOGITS[1:3], [four], rounds[0], clock) == likeliest(LOGITS[1:3], 4)  # type: ignore[list-item]
    assert looked == [2]


def test_a_sketched_head_tells_the_likeliest(monkeypatch: pytest.MonkeyPatch, looked: list[int]) -> None:
    """While something is drafted, and only then; whoever learns from them is told the same as by looking."""
    monkeypatch.setattr(sketch, "LEAST_BYTES", 0)
    monkeypatch.setitem(DESCRIPTIONS, "wide", replace(BASE, hidden_size=64))
    engine = tiny_engine("wide", [RecyclingDrafter()], precision=INT8)
    executor = engine.executor
    sketched = sketch_of(executor.decoder.weights.head, VOCABULARY)
    if sketched is None:
        pytest.skip("needs the native kernels on an x86 processor")
    executor.decoder = executor.decoder.with_sketch(sketched)
    asked: list[int] = []
    told: list[bool] = []
    forward = executor.forward

    def watched(batch: Batch) -> torch.Tensor:
        logits = forward(batch)
        asked.append(batch.likeliest)
        if executor.likeliest is not None:
            assert executor.likeliest.tolist() == likeliest(logits[:, :VOCABULARY], batch.likeliest)
        told.append(executor.likeliest is not None)
        return logits

    monkeypatch.setattr(executor, "forward", watched)
    request = engine.submit([5, 6, 7, 5, 6, 7], SamplingParams(max_tokens=40, ignore_eos=True))
    while not engine.idle:
        engine.step()
    assert request.speculation.drafted > 0
    assert asked[0] == 0  # the prompt
    assert any(told)
    assert not all(told[1:])  # steps of many rows compute the whole head
    assert len(looked) == told.count(False)  # the first token's row, before any round, is one of these
