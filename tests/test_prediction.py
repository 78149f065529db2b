"""Drafting along an expected text: faithful answers, changed ones, and predictions that are all wrong."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import InvalidRequest
from hasten.core.types import ROOT, SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.matches import LONGEST_MATCH
from hasten.draft.prediction import Follower, PredictionDrafter
from tiny import VOCABULARY, naive_text, run_all, tiny_engine

GENEROUS = DraftBudget(nodes=24, depth=12)
PROMPT = [900, 901]
CHANGES = {"replace": (1, 1), "insert": (0, 2), "insert much": (0, 20), "delete": (3, 0), "delete much": (45, 0)}  # tokens out, in


def rounds_of(prediction: list[int], answer: list[int], budget: DraftBudget = GENEROUS) -> int:
    """Rounds that the answer takes after its first token, with perfect verification."""
    drafter = PredictionDrafter()
    sequence = Sequence(0, "request", SamplingParams(), 0, [*PROMPT, answer[0]], len(PROMPT), 10_000, prediction=prediction)
    drafter.begin(sequence)
    rounds = 0
    while sequence.output_length < len(answer):
        tree = drafter.propose([sequence], [budget])[0]
        assert len(tree) <= budget.nodes
        assert all(depth <= budget.depth for depth in tree.depths())
        node, rest = ROOT, answer[sequence.output_length :]
        emitted = 0
        while emitted < len(rest):
            token, emitted = rest[emitted], emitted + 1
            sequence.tokens.append(token)
            found = tree.child(node, token)
            if found is None:
                break
            node = found
        rounds += 1
    drafter.end(sequence)
    assert not drafter._followers
    return rounds


def distinct_text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).sample(range(800), length)


def code_like_text(lines: int, seed: int = 0) -> list[int]:
    """Lines that begin and end alike: token 1 begins, 2 ends a line, few words."""
    rng = random.Random(seed)
    return [token for _ in range(lines) for token in (1, *rng.choices(range(10, 40), k=6), 3, 4, 2)]


@pytest.mark.parametrize("text", [distinct_text(130), code_like_text(13)], ids=["distinct", "code"])
def test_a_faithful_answer_takes_one_round_a_depth(text: list[int]) -> None:
    assert rounds_of(text, text) <= len(text) // (GENEROUS.depth + 1) + 3


@pytest.mark.parametrize("text", [distinct_text(200), code_like_text(20)], ids=["distinct", "code"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_costs_a_few_rounds(text: list[int], change: str) -> None:
    faithful = rounds_of(text, text)
    for at in (1, 40, 97, 150):
        new = list(text)
        removed, added = CHANGES[change]
        new[at : at + removed] = range(800, 800 + added)
        assert rounds_of(text, new) <= faithful + 5 + added, f"{change} at {at}"


def test_the_expected_place_follows_the_answer() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2, 9, 10, 11, 1, 2, 13, 14, 15, 16, 1, 2]
    for answer, expected in (
        ([], 0),
        ([1, 2, 3], 3),
        ([1, 2, 3, 99], 4),  # replaced
        ([1, 2, 3, 98, 99], 5),
        ([1, 2, 3, 99, 4, 5], 5),  # inserted
        ([1, 2, 3, 7], 4),  # one token is not enough to be sure
        ([1, 2, 3, 7, 1], 8),  # left out
        ([1, 2, 3, 4, 99, 1, 2], 9),  # the nearest of equals
        ([1, 2, 3, 4, 99, 11, 1, 2], 14),  # the longest match, though another is nearer
    ):
        follower = Follower(text)
        follower.extend(answer)
        assert follower.expected == expected, answer


def test_many_changes_are_still_worth_it() -> None:
    text = code_like_text(30, seed=4)
    renamed = [777 if token == 17 else token for token in text]
    assert renamed.count(777) > 3
    assert rounds_of(text, renamed) < len(text) / 3


def test_a_wrong_prediction_is_soon_not_believed() -> None:
    """Nothing agrees: from the second round on there is only the place that a replaced token would leave."""
    drafter = PredictionDrafter()
    sequence = Sequence(0, "r", SamplingParams(), 0, [*PROMPT, 850], len(PROMPT), 10_000, prediction=distinct_text(100))
    drafter.begin(sequence)
    for token in range(851, 900):
        tree = drafter.propose([sequence], [GENEROUS])[0]
        assert len(tree) == 0 or tree.scores[0] < 0.25
        sequence.tokens.append(token)


def test_scores_fall_with_doubt_and_rise_with_agreement() -> None:
    text = distinct_text(100)
    follower = Follower(text)

    def first() -> float:
        drafter = PredictionDrafter()
        drafter._followers[0] = follower
        sequence = Sequence(0, "r", SamplingParams(), 0, [*PROMPT, *follower._answer], len(PROMPT), 10_000, prediction=text)
        return drafter.propose([sequence], [DraftBudget(1, 1)])[0].scores[0]

    start = first()
    follower.extend(text[:30])
    agreed = first()
    follower.extend([999])
    lost = first()
    follower.extend(text[31:34])
    found = first()
    assert lost < 0.3 < found < agreed
    assert agreed > max(start, 0.9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_every_match_is_true_and_one_step_or_many_are_the_same(prediction: list[int], answer: list[int]) -> None:
    at_once, stepwise = Follower(prediction), Follower(prediction)
    at_once.extend(answer)
    for token in answer:
        stepwise.extend([token])
    assert at_once.matches() == stepwise.matches()
    for rank, (text, at, length, _) in enumerate(at_once.matches()):
        assert text == prediction
        assert 0 <= length <= LONGEST_MATCH
        if rank > 0:
            assert length > 0
            assert prediction[at - length : at] == answer[-length:]


def test_without_a_prediction_there_is_nothing() -> None:
    drafter = PredictionDrafter()
    sequence = Sequence(0, "r", SamplingParams(), 0, [1, 1, 1, 1], 2, 100)
    drafter.begin(sequence)
    assert len(drafter.propose([sequence], [GENEROUS])[0]) == 0
    sequence.prediction = [1, 2]
    drafter.begin(sequence)
    sequence.prediction = []
    drafter.begin(sequence)
    assert len(drafter.propose([sequence], [GENEROUS])[0]) == 0, "beginning again starts over"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_is_the_same_with_any_prediction(temperature: float) -> None:
    params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=temperature, seed=3)
    prompt = [5, 6, 7, 8] * 3
    expected = naive_text("llama", tuple(prompt), replace(params, seed=3))
    engine = tiny_engine("llama", [PredictionDrafter()])
    rounds = {}
    changed = [*expected[:20], 1, 2, *expected[22:]]
    predictions = {"none": None, "right": expected, "changed": changed, "wrong": [0, 1] * 30, "long": expected * 4}
    for name, prediction in predictions.items():
        request = engine.submit(list(prompt), params, prediction=prediction)
        assert run_all(engine, [request]) == [expected], name
        rounds[name] = request.speculation.rounds
    assert rounds["none"] == len(expected) - 1
    assert rounds["right"] == rounds["long"] <= 8
    assert rounds["changed"] < rounds["none"] / 2


def test_all_answers_of_a_request_follow_its_prediction() -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True, n=2)
    prompt = [5, 6, 7, 8]
    expected = naive_text("llama", tuple(prompt), SamplingParams(max_tokens=30, ignore_eos=True, seed=0))
    engine = tiny_engine("llama", [PredictionDrafter()])
    request = engine.submit(prompt, params, prediction=expected)
    run_all(engine, [request])
    assert [answer.sequence.output for answer in request.answers] == [expected, expected]
    assert request.speculation.accepted > 40


@pytest.mark.parametrize(
    ("prediction", "message"),
    [([VOCABULARY], "prediction holds token id"), ([-1], "prediction holds token id"), ([1] * 5000, "prediction has 5000 tokens")],
)
def test_a_bad_prediction_is_refused(prediction: list[int], message: str) -> None:
    engine = tiny_engine("llama")
    with pytest.raises(InvalidRequest, match=message):
        engine.submit([1, 2], SamplingParams(), prediction=prediction)
    assert engine.idle
