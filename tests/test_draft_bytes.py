"""What drafters say of their memory is what they take, bounded where they say so, and shown."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable

import pytest

from hasten import LLM
from hasten.core.config import SpeculationParams
from hasten.core.types import DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter, held
from hasten.draft.hierarchy import HierarchyDrafter
from hasten.draft.memory import MemoryDrafter
from hasten.draft.prediction import PredictionDrafter
from hasten.draft.recycling import RecyclingDrafter
from hasten.draft.suffix import SuffixDrafter
from hasten.draft.trie import TrieDrafter

VOCABULARY, LENGTH = 50_000, 6_000
MAKERS: dict[str, Callable[[], Drafter]] = {
    "suffix": SuffixDrafter,
    "hierarchy": HierarchyDrafter,
    "prediction": PredictionDrafter,
    "recycling": RecyclingDrafter,
    "trie": TrieDrafter,
    "memory": lambda: MemoryDrafter(tokens=16_384),
}
KEPT = {"recycling", "trie", "memory"}  # over requests
BOUNDED: dict[str, Callable[[], Drafter]] = {
    "recycling": lambda: RecyclingDrafter(most_rows=100, most_tenants=3),
    "trie": lambda: TrieDrafter(most_counts=300, most_tenants=3),
    "memory": lambda: MemoryDrafter(tokens=1024, tenants=3),
}


def live(drafter: Drafter, number: int, tenant: str = "", length: int = LENGTH) -> Sequence:
    """A request of random tokens that is answered at once and goes on."""
    dice = random.Random(number)
    text = [dice.randrange(VOCABULARY) for _ in range(length)]
    prompt = length // 2
    sequence = Sequence(number, "r", SamplingParams(), 0, text[:prompt], prompt, 2 * length, tenant)
    sequence.prediction = text[prompt:]
    drafter.begin(sequence)
    for at in range(prompt, length):
        sequence.tokens.append(text[at])
        likeliest = [[dice.randrange(VOCABULARY) for _ in range(8)]]
        drafter.observe(sequence, DraftTree(), Verdict([], [text[at]], likeliest=likeliest))
    return sequence


def learn(drafter: Drafter) -> Sequence:
    sequence = live(drafter, 1)
    drafter.propose([sequence], [DraftBudget(1, 1)])  # who follows a text does so when it is asked
    return sequence


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_about_what_is_taken(name: str) -> None:
    drafter = MAKERS[name]()
    assert drafter.bytes == 0
    gc.collect()
    tracemalloc.start()
    sequence = learn(drafter)
    if name in KEPT:
        drafter.end(sequence)
    del sequence.prediction, sequence.tokens
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.5 < drafter.bytes / taken < 2.0, (drafter.bytes, taken)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_a_requests_own_goes_with_it(name: str) -> None:
    drafter = MAKERS[name]()
    sequence = learn(drafter)
    assert drafter.bytes > 0
    drafter.end(sequence)
    assert (drafter.bytes > 0) == (name in KEPT)


@pytest.mark.parametrize("name", BOUNDED)
def test_it_is_bounded(name: str) -> None:
    drafter = BOUNDED[name]()
    seen = []
    for number in range(12):
        drafter.end(live(drafter, number, f"tenant {number % 6}", length=800))
        seen.append(drafter.bytes)
    assert max(seen[6:]) <= 1.1 * max(seen[:6])
    assert max(seen) < 1 << 20


def test_it_is_shown_beside_the_reasons() -> None:
    assert held(49_999) == ""
    assert held(1_260_000) == "; holds 1.3 MB"


def test_the_explanation_of_an_answer_shows_it(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SuffixDrafter, "bytes", property(lambda self: 2_000_000))
    with LLM(str(tiny_model), draft="suffix", explain=True) as llm:
        done = llm.generate(["one two"], SamplingParams(max_tokens=4), speculation=SpeculationParams(mode="on"))[0]
    assert done.speculation.decisions["suffix"].endswith("; holds 2.0 MB")
