"""What holds drafting up from outside is on nobody's account; and steps that cannot be measured keep nobody from drafting."""

from __future__ import annotations

import pytest

from hasten.control.controller import Controller
from hasten.control.cost import CostCurve
from hasten.control.rounds import Round
from hasten.control.step_costs import StepCosts
from hasten.core.config import SpeculationParams
from hasten.core.types import DraftTree

NAME = "suffix"
ROWS = {1: 0.010, 2: 0.0102, 4: 0.0105, 8: 0.011, 16: 0.013, 32: 0.018, 64: 0.03}


def controller() -> Controller:
    return Controller(StepCosts(CostCurve.measured(ROWS)))


def step(control: Controller, number: int, took: float, reading: float = 0.0, pure: bool = True, brings: int = 4) -> bool:
    """One step of one sequence with a free drafter that guesses four tokens in ``took`` seconds; whether it was asked."""
    round = Round(1, "greedy", 200 + number, 10 + number, 1000, SpeculationParams())
    asked = control.open([round], pure=pure) and control.ask(NAME, False, [round])[0]
    if asked:
        tree = DraftTree()
        for level in range(4):
            tree.add(level - 1, level, 0.9, NAME)
        round.bid(NAME, tree)
        round.seconds[NAME] = took + reading
        control.select([round], 1, took, 32, 32)
    rows = 1 + len(round.verified)
    control.observe(round, list(range(min(brings, len(round.verified)))))
    forward = control.costs.curve.predict(rows)
    control.settle([round], rows, forward, forward + 0.0002 + sum(round.seconds.values()), [NAME], pure)
    return asked


def test_a_process_that_is_stopped_for_a_minute_keeps_nobody_from_drafting() -> None:
    control = controller()
    assert sum(step(control, number, 0.0002) for number in range(100)) > 80
    while not step(control, 100, 60.0):
        pass
    balance = control.standings[NAME, "greedy"].balance
    assert balance is not None
    assert balance > 0.0
    assert sum(step(control, number, 0.0002) for number in range(100, 200)) > 80
    assert control.tallies[NAME].seconds < 1.0


def test_who_is_slow_each_time_is_charged_each_time() -> None:
    control = controller()
    asked = sum(step(control, number, 0.4) for number in range(1000))
    balance = control.standings[NAME, "greedy"].balance
    assert balance is not None
    assert balance < 0.0
    assert asked < 10


def test_one_interrupted_pass_does_not_make_a_model_dear() -> None:
    costs = StepCosts(CostCurve.measured(ROWS), {"lm": CostCurve.measured({1: 0.002, 8: 0.003})})
    costs.open([100])
    before = costs.one_pass("lm", 1)
    costs.charge("lm", before, None, 0.1, 640, 1)
    reading = costs.reading("lm", 640)
    assert before is not None
    costs.charge("lm", 30.0, None, 30.0, 640, 1)
    assert costs.one_pass("lm", 1) == pytest.approx(before)
    assert costs.reading("lm", 640) == pytest.approx(reading)
    for _ in range(30):
        costs.charge("lm", 3 * before, None, 3 * reading, 640, 1)
    assert costs.one_pass("lm", 1) == pytest.approx(3 * before, rel=0.05)
    assert costs.reading("lm", 640) == pytest.approx(3 * reading, rel=0.05)


def test_drafting_goes_on_while_prompts_are_read() -> None:
    """What a plain step costs can be known from steps that do nothing else; others are not given up for it."""
    control = controller()
    alone = sum(step(control, number, 0.0002) for number in range(60))
    beside = [step(control, number, 0.0002, pure=False) for number in range(600)]
    assert alone > 40
    assert sum(beside) > 550
    assert sum(beside[-100:]) > 90
