"""Where the target itself wavered between thousands of tokens, drafters are hardly asked."""

from __future__ import annotations

import math
from itertools import count

import pytest
import torch

from hasten.control import accounts
from hasten.control.controller import Controller
from hasten.control.cost import CostCurve
from hasten.control.rounds import Round, kind_of
from hasten.control.step_costs import StepCosts
from hasten.core.config import SpeculationParams
from hasten.core.types import DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft.base import Drafter
from hasten.draft.children import entropy
from hasten.engine.drafting import Drafting
from hasten.engine.flat_laws import EVERY, FLAT, FlatLaws, rough_entropy
from hasten.engine.scheduler import Scheduled
from test_control_never_slower import Clock, Scripted

VOCABULARY = 150_000
NOISE = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))
SAMPLED = SamplingParams(temperature=1.0, seed=3)


def peaked(by: float, at: int) -> torch.Tensor:
    logits = NOISE.clone()
    logits[at] += by
    return logits


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_laws_without_a_peak_a_sixteenth_tells_the_entropy(spread: float, dtype: torch.dtype) -> None:
    logits = (spread * NOISE).to(dtype)
    assert rough_entropy(logits) == pytest.approx(entropy(logits, 1.0), abs=0.5)


@pytest.mark.parametrize("at", [0, 5, VOCABULARY - 1], ids=["looked at", "not looked at", "the last"])
def test_a_law_with_a_peak_is_not_flat(at: int) -> None:
    for by, flat in ((0.0, True), (20.0, False), (60.0, False)):
        assert (rough_entropy(peaked(by, at)) >= FLAT) == flat
    assert rough_entropy(peaked(60.0, at)) <= math.log(1 + EVERY) + 1e-6  # the largest may be one of those that stand for others


def test_forbidden_tokens_count_for_nothing() -> None:
    logits = torch.full((VOCABULARY,), -torch.inf)
    logits[:: VOCABULARY // 4] = 1.0
    assert 0.0 <= rough_entropy(logits) < FLAT


def sequence_of(params: SamplingParams, number: int = 1) -> Sequence:
    return Sequence(number, "r", params, 3, [0] * 8, 6, 100)


def test_who_was_asked_pays_for_the_look_and_greedy_choices_are_not_looked_at() -> None:
    flat, clock = FlatLaws(), count(0.0, 1.0).__next__
    rows = torch.stack([peaked(20.0, 0), NOISE])
    sampled, greedy = sequence_of(SAMPLED), sequence_of(SamplingParams(), 2)
    for last, expected in ((0, False), (1, True), (0, False), (1, True)):
        round = Round.of(sampled, SpeculationParams())
        round.seconds = {"suffix": 0.0, "lm": 1.0}
        flat.look(sampled, rows, last, round, clock)
        assert (sampled in flat, round.seconds) == (expected, {"suffix": 0.5, "lm": 1.5})
    flat.look(greedy, torch.empty(0, 0), 0, None, clock)
    assert greedy not in flat
    flat.look(sampled, rows, 1, None, clock)  # nobody was asked
    flat.forget(sampled)
    assert sampled not in flat


def test_a_flat_law_is_a_kind_of_sampling_of_its_own() -> None:
    assert [kind_of(params, flat=True) for params in (SamplingParams(), SAMPLED)] == ["greedy", "flat"]
    assert kind_of(SAMPLED) == "hot"
    controller = Controller(StepCosts(CostCurve.measured({1: 0.1, 8: 0.15})))
    controller.costs.open([0])
    for kind, prior, share in (("greedy", accounts.PRIOR_ACCEPTANCE, 1.0), ("flat", accounts.FLAT_ACCEPTANCE, 0.1)):
        standing = controller._opened("lm", Round(1, kind, 10, 1, 100, SpeculationParams()), paid=True)
        assert standing.acceptance == pytest.approx(prior)
        standing.evidence.observe(1, 1, 1.0)
        assert standing.acceptance < prior + (0.1 if kind == "greedy" else 0.03)
        assert standing.balance == pytest.approx(share * accounts.START_STEPS * controller.costs.unit)
        assert accounts.exploration(kind, 1) == pytest.approx(share * accounts.EXPLORATION)


def rounds_asked(logits: torch.Tensor, params: SamplingParams, steps: int = 24) -> int:
    """Of how many rounds of a new text a model's guesses, none of them right, are a part, where its tokens come from such rows."""
    clock = Clock()
    drafter: Drafter = Scripted(clock, "model", level=0.001, score=0.5)
    controller = Controller(StepCosts(CostCurve.measured({1: 0.05, 8: 0.056, 32: 0.1}), {"model": CostCurve.measured({1: 0.001})}))
    drafting = Drafting([drafter], controller, VOCABULARY, clock=clock)
    sequence = sequence_of(params)
    drafting.begin(sequence)
    asked = 0
    for _ in range(steps):
        began = clock()
        sequence.computed = len(sequence.tokens) - 1
        item = Scheduled(sequence, 1)
        drafting.propose([item], 64)
        tree = item.tree or DraftTree()
        asked += bool(len(tree))
        clock.now += controller.costs.curve.predict(1 + len(tree))
        sequence.tokens.append(2)
        drafting.observe(sequence, tree, Verdict([], [2]), logits.expand(1 + len(tree), -1))
        drafting.settle([item], 1 + len(tree), clock() - began, clock() - began)
    return asked


def test_a_model_is_not_asked_behind_flat_laws_but_behind_others() -> None:
    assert rounds_asked(NOISE, SAMPLED) <= 1  # the first token of this text is nobody's: no row was seen
    assert rounds_asked(peaked(20.0, 0), SAMPLED) >= 3
    assert rounds_asked(NOISE, SamplingParams()) >= 3
