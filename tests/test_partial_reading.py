"""A draft model that reads only the end of a long text: what it then guesses, what it is charged, and when it does so."""

from __future__ import annotations

import random

import pytest

from hasten.control.cost import CostCurve
from hasten.control.step_costs import LEAST_READ, READING_SHARE, StepCosts
from hasten.core.types import BLOCK_SIZE, Batch, SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from test_cascade import Counted, text_of
from test_control_never_slower import always, never, run
from test_foreign import foreign
from tiny import VOCABULARY

GREEDY = SamplingParams()
LONG = 3 * BLOCK_SIZE + 7


def budget(reads: int) -> DraftBudget:
    return DraftBudget(8, 4, reads=reads)


@pytest.mark.parametrize("reads", [1, 5, BLOCK_SIZE, BLOCK_SIZE + 1, LONG, 10 * LONG])
def test_it_guesses_what_it_would_for_the_end_alone(reads: int) -> None:
    long, end = text_of(3, GREEDY, LONG), text_of(3, GREEDY, LONG)
    end.tokens = end.tokens[-reads:]
    trees = []
    for text, limit in ((long, reads), (end, 10 * LONG)):
        drafter = Counted()
        drafter.begin(text)
        seen = []
        for number in range(4):
            (tree,) = drafter.propose([text], [budget(limit)])
            seen.append((tree.tokens, tree.parents))
            text.tokens += [*tree.tokens[:1], number]
        trees.append(seen)
    assert trees[0] == trees[1]


def test_what_it_passed_over_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text, drafter = text_of(3, GREEDY, LONG), Counted()
    batches: list[Batch] = []
    forward = drafter._forward
    monkeypatch.setattr(drafter, "_forward", lambda batch: (batches.append(batch), forward(batch))[1])
    drafter.begin(text)
    for reads in (9, 10 * LONG, 2):  # only what the first round says counts
        drafter.propose([text], [budget(reads)])
        text.tokens.append(1)
    assert batches[0].segments[0].chain == text.tokens[LONG - 9 : LONG]
    assert batches[0].segments[0].context == 0
    assert sum(len(batch.segments[0].chain) for batch in batches) < 9 + 3 * 5
    drafter.end(text)
    drafter.begin(text)
    drafter.propose([text], [budget(10 * LONG)])
    assert drafter._states[text.id].fed[: len(text.tokens)] == text.tokens, "a new request of the same text reads it all"


@pytest.mark.parametrize("seed", range(4))
def test_another_vocabulary_reads_on_where_the_text_was_read_anew(seed: int) -> None:
    """A text's last letters may be read as other tokens once more of them are there."""
    rng = random.Random(seed)
    drafter = foreign("strings")
    text = Sequence(0, "r", GREEDY, 0, [rng.randrange(VOCABULARY) for _ in range(60)], 60, 400)
    drafter.begin(text)
    for _ in range(12):
        drafter.propose([text], [budget(rng.choice((1, 7, 20)))])
        state = drafter._states[0]
        read = drafter._readings[0].tokens[state.skipped :]
        assert state.fed[: len(read)] == read
        text.tokens += [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 4))]


def test_reading_takes_a_small_share_of_the_answer() -> None:
    costs = StepCosts(CostCurve.measured({1: 1.0, 64: 2.0}), {"model": CostCurve.measured({1: 0.25, 64: 6.4})})
    costs.open([1000])
    whole = costs.reading("model", 1000)
    assert costs.worth_reading("model", 1000, whole / READING_SHARE) == 1000
    half = costs.worth_reading("model", 1000, whole / READING_SHARE / 2)
    assert half == pytest.approx(500, abs=1)
    assert costs.reading("model", half) <= 1.01 * READING_SHARE * (whole / READING_SHARE / 2)
    assert costs.worth_reading("model", 1000, 0.0) == LEAST_READ
    assert costs.worth_reading("model", LEAST_READ - 1, 0.0) == LEAST_READ - 1
    assert StepCosts(CostCurve()).worth_reading("model", 1000, 0.0) == 1000, "what is not measured costs nothing"


def test_a_long_prompt_with_a_short_answer_gains_by_a_draft_model() -> None:
    """Reading all of it costs 20 plain steps of 64, and its guesses save more than half of them."""
    _, simulated = run(always, never, "flat", 1, 3000, prompt=1000, length=64)
    assert simulated.run(3000) < 0.75
