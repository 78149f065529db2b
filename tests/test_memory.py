"""The memory drafter: what it finds (against brute force), whose it is, and what becomes of it on disk."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.matches import LONGEST_MATCH, vote, weights
from hasten.draft.memory import PROMPT_END, MemoryDrafter
from hasten.draft.recent_texts import GRAM_LENGTHS, MOST_MATCHES, RecentTexts

PROMPT = [900, 901, 902, 903]
BUDGET = DraftBudget(nodes=16, depth=16)


def answer(seed: int, length: int = 120) -> list[int]:
    randomness = random.Random(seed)
    return [randomness.randrange(500) for _ in range(length)]


def sequence_of(tenant: str, prompt: list[int], output: list[int], number: int = 0) -> Sequence:
    return Sequence(number, "r", SamplingParams(), 0, [*prompt, *output], len(prompt), length_limit=1 << 20, tenant=tenant)


def live(drafter: Drafter, tenant: str, prompt: list[int], output: list[int]) -> tuple[int, int]:
    """Decode ``output`` with the drafter's help: (accepted tokens, rounds)."""
    sequence = sequence_of(tenant, prompt, output[:1])
    drafter.begin(sequence)
    accepted = rounds = 0
    while sequence.output_length < len(output):
        tree = drafter.propose([sequence], [BUDGET])[0]
        node, at = ROOT, sequence.output_length
        while at < len(output) - 1 and (child := tree.child(node, output[at])) is not None:
            node, at = child, at + 1
        accepted += at - sequence.output_length
        sequence.tokens.extend(output[sequence.output_length : at + 1])
        rounds += 1
    drafter.end(sequence)
    return accepted, rounds


def tree_for(drafter: Drafter, tenant: str, prompt: list[int], output: list[int]) -> DraftTree:
    sequence = sequence_of(tenant, prompt, output)
    drafter.begin(sequence)
    return drafter.propose([sequence], [BUDGET])[0]


# What is found


def found(texts: RecentTexts, end: list[int]) -> list[tuple[int, int]]:
    return [(length, text[at]) for text, at, length, _ in texts.matches(end)]


def brute(texts: list[tuple[list[int], int]], end: list[int]) -> list[tuple[int, int]]:
    """(length, token that followed), latest first: the latest occurrences of each gram length."""
    ends: set[tuple[int, int]] = set()
    for gram in GRAM_LENGTHS:
        places = [
            (number, at)
            for number, (text, context) in enumerate(texts)
            for at in range(max(gram, context, 1), len(text))
            if len(end) >= gram and text[at - gram : at] == end[-gram:]
        ]
        ends.update(sorted(places)[-MOST_MATCHES:])
    out = []
    for number, at in sorted(ends, reverse=True):
        text, length = texts[number][0], 0
        while length < min(LONGEST_MATCH, at, len(end)) and text[at - 1 - length] == end[-1 - length]:
            length += 1
        out.append((length, text[at]))
    return out


@pytest.mark.parametrize("seed", range(30))
def test_matches_are_those_of_brute_force(seed: int) -> None:
    randomness = random.Random(seed)
    symbols = randomness.choice([2, 5, 30])
    texts, ring = [], RecentTexts(1 << 17)
    for _ in range(randomness.randrange(1, 12)):
        text = [randomness.randrange(symbols) for _ in range(randomness.randrange(1, 60))]
        context = randomness.randrange(len(text) + 1)
        if ring.add(np.array(text, dtype=np.int32), context):
            texts.append((text, context))
        end = [randomness.randrange(symbols) for _ in range(randomness.randrange(20))]
        source = randomness.choice(texts)[0]
        for wanted in (end, end + source[: randomness.randrange(len(source) + 1)]):
            assert found(ring, wanted) == brute(texts, wanted)


@pytest.mark.parametrize("seed", range(10))
def test_filling_at_once_is_adding_one_by_one(seed: int) -> None:
    randomness = random.Random(seed)
    texts = [[randomness.randrange(9) for _ in range(randomness.randrange(1, 60))] for _ in range(200)]
    pairs = [(np.array(text, dtype=np.int32), randomness.randrange(len(text) + 1)) for text in texts]
    for capacity in (1 << 10, 1 << 17):
        filled, grown = RecentTexts(capacity), RecentTexts(capacity)
        filled.fill([])
        filled.fill(pairs)
        held, free = [], capacity
        for pair in reversed(pairs):
            free -= len(pair[0]) + 1
            if free < 0:
                break
            held.append(pair)
        for tokens, context in reversed(held):
            grown.add(tokens, context)
        for number in range(60):
            if number % 3 == 0:
                assert grown.add(*pairs[number]) == filled.add(*pairs[number])
            end = texts[-number][: randomness.randrange(60)]
            assert found(filled, end) == found(grown, end)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_overwritten_ring_never_lies(data: st.DataObject) -> None:
    """Whatever was overwritten: each match is in a text that was added, and its follower is output."""
    ring = RecentTexts(data.draw(st.integers(64, 300)))
    added: list[tuple[list[int], int]] = []
    memory = ring.bytes
    for _ in range(data.draw(st.integers(1, 25))):
        text = data.draw(st.lists(st.integers(0, 6), max_size=90))
        context = data.draw(st.integers(0, len(text)))
        ring.add(np.array(text, dtype=np.int32), context)
        added.append((text, context))
        end = data.draw(st.lists(st.integers(0, 6), max_size=40))
        for length, token in found(ring, end):
            wanted = [*end[len(end) - length :], token]
            assert any(
                text[at - length : at + 1] == wanted for text, context in added for at in range(max(length, context), len(text))
            )
    assert ring.bytes == memory


def test_links_into_what_was_overwritten_are_not_followed() -> None:
    ring = RecentTexts(64)
    for number in range(4):  # outputs everywhere
        ring.add(np.array([1] * 12 + [50 + number, 54, 55], dtype=np.int32), 0)
    for number in range(4):  # now prompts lie there
        ring.add(np.array([1, 3] * 6 + [60 + number, 1, 2], dtype=np.int32), 14)
    assert {token for _, token in found(ring, [1])} == {2}


def test_the_oldest_texts_go_first() -> None:
    ring = RecentTexts(1024)
    for seed in range(40):
        ring.add(np.array(answer(seed), dtype=np.int32), 0)
    for seed in range(40):
        best = max((length for length, _ in found(ring, answer(seed)[:50])), default=0)
        assert (best == LONGEST_MATCH) == (seed > 40 - 1024 // 121 - 1), seed


def test_an_equal_text_is_kept_once_while_it_is_held() -> None:
    ring, text = RecentTexts(1024), np.array(answer(1), dtype=np.int32)
    assert ring.add(text, 3)
    assert not ring.add(text, 3)
    for seed in range(2, 12):
        ring.add(np.array(answer(seed), dtype=np.int32), 0)
    assert ring.add(text, 3)


def test_a_long_text_keeps_its_end() -> None:
    ring, text = RecentTexts(1024), answer(5, 5000)
    ring.add(np.array(text, dtype=np.int32), 2)
    assert found(ring, text[-40:-1])[0] == (LONGEST_MATCH, text[-1])
    assert not any(length > 5 for length, _ in found(ring, text[100:140]))


@pytest.mark.parametrize("capacity", [0, 63, 1 << 31])
def test_a_capacity_out_of_range(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        RecentTexts(capacity)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, LONGEST_MATCH)), max_size=60), st.floats(0.1, 100), st.floats(0, 1))
def test_votes_sum_to_less_than_one(matches: list[tuple[int, int]], escape: float, doubt: float) -> None:
    text = [0, 1, 2, 3, 1, 2, -1, 3, 4]
    tables = weights(1.0, 2.5, 60)
    votes = vote([(text, at, length, by_length) for (at, length), by_length in zip(matches, tables, strict=False)], escape, doubt)
    assert sum(score for _, score, _ in votes) < 1.0
    assert len({token for token, _, _ in votes}) == len(votes)
    assert {token for token, _, _ in votes} == {text[at] for at, _ in matches if at < len(text) and text[at] >= 0}


def test_a_repeated_answer_is_recognised_from_its_first_token_on() -> None:
    drafter = MemoryDrafter()
    assert live(drafter, "", PROMPT, answer(1))[0] < 5
    accepted, rounds = live(drafter, "", PROMPT, answer(1))
    assert accepted >= 105
    assert rounds <= 12


def test_the_prompt_is_never_proposed() -> None:
    drafter, prompt = MemoryDrafter(), list(range(1000, 1040))
    live(drafter, "", prompt, answer(1))
    for end in range(1, 40):
        tree = tree_for(drafter, "", [5], prompt[:end])
        assert not set(tree.tokens) & set(prompt)
    assert tree_for(drafter, "", [5], prompt).tokens[0] == answer(1)[0]  # but its end leads to the output
    assert not len(tree_for(drafter, "", [5], prompt[: 40 - PROMPT_END]))


def test_a_full_store_answers_in_less_than_a_millisecond() -> None:
    drafter = MemoryDrafter()
    randomness = random.Random(1)
    words = [[randomness.randrange(2000) for _ in range(5)] for _ in range(300)]
    for number in range(300):
        output = [token for _ in range(200) for token in randomness.choice(words)]
        drafter.end(sequence_of("", PROMPT, output, number))
    sequence = sequence_of("", PROMPT, [*words[0], *words[1]])
    times = []
    for _ in range(50):
        started = time.perf_counter()
        (tree,) = drafter.propose([sequence], [BUDGET])
        times.append(time.perf_counter() - started)
        assert len(tree)
    assert min(times) < 1e-3
    assert drafter.bytes < 20e6


@pytest.mark.parametrize(
    "arguments", [{"tokens": 10}, {"tokens": 1.5e4}, {"tokens": True}, {"tenants": 0}, {"tenants": 10**6}, {"tokens": 1 << 30}]
)
def test_bounds_out_of_range(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="memory drafter must be"):
        MemoryDrafter(**arguments)


# Whose it is


def leaks(drafter: Drafter) -> bool:
    """Whether anything of tenant A's outputs helps or is shown to tenant B."""
    live(drafter, "A", PROMPT, answer(1))
    trees = [tree_for(drafter, tenant, PROMPT, answer(1)[:n]) for tenant in ("B", "", "a", "A ", "A\0") for n in (1, 8, 50)]
    accepted, _ = live(drafter, "B", PROMPT, answer(1))
    fresh, _ = live(MemoryDrafter(), "B", PROMPT, answer(1))
    return any(len(tree) for tree in trees) or accepted != fresh


@pytest.mark.parametrize("on_disk", [False, True])
def test_tenants_do_not_mix(tmp_path: Path, on_disk: bool) -> None:
    path = tmp_path / "memory.sqlite" if on_disk else None
    assert not leaks(MemoryDrafter(path))
    if on_disk:
        again = MemoryDrafter(path)
        assert not len(tree_for(again, "C", PROMPT, answer(1)[:8]))
        assert live(again, "A", PROMPT, answer(1))[0] > 100


def test_a_shared_memory_would_be_noticed() -> None:
    class Shared(MemoryDrafter):
        def _of(self, tenant: str) -> RecentTexts:
            return super()._of("")

    assert leaks(Shared())


def test_vocabularies_do_not_mix(tmp_path: Path) -> None:
    live(MemoryDrafter(tmp_path / "m", "one"), "", PROMPT, answer(1))
    assert not len(tree_for(MemoryDrafter(tmp_path / "m", "two"), "", PROMPT, answer(1)[:8]))
    assert len(tree_for(MemoryDrafter(tmp_path / "m", "one"), "", PROMPT, answer(1)[:8]))


@pytest.mark.parametrize("tenant", ["", "x" * 10_000, "\udce9\0", "'; DROP TABLE outputs; --", "中文"])
def test_any_name_is_a_tenant(tmp_path: Path, tenant: str) -> None:
    live(MemoryDrafter(tmp_path / "m"), tenant, PROMPT, answer(1))
    assert live(MemoryDrafter(tmp_path / "m"), tenant, PROMPT, answer(1))[0] > 100


def test_tenants_in_memory_are_bounded_and_come_back_from_disk(tmp_path: Path) -> None:
    drafter = MemoryDrafter(tmp_path / "m", tokens=4096, tenants=3)
    one = MemoryDrafter(tokens=4096)
    live(one, "", PROMPT, answer(0))
    for number in range(10):
        live(drafter, f"tenant {number}", PROMPT, answer(number))
        assert drafter.bytes <= 3 * one.bytes
    assert live(drafter, "tenant 4", PROMPT, answer(4))[0] > 100
