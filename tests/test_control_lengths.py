"""How long answers are expected to be, when a text is read for one, and what was spent on that until it has come back."""

from __future__ import annotations

import random
from collections import deque

import pytest

from hasten.control.accounts import Own, Standing
from hasten.control.lengths import BEFORE_ANY, MOST_READING, REMEMBERED, Lengths, why_not_read
from hasten.control.rounds import Round
from hasten.core.config import SpeculationParams

STEP = 0.05


def lengths_of(*values: float) -> Lengths:
    return Lengths(deque(values, REMEMBERED))


def round_at(generated: int, most: int = 1000) -> Round:
    return Round(1, "greedy", 500 + generated, generated, most, SpeculationParams())


def test_what_is_still_to_come_is_the_rest_of_those_that_were_longer() -> None:
    lengths = lengths_of(10, 20, 100, 300)
    assert lengths.left(1, 1000) == pytest.approx((9 + 19 + 99 + 299) / 4)
    assert lengths.left(20, 1000) == pytest.approx((80 + 280) / 2)
    assert lengths.left(20, 100) == pytest.approx((80 + 100) / 2)
    assert lengths.left(400, 1000) == 400  # longer than all: as much again
    assert lengths.left(400, 7) == 7


def test_the_first_answers_take_the_place_of_what_was_assumed() -> None:
    lengths = Lengths()
    assert lengths.left(0, 1000) == pytest.approx(sum(BEFORE_ANY) / len(BEFORE_ANY))
    for _ in range(REMEMBERED):
        lengths.observe(50.0)
    assert lengths.left(0, 1000) == 50.0


def paid_at(values: list[float], start: float, gain: float, price: float) -> float:
    """What all these answers gain together if those that come so far pay then."""
    return sum((value - start) * gain - price for value in values if value > start)


def test_it_is_paid_for_when_no_later_time_is_better() -> None:
    """Against every time there is, in steps of a quarter token."""
    rng = random.Random(4)
    begins = waits = 0
    for _ in range(300):
        values = [float(rng.choice([rng.randrange(5, 40), rng.randrange(100, 400)])) for _ in range(rng.randrange(1, 9))]
        so_far, gain, price = rng.randrange(1, 60), 0.3, rng.choice([2.0, 8.0, 25.0])
        longer = [value for value in values if value > so_far]
        if not longer:
            continue
        now = paid_at(longer, so_far, gain, price)
        later = max(paid_at(longer, so_far + wait / 4, gain, price) for wait in range(1, 1700))
        saved = lengths_of(*values).saved(so_far, 1000, gain, price)
        begins += saved > 0
        waits += now > 0 and saved == 0
        if abs(now - later) > 2 * gain * len(longer):  # nearer than that a quarter token may decide
            assert (saved > 0) == (now > max(0.0, later))
        if saved:
            assert saved == pytest.approx(now / len(longer))
    assert begins > 50
    assert waits > 20


def test_no_answer_pays_half_as_long_again() -> None:
    """Whatever is hoped for: reading that takes more than that has to wait until the answer is long enough."""
    lengths, reading, allowance = lengths_of(*[1000.0] * 8), 2.0, 0.1
    allowed = [at for at in range(1, 200) if not why_not_read(lengths, round_at(at), at, STEP, reading, allowance, 3.0)]
    assert allowed == [*range(allowed[0], 200)]
    assert reading <= allowance + MOST_READING * allowed[0] * STEP
    assert reading > allowance + MOST_READING * (allowed[0] - 1) * STEP
    assert "too much for an answer of 3 tokens" in why_not_read(lengths, round_at(3), 3, STEP, reading, allowance, 3.0)


def test_where_others_guess_most_there_is_little_to_gain() -> None:
    lengths = lengths_of(*[100.0] * 8)
    assert not why_not_read(lengths, round_at(20), 20, STEP, 0.6, 0.2, 1.5)
    assert "too few of which" not in why_not_read(lengths, round_at(20), 20, STEP, 0.6, 0.2, 1.5)
    assert "of which too few may follow" in why_not_read(lengths, round_at(20), 4, STEP, 0.6, 0.2, 1.5)


def test_kept_lengths_come_back() -> None:
    lengths = lengths_of(3, 40, 500)
    assert Lengths.from_json(lengths.to_json()) == lengths
    for damaged in ([], [0.5], ["x"], [1.0] * (REMEMBERED + 1), None, {}):
        with pytest.raises(ValueError, match=r"list|number|missing|between|from"):
            Lengths.from_json(damaged)


def opened(balance: float) -> tuple[Standing, Own]:
    standing, own = Standing(balance), Own(begun=True)
    own.tells = standing
    return standing, own


def test_reading_is_owed_until_it_has_come_back() -> None:
    standing, own = opened(0.2)
    standing.book(own.pay_back(-1.05, 1.0), STEP)  # the first round reads for a second and loses a step
    assert standing.balance == pytest.approx(0.15)
    assert standing.owed == own.owed == pytest.approx(1.0)
    standing.book(own.pay_back(0.4, 0.0), STEP)
    assert (standing.balance, own.owed) == (pytest.approx(0.15), pytest.approx(0.6))
    standing.book(own.pay_back(0.8, 0.0), STEP)
    assert (standing.balance, own.owed) == (pytest.approx(0.35), pytest.approx(0.0))
    own.close(STEP)
    assert (standing.balance, standing.owed) == (pytest.approx(0.35), pytest.approx(0.0))


def test_what_has_not_come_back_is_lost_in_the_end() -> None:
    """Whatever the rounds brought, the account has all of it when all requests are over."""
    rng = random.Random(9)
    standing, books = Standing(0.0), 0.0
    owns = [Own(begun=True, tells=standing) for _ in range(5)]
    for _ in range(40):
        own, reading, net = rng.choice(owns), rng.choice([0.0, 0.0, 0.02]), rng.uniform(-0.02, 0.015)
        books += net
        standing.book(own.pay_back(net, reading), STEP)
        assert standing.owed == pytest.approx(sum(each.owed for each in owns))
        assert (standing.balance or 0.0) - standing.owed == pytest.approx(books)
    for own in owns:
        own.close(STEP)
    assert standing.owed == pytest.approx(0.0)
    assert standing.balance == pytest.approx(books)
