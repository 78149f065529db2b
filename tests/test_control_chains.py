"""Rules of other papers, put to guesses that cost no level: how long a chain is verified."""

from __future__ import annotations

import itertools
import random

import pytest

from hasten.control import rules
from hasten.control.chains import most_goodput, until_rejected
from hasten.control.controller import Controller
from hasten.control.cost import CostCurve, Line
from hasten.control.rounds import Round
from hasten.control.selection import best_count, seconds_by_count
from hasten.control.step_costs import StepCosts
from hasten.core.config import SpeculationParams
from hasten.core.types import ROOT, DraftTree
from hasten.draft.base import Drafter
from test_control_never_slower import FLAT, STEEP, Accepts, Clock, Machine, Scripted, always, never, often


def chain(name: str, scores: list[float]) -> DraftTree:
    tree, parent = DraftTree(), ROOT
    for token, score in enumerate(scores):
        parent = tree.add(parent, token, score, name)
    return tree


def chosen(rule: str, tree: DraftTree, wish: SpeculationParams | None = None, paid: int = 0) -> int:
    """How many nodes the rule verifies of a tree that was proposed, whose first ``paid`` levels cost a pass each."""
    controller = Controller(StepCosts(CostCurve.measured(STEEP)), rule=rule)
    controller.open([round := Round(0, "greedy", 50, 10, 100, wish or SpeculationParams())])
    round.bid("text", tree)
    if paid:
        round.levels["model"] = paid
    return len(controller.select([round], 1, 0.0, 24, 24)[0])


@pytest.mark.parametrize("survival", [0.9, 0.5, 0.2])
def test_threshold_ends_behind_the_guess_that_has_probably_failed(survival: float) -> None:
    survivals = [survival**depth for depth in range(1, 25)]
    end = until_rejected(range(24), survivals)
    assert survivals[end - 1] < 1.0 - rules.MOST_REJECTED <= min(survivals[: end - 1], default=1.0)
    assert until_rejected(range(2), [0.9, 0.8]) == 2
    assert until_rejected([], []) == 0


@pytest.mark.parametrize("seed", range(5))
def test_goodput_is_the_enumerated_optimum(seed: int) -> None:
    rng = random.Random(seed)
    curve, spent = CostCurve.measured(STEEP), rng.random() * 0.01
    survivals = [sorted((rng.random() for _ in range(4)), reverse=True) for _ in range(3)]
    ends = most_goodput(
        [range(4)] * 3,
        survivals,
        lambda ranked: best_count(ranked, 3, seconds_by_count(ranked, [50] * 3, 3, spent, curve, Line())),
    )

    def goodput(ends: tuple[int, ...]) -> float:
        made = 3 + sum(sum(each[:end]) for each, end in zip(survivals, ends, strict=True))
        return made / (spent + curve.predict(3 + sum(ends)))

    assert goodput(tuple(ends)) == pytest.approx(max(map(goodput, itertools.product(range(5), repeat=3))))


def test_rules_bound_guesses_that_cost_nothing() -> None:
    tree = chain("text", [0.6] * 12)
    assert [chosen(rule, tree) for rule in ("entropy", "threshold")] == [12, 3]
    assert chosen("goodput", tree) == 0  # a row costs most of a step here
    assert chosen("goodput", chain("text", [0.97] * 12)) == 3


@pytest.mark.parametrize("rule", ["goodput", "threshold"])
def test_levels_that_were_paid_for_are_verified_and_so_is_what_somebody_insists_on(rule: str) -> None:
    assert chosen(rule, chain("model", [0.3] * 6), paid=6) == 6
    mixed = chain("model", [0.3] * 3)
    for token in range(5):
        mixed.add(len(mixed) - 1, 10 + token, 0.3, "text")
    assert chosen(rule, mixed, paid=3) == 3
    assert chosen(rule, chain("text", [0.3] * 6), SpeculationParams("on")) == 6


def run(rule: str, law: Accepts, points: dict[int, float]) -> float:
    def drafters(clock: Clock) -> list[Drafter]:
        return [Scripted(clock, "text", score=0.6, deepest=24)]

    return Machine(drafters, {"text": law}, points, rule=rule).run(3000)


@pytest.mark.parametrize("rule", ["goodput", "threshold"])
def test_the_rules_know_when_free_guesses_do_not_pay(rule: str) -> None:
    always_whole = run("entropy", never, FLAT)
    assert always_whole > 1.3
    assert run(rule, never, FLAT) < 1.0 + (always_whole - 1.0) / 4
    assert run(rule, often, FLAT) < run("entropy", often, FLAT)
    assert run(rule, always, FLAT) < 0.4
