"""The suffix drafter against brute force: matches, scores and trees, over small alphabets, loops and real-looking text."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.types import ROOT, DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft import suffix
from hasten.draft.base import DraftBudget
from hasten.draft.suffix import (
    DOUBT,
    ESCAPE,
    GRAM_LENGTHS,
    LEAST_SURVIVAL,
    LONGEST_MATCH,
    MOST_MATCHES,
    SuffixDrafter,
    SuffixMemory,
    grow,
)


def memory_of(tokens: list[int]) -> SuffixMemory:
    memory = SuffixMemory()
    memory.extend(tokens)
    return memory


def sequence_of(tokens: list[int], number: int = 0) -> Sequence:
    return Sequence(number, str(number), SamplingParams(), 0, list(tokens), len(tokens), length_limit=10**6)


def brute_length(tokens: list[int], end: int) -> int:
    """How many tokens up to ``end`` equal those up to the text's end."""
    last = len(tokens) - 1
    length = 0
    while length < LONGEST_MATCH and end - length >= 0 and tokens[end - length] == tokens[last - length]:
        length += 1
    return length


def brute_matches(tokens: list[int]) -> dict[int, int]:
    lengths = {end + 1: brute_length(tokens, end) for end in range(len(tokens) - 1)}
    return {at: length for at, length in lengths.items() if length}


@st.composite
def texts(draw: st.DrawFn, most: int = 300) -> list[int]:
    """Random, periodic and copying texts over 2 to 4 tokens, or 30."""
    randomness = random.Random(draw(st.integers(0, 2**32)))
    alphabet = draw(st.sampled_from([2, 3, 4, 30]))
    length = draw(st.integers(1, most))
    kind = draw(st.sampled_from(["random", "periodic", "copying"]))
    if kind == "random":
        return [randomness.randrange(alphabet) for _ in range(length)]
    if kind == "periodic":
        period = [randomness.randrange(alphabet) for _ in range(randomness.randint(1, 12))]
        noise = randomness.choice([0.0, 0.02])
        return [period[i % len(period)] if randomness.random() >= noise else 0 for i in range(length)]
    out = [randomness.randrange(alphabet) for _ in range(3)]
    while len(out) < length:
        start = randomness.randrange(len(out))
        out.extend(out[start : start + randomness.randint(1, 20)])
        out.append(randomness.randrange(alphabet))
    return out[:length]


def check_genuine(tokens: list[int], found: list[tuple[int, int]]) -> None:
    truth = brute_matches(tokens)
    places = [at for at, _ in found]
    assert places == sorted(set(places), reverse=True)
    assert all(truth.get(at) == length for at, length in found)


@settings(max_examples=300, deadline=None)
@given(texts())
def test_matches_against_brute_force(tokens: list[int]) -> None:
    found = memory_of(tokens).matches()
    check_genuine(tokens, found)
    truth = brute_matches(tokens)
    if not truth:
        assert found == []
        return
    longest = max(truth.values())
    gram = max(length for length in GRAM_LENGTHS if length <= longest)
    recent = sorted((at for at, length in truth.items() if length >= gram), reverse=True)[:MOST_MATCHES]
    assert set(recent) <= {at for at, _ in found}
    if any(truth[at] == longest for at in recent):
        assert max(length for _, length in found) == longest


@settings(max_examples=100, deadline=None)
@given(texts(60))
def test_colliding_hashes_never_make_a_false_match(tokens: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix, "hash", lambda _: 0, raising=False)
        check_genuine(tokens, memory_of(tokens).matches())


def brute_survivals(tokens: list[int], depth: int) -> dict[tuple[int, ...], float]:
    """Every continuation with its survival, by the rule in the module's words, recursively and without a heap."""
    out: dict[tuple[int, ...], float] = {}

    def follow(path: tuple[int, ...], places: list[int], survival: float) -> None:
        votes: dict[int, float] = {}
        for rank, end in enumerate(places):
            length = min(LONGEST_MATCH, brute_length(tokens, end) + len(path))
            token = tokens[end + 1 + len(path)]
            votes[token] = votes.get(token, 0.0) + length**2 / (1 + rank) ** 0.5
        for token, votes_of_token in votes.items():
            child = survival * votes_of_token / (ESCAPE + (1 + DOUBT) * sum(votes.values()))
            if child < LEAST_SURVIVAL:
                continue
            out[(*path, token)] = child
            if len(path) + 1 < depth:
                agree = [end for end in places if tokens[end + 1 + len(path)] == token and end + 2 + len(path) < len(tokens)]
                follow((*path, token), agree, child)

    if depth > 0:
        follow((), [at - 1 for at in sorted(brute_matches(tokens), reverse=True)], 1.0)
    return out


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    return [tuple(tree.tokens[step] for step in tree.path(node)) for node in range(len(tree))]


@settings(max_examples=300, deadline=None)
@given(texts(MOST_MATCHES), st.integers(0, 24), st.integers(0, 12))
def test_the_tree_is_the_likeliest_one(tokens: list[int], nodes: int, depth: int) -> None:
    tree = grow(memory_of(tokens), DraftBudget(nodes, depth))
    truth = brute_survivals(tokens, depth)
    best = sorted(truth.values(), reverse=True)[:nodes]
    assert sorted(tree.survivals(), reverse=True) == pytest.approx(best)
    assert [truth[path] for path in paths_of(tree)] == pytest.approx(tree.survivals())


@settings(max_examples=300, deadline=None)
@given(texts(), st.integers(0, 24), st.integers(0, 24))
def test_every_path_followed_the_texts_end_before(tokens: list[int], nodes: int, depth: int) -> None:
    tree = grow(memory_of(tokens), DraftBudget(nodes, depth))
    assert len(tree) <= nodes
    assert all(level <= depth for level in tree.depths())
    assert all(parent == ROOT or parent < node for node, parent in enumerate(tree.parents))
    assert len(set(zip(tree.parents, tree.tokens, strict=True))) == len(tree)  # equal siblings are one
    assert all(survival >= LEAST_SURVIVAL for survival in tree.survivals())
    for parent in {ROOT, *range(len(tree))}:
        shares = [score for score, above in zip(tree.scores, tree.parents, strict=True) if above == parent]
        assert 0.0 <= sum(shares) < 1.0
    for path in paths_of(tree):
        places = (at for at in brute_matches(tokens) if at + len(path) <= len(tokens))
        assert any(tuple(tokens[at : at + len(path)]) == path for at in places)


@settings(max_examples=150, deadline=None)
@given(texts(), st.data())
def test_growing_step_by_step_equals_starting_over(tokens: list[int], data: st.DataObject) -> None:
    drafter, budget = SuffixDrafter(), DraftBudget(nodes=16, depth=16)
    known = data.draw(st.integers(1, len(tokens)))
    sequence = sequence_of(tokens[:known])
    drafter.begin(sequence)
    while known < len(tokens):
        step = data.draw(st.integers(1, 40))
        sequence.tokens.extend(tokens[known : known + step])
        known += step
        tree = drafter.propose([sequence], [budget])[0]
        assert tree == grow(memory_of(sequence.tokens), DraftBudget(16, 16))


def test_a_long_match_gives_a_long_chain() -> None:
    text = list(range(100, 160))
    tree = grow(memory_of([*text, 1, 2, 3, *text[:20]]), DraftBudget(24, 24))
    assert tree.tokens == text[20:44]
    assert tree.parents == list(range(-1, 23))
    assert min(tree.scores) > 0.9
    assert tree.scores[-1] > tree.scores[0]  # the more has matched, the surer


def test_short_matches_that_disagree_give_a_small_bush() -> None:
    tree = grow(memory_of([7, 1, 20, 21, 7, 2, 22, 23, 7, 3, 24, 25, 7]), DraftBudget(24, 24))
    assert {tree.tokens[node] for node, parent in enumerate(tree.parents) if parent == ROOT} == {1, 2, 3}
    assert len(tree) < 12
    assert max(tree.scores[node] for node, parent in enumerate(tree.parents) if parent == ROOT) < 0.3


@pytest.mark.parametrize("tokens", [[], [5], [1, 2, 3, 4], list(range(1000))])
def test_no_match_gives_nothing(tokens: list[int]) -> None:
    assert len(grow(memory_of(tokens), DraftBudget(24, 24))) == 0


def test_of_equal_matches_the_latest_is_likelier() -> None:
    tree = grow(memory_of([1, 2, 3, 50, 9, 9, 1, 2, 3, 60, 8, 8, 1, 2, 3]), DraftBudget(2, 1))
    assert tree.tokens == [60, 50]


def test_a_longer_match_beats_a_later_one() -> None:
    tree = grow(memory_of([1, 2, 3, 4, 50, 9, 9, 4, 60, 8, 8, 1, 2, 3, 4]), DraftBudget(2, 1))
    assert tree.tokens == [50, 60]


def test_agreement_makes_surer() -> None:
    once, twice = [1, 2, 3, 50, 9], [1, 2, 3, 50, 9, 1, 2, 3, 50, 8]
    first, second = (grow(memory_of([*text, 1, 2, 3]), DraftBudget(1, 1)) for text in (once, twice))
    assert second.scores > first.scores


def test_a_loop_is_drafted_to_the_full() -> None:
    """Greedy decoding of a period: from the second time round on nearly every node is accepted."""
    period = [random.Random(3).randrange(50) for _ in range(17)]
    truth = period * 12
    memory, known, rounds = memory_of(truth[:34]), 34, 0
    while known < len(truth):
        tree = grow(memory, DraftBudget(16, 16))
        accepted = max((len(path) for path in paths_of(tree) if tuple(truth[known : known + len(path)]) == path), default=0)
        memory.extend(truth[known : known + accepted + 1])
        known += accepted + 1
        rounds += 1
    assert rounds <= (len(truth) - 34) // 17 + 1


def test_only_committed_tokens_are_remembered() -> None:
    drafter, budget = SuffixDrafter(), DraftBudget(nodes=8, depth=8)
    sequence = sequence_of([1, 2, 3, 4, 1, 2])
    drafter.begin(sequence)
    tree = drafter.propose([sequence], [budget])[0]
    assert tree.tokens[0] == 3
    sequence.tokens.append(9)  # the target chose otherwise
    drafter.observe(sequence, tree, Verdict(path=[], tokens=[9]))
    drafter.propose([sequence], [budget])
    assert drafter._memories[sequence.id].tokens == [1, 2, 3, 4, 1, 2, 9]


def test_sequences_do_not_see_each_other_and_the_end_frees() -> None:
    drafter, budget = SuffixDrafter(), DraftBudget(nodes=8, depth=8)
    one, two = sequence_of([1, 2, 3, 4, 1, 2], 1), sequence_of([1, 2], 2)
    for sequence in (one, two):
        drafter.begin(sequence)
    assert [len(tree) > 0 for tree in drafter.propose([one, two], [budget, budget])] == [True, False]
    for sequence in (one, two, two):
        drafter.end(sequence)
    assert drafter._memories == {}
    with pytest.raises(KeyError):
        drafter.propose([one], [budget])


WORST = {
    "text": [random.Random(i // 7 % 40).randrange(2000) if i % 5 else i % 13 for i in range(4000)],
    "zeros": [0] * 4000,
    "short period": [1, 2, 3] * 1334,
    "noisy period": [token for i in range(500) for token in (1, 2, 3, 4, 5, 6, i * 7 % 3, i * 5 % 7)],
    "all different": list(range(4000)),
}


@pytest.mark.parametrize("kind", WORST)
def test_it_is_quick(kind: str) -> None:
    """Best of several, for the machine may be busy; measured: 4 ms, 2 us, 0.2 ms at worst."""

    def best(action: object, times: int) -> float:
        spent = []
        for _ in range(times):
            started = time.perf_counter()
            action()  # type: ignore[operator]
            spent.append(time.perf_counter() - started)
        return min(spent)

    memory = memory_of(WORST[kind])
    assert best(lambda: memory_of(WORST[kind]), 3) < 60e-3
    assert best(lambda: memory.extend([1]), 50) < 30e-6
    assert best(lambda: grow(memory, DraftBudget(24, 24)), 20) < 0.5e-3


@pytest.mark.parametrize("kind", ["text", "all different"])
def test_memory_is_bounded(kind: str) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        memory = memory_of(WORST[kind])
        assert tracemalloc.get_traced_memory()[0] < 400 * len(memory.tokens)
    finally:
        tracemalloc.stop()
