"""The parts of the controller: cost curves, calibration, selection, rules, files."""

from __future__ import annotations

import json
import logging
import math
import random
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from hasten.control import accounts, rules, store
from hasten.control.accounts import PASSED_ON, Evidence, Own, Savings, Standing
from hasten.control.calibrator import Calibrator, rising
from hasten.control.controller import Controller
from hasten.control.cost import CostCurve, Line
from hasten.control.memory import Memory
from hasten.control.profile import NEAR, Setting, Timed, checked, curve_of, floor_and_knee, level, load, measure, save
from hasten.control.rounds import Round
from hasten.control.selection import Offer, best_count, fairest_count, offers, seconds_by_count, survivals
from hasten.control.step_costs import DOUBT, StepCosts
from hasten.core.config import EngineConfig, SpeculationParams, parse_control
from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.types import ROOT, DraftTree
from hasten.draft.growth import chances_of_draws
from hasten.sampling.laws import Law

SETTING = Setting("ab" * 32, "int8", "A Processor (tm) / 2", 2, "amx")


def truth(rows: int, context: int) -> float:
    return 0.010 + 0.0005 * rows + 1e-6 * context * (1 + 0.1 * rows)


def test_a_measured_curve_predicts_what_it_measured() -> None:
    curve = measure(truth, 4096)
    for rows, context in product((1, 2, 5, 8, 20, 64), (0, 128, 1000, 3000)):
        assert curve.step([(rows, context)]) == pytest.approx(truth(rows, context), rel=0.02)
    two = curve.step([(3, 500), (1, 2000)])
    assert two == pytest.approx(0.010 + 0.002 + 1e-6 * (500 * 1.3 + 2000 * 1.1), rel=0.02)


@pytest.mark.parametrize("positions", [0, 1, 2, 30, 64, 128, 200, 1056, 1100])
def test_any_pool_can_be_measured(positions: int) -> None:
    def within(rows: int, context: int) -> float:
        assert rows + context <= positions
        return truth(rows, context)

    curve = measure(within, positions)
    assert not curve.known or curve.predict(1) > 0.0


def test_a_machine_that_takes_seconds_a_pass_is_not_measured_for_minutes() -> None:
    now = 0.0
    asked: list[tuple[int, int]] = []

    def slow(rows: int, context: int) -> float:
        nonlocal now
        asked.append((rows, context))
        now += 4.0 * rows
        return 4.0 * rows

    curve = measure(slow, 4096, clock=lambda: now)
    assert asked == [(1, 128), (1, 128), (2, 128)]
    assert curve.predict(2) == pytest.approx(8.0)


def test_requests_are_hoped_to_be_like_the_better_half_of_the_last_ones() -> None:
    standing = Standing(balance=1.0, evidence=Evidence(30.0, 100.0))
    assert standing.hope == accounts.HOPED
    for successes in (2.0, 8.0, 6.0, 4.0):
        standing.remember(Evidence(successes, 10.0), begun=True)
    standing.remember(Evidence(1.0, 2.0), begun=True)  # too little to say
    assert standing.requests == [0.2, 0.8, 0.6, 0.4]
    assert standing.hope == pytest.approx(0.7)
    assert Standing.from_json(standing.to_json()).requests == standing.requests
    standing.remember(Evidence(), begun=False)
    assert (standing.requests, standing.hope) == ([0.8, 0.6, 0.4], pytest.approx(0.825))
    for _ in range(20):
        standing.remember(Evidence(1.0, 10.0), begun=True)
    assert (len(standing.requests), standing.hope) == (8, pytest.approx(standing.acceptance))
    own = Own()
    for price, answer, kind, hope in (
        (0.9, 10.0, "greedy", standing.hope), (1.1, 100.0, "warm", None), (0.9, 8.0, "warm", None), (0.1, 10.0, "hot", None)
    ):  # fmt: skip
        own.look_forward(standing, price, answer, kind)
        assert own.hope == hope


@pytest.mark.parametrize("content", [[1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0, 1.5], [1.0, 2.0, 3.0, *[0.5] * 9], "no"])
def test_a_standing_that_does_not_fit_is_refused(content: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Standing.from_json(content)


def test_a_plain_step_is_a_step_of_one_row_for_each_sequence() -> None:
    for curve in (CostCurve([1, 4, 8], [1.0, 1.5, 3.0], slopes=[0.01, 0.02, 0.05], reference=64), CostCurve([1, 4], [1.0, 1.5])):
        for contexts in ([7], [100, 3, 900], [50] * 9):
            curve.observe(2, 1.4)
            assert curve.plain_step(contexts) == pytest.approx(curve.step([(1, context) for context in contexts]))


def test_curves_never_fall_whatever_is_observed() -> None:
    rng = random.Random(3)
    curve = CostCurve.measured({1: 5.0, 2: 3.0, 8: 4.0, 32: 9.0}, {1: 0.01, 8: 0.005}, 100)
    for _ in range(600):
        curve.observe(rng.randrange(1, 80), rng.choice([0.1, 1.0, 5.0, 50.0]) * rng.random())
        values = [curve.predict(rows) for rows in range(1, 100)]
        assert all(later >= earlier - 1e-9 for earlier, later in pairwise(values))


def test_drift_follows_the_machine_and_outliers_do_not_move_it() -> None:
    curve = CostCurve.measured({1: 1.0, 8: 2.0})
    for _ in range(200):
        curve.observe(1, 1.5)
    assert curve.predict(1) == pytest.approx(1.5, rel=0.02)
    for _ in range(5):
        curve.observe(1, 30.0)
    assert curve.predict(1) == pytest.approx(1.5, rel=0.02)
    for _ in range(60):
        curve.observe(1, 30.0)
    assert curve.predict(1) == pytest.approx(30.0, rel=0.1)


def test_rows_that_keep_taking_far_longer_are_believed_where_others_fit() -> None:
    curve = CostCurve.measured({1: 1.0, 64: 1.2})
    for _ in range(9):
        curve.observe(1, 1.0)
        curve.observe(8, 6.0)
    assert curve.predict(1) == pytest.approx(1.0, rel=0.1)
    assert curve.predict(8) == pytest.approx(6.0, rel=0.1)
    assert curve.predict(64) >= curve.predict(8)


def test_a_wrong_shape_is_corrected_by_running() -> None:
    curve = CostCurve.measured({1: 1.0, 16: 1.1})
    for _ in range(600):
        curve.observe(1, 1.0)
        curve.observe(16, 2.0)
    assert curve.predict(1) == pytest.approx(1.0, rel=0.1)
    assert curve.predict(16) == pytest.approx(2.0, rel=0.1)


def test_line() -> None:
    line = Line()
    assert line.predict(5) == 0.0
    for x in (1, 1, 9, 17, 3):
        line.observe(x, 2.0 + 0.5 * x)
    assert line.predict(40) == pytest.approx(22.0)


def test_profiles_are_kept_checked_and_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    assert curve_of(SETTING, truth, 4096).origin == "measured now"
    assert curve_of(SETTING, truth, 4096).origin == "kept"
    slower = curve_of(SETTING, lambda rows, context: 2.0 * truth(rows, context), 4096)
    assert slower.origin == "kept"
    assert slower.curve.predict(8) == pytest.approx(2.0 * truth(8, NEAR), rel=0.05)
    bent = curve_of(SETTING, lambda rows, context: truth(rows, context) * rows, 4096)
    assert bent.origin == "measured now"
    other = Setting("ab" * 32, "int8", "Another processor", 2, "amx")
    assert load(SETTING.path(), other) is None
    assert load(SETTING.path(), replace(SETTING, kernels="another build")) is None
    assert curve_of(SETTING, truth, 4096, redo=True).origin == "measured now"
    floor, knee = floor_and_knee(curve_of(SETTING, truth, 4096).curve)
    assert floor == pytest.approx(truth(1, NEAR))
    assert truth(knee, NEAR) <= 1.5 * floor < truth(knee + 2, NEAR)


def bounded(positions: int) -> Timed:
    """``truth`` of a pool that holds so many positions."""

    def timed(rows: int, context: int) -> float:
        assert 0 <= context < context + rows <= positions
        return truth(rows, context)

    return timed


POOLS = range(64, 1408, 64)


@pytest.mark.parametrize("positions", [1, 10, *POOLS])
def test_no_pass_reaches_past_a_small_pool(positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    for kept_at in (positions, 4096, *POOLS):
        save(SETTING.path(), SETTING, measure(bounded(kept_at), kept_at))
        curve_of(SETTING, bounded(positions), positions)
        curve_of(SETTING, bounded(positions), positions, redo=True)
    assert checked(measure(truth, 4096), bounded(positions), positions) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("positions", [0, 1, 100, 4096])
def test_curves_of_different_moments_are_levelled(positions: int) -> None:
    """The other model was measured while memory was half as fast; in turns it takes a third, however fast memory is then."""
    curve, other = measure(truth, 4096), measure(lambda rows, context: 2 * truth(rows, context) / 3, 4096)
    turns = 0

    def now(rows: int, context: int) -> float:
        nonlocal turns
        turns += 1
        busy = 1.6 if turns % 6 in (2, 3, 4) else 1.0
        return busy * bounded(positions)(rows, context)

    level(curve, now, other, lambda rows, context: now(rows, context) / 3, positions)
    assert other.predict(1) == pytest.approx((1 if positions else 2) * curve.predict(1) / 3, rel=0.01)
    before = other.predict(1)
    level(CostCurve(), now, other, now, positions)
    level(curve, now, CostCurve(), now, positions)
    assert other.predict(1) == before


def test_levelling_takes_one_turn_where_passes_take_seconds() -> None:
    curve, other = measure(truth, 4096), measure(truth, 4096)
    asked: list[int] = []

    def slow(rows: int, context: int) -> float:
        asked.append(rows)
        return 500 * truth(rows, context)

    level(curve, slow, other, lambda rows, context: slow(rows, context) / 2, 4096)
    assert asked == [1] * 4
    assert other.predict(1) == pytest.approx(curve.predict(1) / 2)


def test_a_draft_models_passes_follow_the_targets_pace() -> None:
    """A machine that others slow down for a while makes drafts no dearer beside plain steps, asked or not."""
    costs = StepCosts(CostCurve.measured({1: 1.0, 8: 1.2}), {"lm": CostCurve.measured({1: 0.3, 8: 0.4})})

    def share() -> float:
        costs.open([0])
        return costs.one_pass("lm", 1) / costs.plain

    assert share() == pytest.approx(0.3)
    for asked in (False, True):
        for slower in (1.7, 0.8, 1.0):
            for _ in range(200):
                costs.open([0])
                costs.learn([(1, 0)], 1, slower, slower)
                if asked:
                    costs.charge("lm", 0.27 * slower, None, 0.0, 0, 1)
            assert share() == pytest.approx(0.27 if asked else 0.3, rel=0.02)
    costs.charge("unknown", 0.5, None, 0.0, 0, 1)
    assert costs.one_pass("unknown", 1) == pytest.approx(0.5)


def test_a_small_pool_uses_a_better_curve_and_never_replaces_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    curve_of(SETTING, bounded(4096), 4096)
    whole = SETTING.path().read_bytes()
    for positions in (64, 128, 512):
        found = curve_of(SETTING, bounded(positions), positions)
        assert (found.origin, found.curve.reference, len(found.curve.slopes)) == ("kept", NEAR, 12)
    curve_of(SETTING, bounded(64), 64, redo=True)
    bent = curve_of(SETTING, lambda rows, context: truth(rows, context) * rows, 192)
    assert bent.origin == "measured now"
    assert SETTING.path().read_bytes() == whole


def test_a_curve_of_a_small_pool_serves_small_pools_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    assert curve_of(SETTING, bounded(64), 64).origin == "measured now"
    assert curve_of(SETTING, bounded(64), 64).origin == "kept"
    for positions in (192, 4096):
        found = curve_of(SETTING, bounded(positions), positions)
        assert (found.origin, found.curve.reference, bool(found.curve.slopes)) == ("measured now", NEAR, positions == 4096)
        assert curve_of(SETTING, bounded(positions), positions).origin == "kept"


def test_a_much_slower_machine_is_measured_anew() -> None:
    assert checked(measure(truth, 4096), lambda rows, context: 10 * truth(rows, context), 4096) is None


@pytest.mark.parametrize(
    "change",
    [{"rows": []}, {"rows": [2, 1]}, {"seconds": "no"}, {"seconds": [float("inf")]}, {"slopes": [1]}, {"reference": -1},
     {"rows": None}, {"reference": 10**400}, {"seconds": [-1.0] * 12}],
)  # fmt: skip
def test_damaged_profiles_are_set_aside(change: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cost.json"
    save(path, SETTING, measure(truth, 4096))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with caplog.at_level(logging.WARNING):
        assert load(path, SETTING) is None
    assert "set aside" in caplog.text
    assert not path.exists()
    assert path.with_name("cost.json.damaged").exists()


def test_rising_is_the_nearest_rising_sequence() -> None:
    rng = random.Random(1)
    for _ in range(200):
        values, weights = [rng.random() for _ in range(4)], [rng.random() + 0.1 for _ in range(4)]
        found = rising(values, weights)
        assert found == sorted(found)
        loss = sum(w * (f - v) ** 2 for f, v, w in zip(found, values, weights, strict=True))
        for other in product([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], repeat=4):
            if list(other) == sorted(other):
                assert loss <= sum(w * (o - v) ** 2 for o, v, w in zip(other, values, weights, strict=True)) + 1e-9


def test_calibration_finds_the_law_and_stays_monotone() -> None:
    rng, calibrator = random.Random(2), Calibrator()
    law = lambda score: score**2  # noqa: E731
    for _ in range(8000):
        score = rng.random()
        calibrator.observe("lm", score, rng.random() < law(score), "greedy")
    for kind in ("greedy", "all", "hot"):
        values = [calibrator.probability("lm", score / 100, kind) for score in range(101)]
        assert values == sorted(values)
        assert all(0.0 <= value <= 1.0 for value in values)
        assert sum(abs(value - law(at / 100)) for at, value in enumerate(values)) / 101 < 0.06
    assert calibrator.probability("other", 0.37) == pytest.approx(0.37, abs=0.01)


def test_kinds_of_sampling_differ_and_old_evidence_fades() -> None:
    calibrator = Calibrator()
    for _ in range(300):
        calibrator.observe("lm", 0.9, True, "greedy")
        calibrator.observe("lm", 0.9, False, "hot")
    assert calibrator.probability("lm", 0.9, "greedy") > 0.85
    assert calibrator.probability("lm", 0.9, "hot") < 0.2
    for _ in range(400):
        calibrator.observe("lm", 0.9, True, "hot")
    assert calibrator.probability("lm", 0.9, "hot") > 0.75


def test_estimates_lag_behind_by_a_few_outcomes_at_most() -> None:
    rng, calibrator = random.Random(3), Calibrator()
    for count in range(600):
        calibrator.observe("lm", rng.random(), rng.random() < 0.4, "greedy")
        if count % 7 == 0:
            at_once = Calibrator.from_json(calibrator.to_json())  # makes its curves of all that is known
            for score in (0.1, 0.5, 0.9):
                found = calibrator.probability("lm", score, "greedy")
                assert found == pytest.approx(at_once.probability("lm", score, "greedy"), abs=1e-9 if count < 30 else 0.06)


def test_the_reason_of_a_free_drafter_is_its_account() -> None:
    """What share of a bush of guesses is right is no reason for it: they cost nothing until they are verified."""
    controller = Controller(StepCosts(CostCurve.measured({1: 0.01, 8: 0.012})))
    round = Round(1, "greedy", 20, 1, 100, SpeculationParams())
    for _ in range(2):
        assert controller.open([round])
        assert controller.ask("suffix", False, [round]) == [True]
    assert controller.explain("suffix", 1).startswith("suffix: on, it has not cost more here than it may; asked in 2 of 2 rounds")


def test_what_two_drafters_guess_alike_is_believed_more() -> None:
    tree = DraftTree([1, 2, 3], [ROOT, 0, ROOT], [0.5, 0.8, 0.2], ["suffix"] * 3)
    tree.merge(DraftTree([3, 1, 4], [ROOT, ROOT, 1], [0.4, 0.25, 0.3], ["recycling"] * 3))
    assert (tree.tokens, tree.parents) == ([1, 2, 3, 4], [ROOT, 0, ROOT, 0])
    assert tree.scores == pytest.approx([1 - 0.5 * 0.75, 0.8, 1 - 0.8 * 0.6, 0.3])
    assert tree.drafters == ["suffix", "suffix", "recycling", "recycling"]  # the surer one's


def test_survivals_of_siblings_share_their_parent() -> None:
    tree = DraftTree([1, 2, 3], [ROOT, ROOT, 0], [0.9, 0.9, 0.5], ["a"] * 3)
    assert survivals(tree, tree.scores) == pytest.approx([0.5, 0.5, 0.25])


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("others", [0, 20])
def test_the_best_count_is_the_best_of_all(seed: int, others: int) -> None:
    rng = random.Random(seed)
    curve = CostCurve.measured({1: 1.0, rng.randrange(2, 6): 1 + rng.random(), 30: 3.0}, {1: 0.001, 8: 0.003}, 10)
    ranked = sorted(((rng.random(), rng.randrange(2), at) for at in range(12)), reverse=True)
    contexts, drafting = [rng.randrange(400), 50], rng.random()

    def rate(count: int) -> float:
        rows = [1 + sum(index == at for _, index, _ in ranked[:count]) for at in range(2)]
        cost = drafting + curve.step([*zip(rows, contexts, strict=True), (others, 0)]) - curve.step([(1, 0), (1, 0), (others, 0)])
        return (2 + sum(entry[0] for entry in ranked[:count])) / (cost + curve.step([(1, 0), (1, 0)]))

    def product_of_speeds(count: int) -> float:
        tokens = [1 + sum(entry[0] for entry in ranked[:count] if entry[1] == at) for at in range(2)]
        return tokens[0] * tokens[1] * (rate(count) / sum(tokens)) ** 2

    for chosen, worth in ((best_count, rate), (fairest_count, product_of_speeds)):
        count = chosen(ranked, len(contexts), seconds_by_count(ranked, contexts, 2 + others, drafting, curve, Line()))
        assert worth(count) == pytest.approx(max(map(worth, range(13)))), chosen


def test_guesses_for_a_few_do_not_delay_the_others() -> None:
    """One of eight repeats itself: verifying its chain makes more tokens a second in all, and seven answers slower by a third."""
    curve = CostCurve.measured({1: 1.0, 8: 1.2, 16: 1.6, 32: 2.4})
    ranked = [(0.97**depth, 0, depth) for depth in range(1, 9)]
    plain, contexts = curve.base(8), [0] * 8
    assert (8 + sum(entry[0] for entry in ranked)) / curve.base(16) > 8 / plain
    assert best_count(ranked, len(contexts), seconds_by_count(ranked, contexts, 8, 0.0, curve, Line())) == 8
    count = fairest_count(ranked, len(contexts), seconds_by_count(ranked, contexts, 8, 0.0, curve, Line()))
    assert 0 < curve.base(8 + count) / plain - 1 < 0.2
    alike = sorted(((0.9**depth, index, depth) for depth in range(1, 3) for index in range(8)), reverse=True)
    assert (
        fairest_count(alike, len(contexts), seconds_by_count(alike, contexts, 8, 0.0, curve, Line()))
        == best_count(alike, len(contexts), seconds_by_count(alike, contexts, 8, 0.0, curve, Line()))
        == 16
    )


def test_alone_the_fairest_is_the_fastest() -> None:
    rng = random.Random(1)
    for _ in range(50):
        curve = CostCurve.measured({1: 1.0, rng.randrange(2, 6): 1 + rng.random(), 30: 3.0})
        ranked = sorted(((rng.random(), 0, at) for at in range(12)), reverse=True)
        spent = rng.random()
        assert fairest_count(ranked, 1, seconds_by_count(ranked, [9], 1, spent, curve, Line())) == best_count(
            ranked, 1, seconds_by_count(ranked, [9], 1, spent, curve, Line())
        )


def test_a_guess_is_no_cheaper_because_a_prompt_is_read_in_the_same_step() -> None:
    """Fifty rows of a prompt make a step twenty times as long, and a row of it costs as much as any."""
    curve = CostCurve.measured({1: 1.0, 2: 1.4, 64: 26.2})
    ranked = [(0.9, 0, 0), (0.3, 0, 1), (0.1, 0, 2)]
    for chosen in (best_count, fairest_count):
        assert chosen(ranked, 1, seconds_by_count(ranked, [0], 1, 0.0, curve, Line())) == 1
        assert chosen(ranked, 1, seconds_by_count(ranked, [0], 51, 0.0, curve, Line())) == 1


@pytest.mark.parametrize("seed", range(100))
def test_floors_leave_out_only_what_is_never_verified(seed: int) -> None:
    """Nodes behind the first that survives less often than its floor: with them and without, the best choice is the same."""
    rng = random.Random(seed)
    curve = CostCurve.measured({1: 1.0, **{rows: 1 + rng.random() * rows / 4 for rows in rng.sample(range(2, 20), 4)}})
    sequences = rng.choice((1, 1, 3))
    costs = StepCosts(curve)
    costs.open([0] * sequences)
    floors = [floor / DOUBT for floor in costs.floors(12)]
    ranked = sorted(((rng.random() ** 2, 0, at) for at in range(12)), reverse=True)
    proposed = next((at for at, entry in enumerate(ranked) if entry[0] < floors[at]), 12)
    for chosen in (best_count, fairest_count):
        every = chosen(ranked, sequences, seconds_by_count(ranked, [0] * sequences, sequences, 0.0, curve, Line()))
        assert (
            chosen(
                ranked[:proposed],
                sequences,
                seconds_by_count(ranked[:proposed], [0] * sequences, sequences, 0.0, curve, Line()),
            )
            == every
        )


def test_floors_follow_a_curve_that_changes() -> None:
    costs = StepCosts(CostCurve.measured({1: 1.0, 2: 1.1, 8: 1.7}))
    costs.open([0])
    assert costs.floors(4) == pytest.approx([0.1 * DOUBT] * 4)
    costs.curve = CostCurve.measured({1: 1.0, 2: 1.5, 8: 4.5})
    for _ in range(200):
        costs.open([0])
    assert costs.floors(4) == pytest.approx([0.5 * DOUBT] * 4)
    assert StepCosts(CostCurve()).floors(4) == []


def test_reading_a_long_text_is_not_judged_by_short_ones() -> None:
    costs = StepCosts(measure(truth, 4096), {"model": measure(truth, 4096)})
    costs.open([100])
    long = 3000 * truth(64, 1500) / 64
    assert costs.reading("model", 3000) == pytest.approx(long, rel=0.03), "nothing was read yet: as the curve says"
    costs.charge("model", None, None, 100 * truth(64, 50) / 64, 100, 1)
    assert costs.reading("model", 3000) == pytest.approx(long, rel=0.03)
    for _ in range(9):  # slower than the curve: believed, too
        costs.charge("model", None, None, 2 * long, 3000, 1)
    assert costs.reading("model", 3000) > 1.8 * long


def test_expected_tokens() -> None:
    assert 1 + rules.expected_tokens(4, 0.8) == pytest.approx(3.3616)
    assert 1 + rules.expected_tokens(3, 0.6) == pytest.approx(2.176)
    assert rules.expected_tokens(5, 1.0) == 5.0


def test_best_depth_is_the_enumerated_optimum() -> None:
    depth = rules.best_depth(0.8, lambda k: 1.0 + 0.1 * k)
    rates = [(1 + rules.expected_tokens(k, 0.8)) / (1 + 0.1 * k) for k in range(25)]
    assert rates[depth] == max(rates)
    assert rules.best_depth(0.0, lambda k: 1.0 + 0.1 * k) == 0
    assert depth > rules.best_depth(0.8, lambda k: 1.0 + 0.4 * k)


@pytest.mark.parametrize("breadth", [1.0, 2.5])
@pytest.mark.parametrize("others", [0, 3])
def test_the_best_group_is_the_enumerated_optimum(others: int, breadth: float) -> None:
    """``others`` step along and are not asked about: what drafting costs delays their tokens too. A draft stands in the place of
    what was offered, rows and all."""
    acceptances, plain = [0.9, 0.8, 0.5, 0.1], 1.0
    offered = [Offer(), Offer(0.3, 2), Offer(), Offer(2.0, 3)]
    whole = sum(offered, Offer(float(others + len(offered)), 5))

    def passes(members: int) -> tuple[float, float]:
        further = 0.05 + 0.01 * members
        return 0.02 + further, further

    def rows(more: int) -> float:
        return 0.004 * more + 0.001 * more**2

    def drafting(members: int, depth: int) -> float:
        first, further = passes(members)
        return first + (depth - 1) * further

    def rate(members: int, depth: int) -> float:
        tokens, verified = whole.tokens, whole.rows
        for at in range(members):
            if (expected := rules.expected_tokens(depth, acceptances[at])) > offered[at].tokens:
                tokens, verified = tokens + expected - offered[at].tokens, verified + round(depth * breadth) - offered[at].rows
        return tokens / (plain + (drafting(members, depth) if depth else 0.0) + rows(verified))

    def product_of_speeds(members: int, depth: int) -> float:
        tokens, verified, speeds = 0.0, whole.rows, 1.0
        for at in range(4):
            expected = rules.expected_tokens(depth, acceptances[at]) if at < members else 0.0
            tokens = max(expected, offered[at].tokens)
            speeds *= 1 + tokens
            verified += round(depth * breadth) - offered[at].rows if expected > offered[at].tokens else 0
        return speeds / (plain + (drafting(members, depth) if depth else 0.0) + rows(verified)) ** (4 + others)

    best = max(product(range(1, 5), range(1, 9)), key=lambda pair: product_of_speeds(*pair))
    members, depth, gain = rules.best_group(acceptances, offered, whole, 4 + others, plain, passes, rows, 8, breadth)
    assert (members, depth) == best
    assert 0 < members < 4
    assert depth > 1 or others or breadth > 1.0  # whoever is not asked about is delayed, too
    assert gain == pytest.approx(rate(*best) / rate(0, 0))
    dear = rules.best_group(acceptances, offered, whole, 4 + others, plain, lambda members: (9.0, 0.0), rows, 8, breadth)
    assert dear == (0, 0, 1.0)


def test_a_level_of_several_guesses_is_expected_to_take_their_rows() -> None:
    """What is learnt of a model counts its siblings' hits, so it must count their rows as well."""
    controller = Controller(StepCosts(CostCurve.measured({1: 0.050, 2: 0.051, 16: 0.065}), {"lm": CostCurve.measured({1: 0.001})}))
    controller.open([Round(0, "greedy", 40, 20, 100, SpeculationParams())])
    standing = controller.standing("lm", "greedy")
    for breadth, right, asked in ((1, 6, True), (3, 6, False), (3, 10, True)):
        for number in range(60):
            round = Round(number, "greedy", 40, 20, 100, SpeculationParams())
            chain = [round.tree.add(ROOT, token, 0.1, "lm") for token in range(breadth)]
            round.claim("lm")
            round.keep(set(chain))
            round.levels["lm"] = 1
            controller.observe(round, [0] if number % 100 < right else [])
        standing.evidence = Evidence(right, 100.0)
        assert standing.breadth.value == pytest.approx(breadth, rel=0.05)
        new = [Round(1000 + breadth + right, "greedy", 40, 20, 100, SpeculationParams())]
        _, depth, _ = controller._best_group("lm", new, [right / 100], [Offer()], Offer(1.0))
        assert (depth > 0) == asked, (breadth, right)


def test_an_offer_is_what_would_be_verified() -> None:
    """Tokens behind rows that are not worth their price are no reason to leave a draft model unasked."""
    curve = CostCurve.measured({1: 1.0, 2: 1.1, 3: 1.2, 4: 2.0, 8: 6.0})
    ranked = [(0.9, 1, 0), (0.8, 0, 0), (0.5, 1, 1), (0.4, 0, 1), (0.3, 1, 2)]
    alone = [(value, 0, node) for node, (value, _, _) in enumerate(ranked)]
    assert offers(alone, [0], curve, Line()) == [Offer(0.9 + 0.8, 2)]
    assert offers(ranked, [0, 0], curve, Line()) == [Offer(), Offer(0.9, 1)]
    assert offers([], [0, 0], curve, Line()) == [Offer(), Offer()]


@pytest.mark.parametrize(("row", "begins"), [(0.001, True), (0.06, False)])
def test_nothing_is_read_that_delays_those_whose_prompts_are_read(row: float, begins: bool) -> None:
    """One sequence decodes and fifteen are still being read: a level for one costs all sixteen. Once they have joined a level is
    for all, and their rows leave a draft model something to win, or they do not."""
    curve = CostCurve.measured({1: 0.1, 4: 0.103, 64: 0.103 + 60 * row})

    def asked(decoding: int, joining: int) -> list[bool]:
        controller = Controller(StepCosts(curve, {"lm": CostCurve.measured({1: 0.01, 64: 0.02})}))
        rounds = [Round(name, "greedy", 40, 20, 100, SpeculationParams()) for name in range(decoding)]
        controller.open(rounds, joining=joining, pure=not joining)
        return controller.ask("lm", True, rounds)

    assert asked(1, 0) == asked(1, 1) == [True]
    assert asked(1, 15) == [False]
    assert any(asked(16, 0)) == begins


def test_those_whose_prompts_are_read_count_as_company() -> None:
    """A guess for one of sixteen is no better a bargain while the fifteen others are being read than once they decode."""
    curve = CostCurve.measured({1: 0.1, 16: 0.115, 512: 1.1})
    tree = DraftTree([7, 8], [-1, 0], [0.3, 0.5], ["text"] * 2)

    def verified(decoding: int, joining: int, rows: int) -> int:
        controller = Controller(StepCosts(curve))
        rounds = [Round(name, "greedy", 100, 1, 100, SpeculationParams()) for name in range(decoding)]
        controller.open(rounds, joining=joining, pure=not joining)
        rounds[0].bid("text", tree)
        controller.select(rounds, rows, 0.0, 100, 100)
        return sum(len(round.verified) for round in rounds)

    assert verified(1, 0, 1) == 2
    assert verified(16, 0, 16) == verified(1, 15, 129) == 0
    assert verified(1, 1, 129) == 2


def test_a_token_is_worth_what_it_takes_in_the_company_to_come() -> None:
    costs = StepCosts(CostCurve.measured({1: 0.1, 16: 0.16}))
    costs.open([40, 60], joining=14)
    assert costs.plain == pytest.approx(costs.plain_seconds(16))
    assert costs.unit == pytest.approx(costs.plain / 16)
    costs.open([40, 60])
    assert costs.unit == pytest.approx(costs.plain_seconds(2) / 2)


@pytest.mark.parametrize(("kind", "steps"), [("greedy", 3.0), ("warm", 3.0), ("hot", 1.5)])
def test_hot_sampling_begins_with_half_the_credit(kind: str, steps: float) -> None:
    controller = Controller(StepCosts(CostCurve.measured({1: 0.1, 8: 0.15})))
    controller.costs.open([0])
    standing = controller._opened("text", Round(1, kind, 10, 1, 100, SpeculationParams()), paid=False)
    assert standing.balance == pytest.approx(steps * controller.costs.unit)


def test_savings_are_passed_on_once_losses_are_made_good() -> None:
    savings = Savings()
    parts = [savings.passed_on(saved) for saved in (-1.0, 0.5, 2.5, -1.0, 0.5, 1.0)]
    assert parts == pytest.approx([0.0, 0.0, PASSED_ON * 2.0, 0.0, 0.0, PASSED_ON * 0.5])


def test_the_entropy_threshold_moves_as_in_the_paper() -> None:
    threshold = rules.EntropyThreshold(0.5, 0.85, 0.85, 4)
    seen = []
    for accepted, drafted in ((4, 4), (1, 4), (4, 4), (3, 3)):
        threshold.observe(accepted, drafted)
        seen.append((round(threshold.accepted, 6), round(threshold.threshold, 3)))
    assert seen == [(0.925, 0.5), (0.5875, 0.501), (0.79375, 0.502), (0.896875, 0.501)]
    assert rules.entropy_limit(0.5) == pytest.approx(1.25)


@pytest.mark.parametrize("tokens", [2, 5, 40])
def test_the_entropy_limit_is_where_drafters_see_the_threshold_too(tokens: int) -> None:
    (bound,) = chances_of_draws(Law(np.arange(tokens), np.full(tokens, 1 / tokens)), 1)
    assert rules.entropy_limit(bound) == pytest.approx(math.log(tokens))


def test_chain_of() -> None:
    tree = DraftTree([1, 2, 3, 4], [ROOT, ROOT, 1, 2], [0.3, 0.6, 0.9, 0.1], ["a"] * 4)
    assert rules.chain_of(tree, 2) == {1, 2}
    assert rules.chain_of(tree, 9) == {1, 2, 3}


@pytest.mark.parametrize("wrong", ["", "fixed", "fixed(0)", "fixed(25)", "fixed(-1)", "fixed(k)", "best", None, 3])
def test_wrong_settings_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="control must be one of"):
        parse_control(wrong)


def test_settings() -> None:
    assert [parse_control(text) for text in ("auto", "fixed(7)", "goodput")] == [("auto", 0), ("fixed", 7), ("goodput", 0)]
    with pytest.raises(ConfigError, match="control"):
        EngineConfig(control="quick")
    for kind in (
        {"device": 0},
        {"model": None},
        {"draft": ["suffix"]},
        {"draft_model": 3},
        {"prefix_cache": "yes"},
        {"explain": 1},
    ):
        with pytest.raises(ConfigError, match=rf"^{next(iter(kind))} must be .*\.$"):
            EngineConfig(**kind)  # type: ignore[arg-type]
    for wrong in ({"mode": "maybe"}, {"nodes": -1}, {"nodes": True}, {"nodes": 10**6}):
        with pytest.raises(InvalidRequest):
            SpeculationParams(**wrong)


def test_a_standing_in_the_red_is_bounded_by_its_credit() -> None:
    standing = Standing()
    for _ in range(1000):
        standing.book(1.0, 0.1)
    assert standing.balance == pytest.approx(2.4)


def test_when_a_drafter_is_tried_again_is_said_as_it_is() -> None:
    own, standing = Own(interval=3), Standing(balance=-1.0)
    told = []
    for _ in range(4):
        own.probe(standing, own.probe_due(), "it lost", 1.0)
        told.append(own.why.removeprefix("it lost; it is tried again"))
    assert told == [" in 2 rounds", " in 1 round", " when it has earned that", " when it has earned that"]
    standing.balance = 1.0
    own.probe(standing, own.probe_due(), "it lost", 1.0)
    assert (own.on, own.why, standing.reserved) == (True, "it lost; it is tried again", 1.0)


def test_a_probe_goes_on_until_there_is_something_to_guess() -> None:
    own, standing = Own(), Standing()
    own.off = own.interval
    for _ in range(3):
        own.probing = True
        own.reserve(0.1, standing)
        own.release()
        own.settle(-0.001, tried=False)
        assert own.probe_due()
    own.probing, before = True, own.interval
    own.settle(-0.5)
    assert own.interval == 2 * before
    assert not own.probe_due()
    assert standing.reserved == pytest.approx(0.0)


def learnt() -> Controller:
    controller = Controller(StepCosts(CostCurve()))
    for score in (0.1, 0.5, 0.97):
        controller.calibrator.observe("lm", score, score > 0.3, "warm")
    controller.standing("lm", "warm").book(-0.3, 0.05)
    controller.standing("lm", "warm").evidence.observe(2, 3, 0.99)
    return controller


def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    memory, again = Memory(tmp_path / "sub" / "pair.json"), Controller(StepCosts(CostCurve()))
    assert not memory.load(again)
    memory.save(learnt())
    assert memory.load(again)
    assert again.calibrator.to_json() == learnt().calibrator.to_json()
    assert again.standings == learnt().standings


def test_damaged_memories_never_stop_anything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every prefix, and every value replaced by nonsense."""
    path = tmp_path / "pair.json"
    memory = Memory(path)
    memory.save(learnt())
    whole = path.read_text()
    content = json.loads(whole)
    damaged = [whole[:length] for length in range(0, len(whole), 37)] + ["[" * 100_000, "[]", "\x00", "nul"]
    for name, nonsense in product(content, (None, -1, "x", [], [[1]], {"a": 1}, {"lm/warm": [1, 2]}, float("nan"), 10**400)):
        damaged.append(json.dumps(content | {name: nonsense}))
    for text in damaged:
        path.write_text(text)
        controller = Controller(StepCosts(CostCurve()))
        memory.load(controller)
        assert 0.0 <= controller.calibrator.probability("lm", 0.5, "warm") <= 1.0
        memory.save(learnt())
    assert "set aside" in caplog.text


def test_a_disk_that_refuses_is_told_once_a_folder_with_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    for number in range(3):
        store.write(tmp_path / "file" / f"{number}.json", {})
    assert len(caplog.records) == 1
    assert "HASTEN_HOME" in caplog.text
    (tmp_path / "other").write_text("in the way")
    store.write(tmp_path / "other" / "a.json", {})
    assert len(caplog.records) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "other"]


def test_file_names_stay_in_their_folder() -> None:
    assert "/" not in store.file_name("../../etc", "a b/c")


def test_less_is_spent_on_trying_in_company_and_on_hot_sampling() -> None:
    assert accounts.exploration("greedy", 1) == accounts.EXPLORATION
    assert accounts.exploration("hot", 1) == accounts.EXPLORATION / 2
    assert accounts.exploration("greedy", 16) == accounts.EXPLORATION / 4


def test_a_model_begins_with_less_credit_in_company() -> None:
    """Its guesses for many sequences show in one step what those for one show in many; others begin with little as it is."""
    assert accounts.start_steps(True, "greedy", 1) == accounts.START_STEPS
    assert accounts.start_steps(True, "hot", 1) == accounts.START_STEPS / 2
    assert accounts.start_steps(True, "greedy", 9) == accounts.START_STEPS / 3
    assert accounts.start_steps(True, "greedy", 100) == accounts.start_steps(False, "greedy", 100) == accounts.FREE_START_STEPS
    controller = Controller(StepCosts(CostCurve.measured({1: 0.1, 16: 0.2})))
    for company, share in ((1, 1.0), (9, 1 / 3)):
        rounds = [Round(at, "greedy", 100, 10, 100, SpeculationParams()) for at in range(company)]
        controller.open(rounds)
        standing = controller._opened("lm", rounds[0], paid=True)
        assert standing.balance == pytest.approx(share * accounts.START_STEPS * controller.costs.unit)
