"""The trie against counting by brute force: chances, bounds, and who sees whose counts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import ConfigError
from hasten.core.types import DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.trie import LONGEST_BRANCH, NOVELTY, BranchCounts, TrieDrafter, chances_after
from tiny import naive_text, run_all, tiny_engine

GENEROUS = DraftBudget(nodes=24, depth=12)
texts = st.lists(st.integers(0, 4), max_size=40)


def counted(*tokens: list[int]) -> BranchCounts:
    counts = BranchCounts()
    for text in tokens:
        counts.add(text)
    return counts


def brute_counts(tokens: list[int], branch: tuple[int, ...]) -> Counter[int]:
    width = len(branch)
    return Counter(tokens[at] for at in range(width, len(tokens)) if tuple(tokens[at - width : at]) == branch)


def brute_chances(several: list[list[int]], branch: tuple[int, ...]) -> dict[int, Fraction]:
    """Top down, where the drafter goes bottom up."""
    if not branch:
        return {}
    counts = sum((brute_counts(tokens, branch) for tokens in several), Counter())
    if not counts:
        return brute_chances(several, branch[1:])
    shorter = brute_chances(several, branch[1:])
    novelty = Fraction(NOVELTY) * len(counts)
    total = sum(counts.values()) + novelty
    return {t: (counts[t] + novelty * shorter.get(t, Fraction(0))) / total for t in {*counts, *shorter}}


@settings(max_examples=150, deadline=None)
@given(texts, st.integers(0, 40))
def test_counts_are_those_of_brute_force_however_the_text_came(tokens: list[int], cut: int) -> None:
    counts = BranchCounts()
    counts.add(tokens[:cut])
    counts.add(tokens, min(cut, len(tokens)))
    pairs = 0
    for length in range(1, LONGEST_BRANCH + 1):
        for branch in {tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1)}:
            expected = brute_counts(tokens, branch)
            assert counts.after(branch) == expected
            pairs += len(expected)
    assert counts.size == pairs


@settings(max_examples=150, deadline=None)
@given(texts, texts, st.lists(st.integers(0, 5), max_size=LONGEST_BRANCH))
def test_chances_are_those_of_brute_force(one: list[int], other: list[int], branch: list[int]) -> None:
    expected = brute_chances([one, other], tuple(branch))
    found = chances_after([counted(one), counted(other)], tuple(branch))
    assert found == pytest.approx({token: float(chance) for token, chance in expected.items()})
    assert sum(found.values()) < 1.0 or not found


def test_squeezing_keeps_the_frequent_and_always_ends() -> None:
    rng = random.Random(1)
    counts = counted([1, 2, 3, 4] * 50, [rng.randrange(1000) for _ in range(2000)])
    before = counts.size
    counts.squeeze(before)
    assert counts.size == before, "nothing to do"
    counts.squeeze(100)
    assert 0 < counts.size <= 100
    assert max(counts.after((1, 2, 3)).items(), key=lambda item: item[1])[0] == 4
    counted_again = sum(len(counts.after(branch)) for branch in list(counts._followers))
    assert counted_again == counts.size
    counts.squeeze(0)
    assert counts.size == 0
    assert counts.after((1,)) == {}
    counts.add([1, 2, 3])
    assert counts.after((1, 2)) == {3: 1}


def sequence_of(tokens: list[int], number: int = 0, tenant: str = "") -> Sequence:
    return Sequence(number, "request", SamplingParams(), 0, list(tokens), len(tokens), length_limit=4096, tenant=tenant)


def answered(drafter: TrieDrafter, prompt: list[int], answer: list[int], tenant: str = "", number: int = 0) -> None:
    sequence = sequence_of(prompt, number, tenant)
    drafter.begin(sequence)
    sequence.tokens.extend(answer)
    drafter.end(sequence)


def guess(drafter: TrieDrafter, prompt: list[int], tenant: str = "", number: int = 77) -> DraftTree:
    sequence = sequence_of(prompt, number, tenant)
    drafter.begin(sequence)
    tree = drafter.propose([sequence], [GENEROUS])[0]
    drafter.end(sequence)
    return tree


def test_answers_are_remembered_prompts_are_not_and_tenants_are_strangers() -> None:
    drafter = TrieDrafter()
    for _ in range(6):
        answered(drafter, [90, 91, 92], [10, 11, 12, 13, 14], tenant="a")
    assert guess(drafter, [10], tenant="a").tokens[:4] == [11, 12, 13, 14]
    assert guess(drafter, [92], tenant="a").tokens[:3] == [10, 11, 12], "an answer's first token follows its prompt's last ones"
    assert len(guess(drafter, [90], tenant="a")) == 0, "what follows inside a prompt is its own request's"
    for tenant in ("b", ""):
        assert len(guess(drafter, [10], tenant=tenant)) == 0
        assert guess(drafter, [10, 5, 10], tenant=tenant) == guess(TrieDrafter(), [10, 5, 10], tenant=tenant)


def test_requests_side_by_side_do_not_change_each_other() -> None:
    drafter, alone = TrieDrafter(), TrieDrafter()
    one, other = sequence_of([1, 2, 3, 1, 2], 0), sequence_of([1, 2, 9, 1, 2, 9, 1], 1)
    drafter.begin(other)
    for each in (drafter, alone):
        each.begin(one)
    other.tokens.extend([2, 9, 1, 2, 9])
    drafter.propose([other], [GENEROUS])
    assert drafter.propose([one], [GENEROUS]) == alone.propose([one], [GENEROUS])


def test_stores_are_bounded() -> None:
    drafter, rng = TrieDrafter(most_counts=500, most_tenants=3), random.Random(2)
    for number in range(300):
        answered(drafter, [1, 2], [rng.randrange(50) for _ in range(30)], tenant=f"tenant {number % 3}", number=number)
        assert len(drafter._tenants) <= 3
        assert all(counts.size <= 500 for counts in drafter._tenants.values())
    assert all(counts.size > 0 for counts in drafter._tenants.values())
    for number in range(5):
        answered(drafter, [1], [2], tenant=f"another {number}")
        assert len(drafter._tenants) == 3
    assert (drafter._own, drafter._counted) == ({}, {})


@pytest.mark.parametrize("arguments", [{"most_counts": 0}, {"most_counts": False}, {"most_tenants": 0}, {"most_counts": 2.0}])
def test_bad_parameters_are_named(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(arguments))} of the trie drafter must be a whole number from 1 to"):
        TrieDrafter(**arguments)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_stays_and_a_second_request_is_shorter(temperature: float) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=temperature, seed=3)
    prompt = [5, 6, 7, 8] * 3
    expected = naive_text("llama", tuple(prompt), replace(params, seed=3))
    engine = tiny_engine("llama", [TrieDrafter()])
    rounds = []
    for tenant in ("a", "a", "b"):
        request = engine.submit(list(prompt), params, tenant=tenant)
        assert run_all(engine, [request]) == [expected]
        rounds.append(request.speculation.rounds)
    assert rounds[1] < rounds[0] == rounds[2]
