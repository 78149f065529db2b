"""What every drafter owes the engine, asked of every registered name."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from foreign_words import letters, others
from hasten.cache.blocks import BlockManager
from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft import DRAFTERS
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.foreign import ForeignDrafter
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.speculator import SpeculatorDrafter
from hasten.draft.vocabularies import overlap
from hasten.sampling.laws import DraftLaws, Law, Masses
from hasten.sampling.noise import IntArray
from speculators import random_speculator
from tiny import BASE, VOCABULARY, tiny_executor

GENEROUS = DraftBudget(nodes=24, depth=12)

Make = Callable[[], Drafter]


def language_model_drafter(**shape: Any) -> Drafter:
    blocks = 48
    forward = tiny_executor(num_blocks=blocks).forward
    return LanguageModelDrafter(forward, BlockManager(blocks, prefix_cache=False), VOCABULARY, context_length=1024, **shape)


def taught_recycling_drafter() -> Drafter:
    """It knows nothing of a text, only what verdicts told it."""
    drafter = DRAFTERS.resolve("recycling")()
    randomness = random.Random(3)
    for _ in range(300):
        tokens = [randomness.randrange(VOCABULARY) for _ in range(2)] + [1, 2, 3][: randomness.randrange(4)] + [4]
        likeliest = [randomness.sample(range(VOCABULARY), 8)]
        drafter.observe(sequence_of(tokens, 99), DraftTree(), Verdict([], tokens[-1:], likeliest=likeliest))
    chosen: Drafter = drafter
    return chosen


def taught_memory_drafter() -> Drafter:
    """It knows nothing of the present text, only earlier answers."""
    drafter = DRAFTERS.resolve("memory")()
    answered = sequence_of([1, 2, 3], 99)
    drafter.begin(answered)
    answered.tokens.extend([1, 2, 3, 4, 5, 6, 1, 2, 3, 3, 7, 7])
    drafter.end(answered)
    chosen: Drafter = drafter
    return chosen


def foreign_drafter(match: str = "strings", **shape: Any) -> Drafter:
    blocks, target, own = 48, letters(), others()
    forward = tiny_executor(num_blocks=blocks).forward
    manager = BlockManager(blocks, prefix_cache=False)
    return ForeignDrafter(forward, manager, target, own, overlap(target, own), 1024, match, **shape)


class ToldSpeculator(SpeculatorDrafter):
    """It is told a state before each round, as the engine tells it after each step."""

    def _draft(self, sequences: list[Sequence], budgets: list[DraftBudget], drawing: bool) -> list[tuple[DraftTree, DraftLaws]]:
        for sequence in sequences:
            generator = torch.Generator().manual_seed(sum(sequence.tokens) + len(sequence.tokens))
            self.follow(sequence, torch.randn(BASE.hidden_size, generator=generator, dtype=torch.float64))
        return super()._draft(sequences, budgets, drawing)


def speculator_drafter(**shape: Any) -> Drafter:
    return random_speculator(ToldSpeculator, **shape)


NEED_A_START: dict[str, Make] = {  # the others are made without arguments
    "foreign": foreign_drafter,
    "lm": language_model_drafter,
    "memory": taught_memory_drafter,
    "recycling": taught_recycling_drafter,
    "speculator": speculator_drafter,
}


SETTINGS: dict[str, Make] = {  # of drafters that are quite different under another setting
    "lm, constant branching": partial(language_model_drafter, tree="rsd-c", branching=(3, 2)),
    "lm, stochastic beam search": partial(language_model_drafter, tree="rsd-s", width=4),
    "lm, likeliest paths": partial(language_model_drafter, tree="top-k", width=4),
    "speculator, constant branching": partial(speculator_drafter, tree="rsd-c", branching=(3, 2)),
    "speculator, stochastic beam search": partial(speculator_drafter, tree="rsd-s", width=4),
    "speculator, likeliest paths": partial(speculator_drafter, tree="top-k", width=4),
    "foreign, tokens": partial(foreign_drafter, match="tokens"),
    "foreign, merges of a tree": partial(foreign_drafter, match="merges", tree="rsd-c"),
}


HELD_ALIKE = {  # between rounds these hold what "lm" and "foreign" hold; of trees "foreign, merges of a tree" grows one
    "lm, constant branching",
    "lm, stochastic beam search",
    "lm, likeliest paths",
    "speculator, constant branching",
    "speculator, stochastic beam search",
    "speculator, likeliest paths",
    "foreign, tokens",
}


DRAW_WITHOUT_CHANCE = {"lm, likeliest paths", "speculator, likeliest paths"}  # these say so: no node of theirs is a drawn one


@pytest.fixture(params=[*DRAFTERS.names(), *SETTINGS])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes fresh drafters of one name, over token ids below ``VOCABULARY``."""
    name: str = request.param
    made: dict[str, Make] = {**NEED_A_START, **SETTINGS}
    return made[name] if name in made else DRAFTERS.resolve(name)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """What ``make`` was chosen by: the registered name, or that of a setting."""
    chosen: str = request.node.callspec.params["make"]
    return chosen


def sequence_of(tokens: list[int], number: int) -> Sequence:
    """Its prediction is its prompt, for drafters that look at predictions."""
    return Sequence(
        number, f"request-{number}", SamplingParams(), 0, list(tokens), len(tokens), length_limit=4096, prediction=list(tokens)
    )


def some_sequences() -> list[Sequence]:
    randomness = random.Random(11)
    shapes = [
        [3],
        [3, 3],
        [7] * 60,
        [1, 2, 3, 4, 5] * 12,
        list(range(VOCABULARY)),
        [randomness.randrange(3) for _ in range(100)],
        [randomness.randrange(VOCABULARY) for _ in range(200)],
    ]
    return [sequence_of(tokens, number) for number, tokens in enumerate(shapes)]


def proposals(drafter: Drafter, sequences: list[Sequence], budget: DraftBudget) -> list[DraftTree]:
    trees = drafter.propose(sequences, [budget] * len(sequences))
    assert len(trees) == len(sequences)
    return trees


def check_equal(ones: list[DraftTree], others: list[DraftTree]) -> None:
    """Equal nodes; a model's scores may differ in rounding."""
    for one, other in zip(ones, others, strict=True):
        assert (one.tokens, one.parents, one.drafters) == (other.tokens, other.parents, other.drafters)
        assert one.scores == pytest.approx(other.scores)


def check_tree(tree: DraftTree, budget: DraftBudget) -> None:
    count = len(tree)
    assert len(tree.parents) == len(tree.scores) == len(tree.drafters) == count <= budget.nodes
    assert all(parent == ROOT or 0 <= parent < node for node, parent in enumerate(tree.parents)), "a parent stands first"
    assert len(set(zip(tree.parents, tree.tokens, strict=True))) == count, "siblings are distinct"
    assert all(isinstance(score, float) and 0.0 <= score <= 1.0 for score in tree.scores)
    assert all(isinstance(token, int) and 0 <= token < VOCABULARY for token in tree.tokens)
    assert all(depth <= budget.depth for depth in tree.depths())


def test_trees_are_well_formed(make: Make) -> None:
    drafter = make()
    sequences = some_sequences()
    for sequence in sequences:
        drafter.begin(sequence)
    for tree in proposals(drafter, sequences, GENEROUS):
        check_tree(tree, GENEROUS)
        assert all(name == drafter.name for name in tree.drafters)
    assert proposals(drafter, [], GENEROUS) == []
    assert drafter.name == "none" or any(map(len, proposals(drafter, sequences, GENEROUS))), "some of these can be guessed"


@pytest.mark.parametrize("nodes", [0, 1, 2, 7, 24])
@pytest.mark.parametrize("depth", [0, 1, 3, 12])
def test_budgets_are_kept(make: Make, nodes: int, depth: int) -> None:
    drafter, budget = make(), DraftBudget(nodes, depth)
    sequences = some_sequences()
    for sequence in sequences:
        drafter.begin(sequence)
    for tree in proposals(drafter, sequences, budget):
        check_tree(tree, budget)


def test_each_sequence_has_its_own_budget(make: Make) -> None:
    drafter, sequences = make(), some_sequences()
    budgets = [DraftBudget(nodes=number, depth=len(sequences) - number) for number in range(len(sequences))]
    for sequence in sequences:
        drafter.begin(sequence)
    for tree, budget in zip(drafter.propose(sequences, budgets), budgets, strict=True):
        check_tree(tree, budget)


def test_it_bears_the_name_it_is_registered_under(make: Make, name: str) -> None:
    assert make().name == name.partition(",")[0], "a class that does not say its name is taken for 'none'"


def test_draws_come_with_their_laws(make: Make, name: str) -> None:
    """At temperature 0 nothing is drawn: the trees are those of ``propose``."""
    drafter, sequences = make(), some_sequences()
    if not drafter.draws:
        pytest.skip("it draws nothing")
    assert type(drafter).draw is not Drafter.draw, "who draws has a method draw"
    hot = [
        replace(sequence, params=SamplingParams(temperature=1.3, top_p=0.9), id=100 + at) for at, sequence in enumerate(sequences)
    ]
    for sequence in (*sequences, *hot):
        drafter.begin(sequence)
    budgets = [DraftBudget(nodes=7 + at, depth=4) for at in range(len(hot))]
    drawn = 0
    for (tree, laws), budget in zip(drafter.draw(hot, budgets), budgets, strict=True):
        check_tree(tree, budget)
        laws.check(tree)
        drawn += len(laws.drawn)
    if name in DRAW_WITHOUT_CHANCE:
        assert drawn == 0
    else:
        assert drawn > 0, "it says that it draws, and of these texts drew nothing"
    cold = drafter.draw(sequences, [GENEROUS] * len(sequences))
    assert not any(laws.drawn for _, laws in cold)
    check_equal([tree for tree, _ in cold], proposals(drafter, sequences, GENEROUS))


def test_rounds_with_any_verdict(make: Make) -> None:
    """Some nodes are accepted, some not, and some rounds pass the drafter by."""
    drafter, randomness = make(), random.Random(5)
    sequence = sequence_of([1, 2, 3], 0)
    drafter.begin(sequence)
    for _ in range(60):
        if randomness.random() < 0.2:
            sequence.tokens.extend(randomness.randrange(VOCABULARY) for _ in range(randomness.randint(1, 5)))
            continue
        tree = proposals(drafter, [sequence], GENEROUS)[0]
        check_tree(tree, GENEROUS)
        path = tree.path(randomness.randrange(len(tree))) if len(tree) and randomness.random() < 0.7 else []
        emitted = [*(tree.tokens[node] for node in path), randomness.randrange(4)]
        sequence.tokens.extend(emitted)
        drafter.observe(sequence, tree, Verdict(path, emitted))
    drafter.end(sequence)


def test_the_sequence_and_its_tokens_are_left_alone(make: Make) -> None:
    drafter, sequences = make(), some_sequences()
    before = [list(sequence.tokens) for sequence in sequences]
    for sequence in sequences:
        drafter.begin(sequence)
    proposals(drafter, sequences, GENEROUS)
    for sequence in sequences:
        drafter.end(sequence)
    assert [sequence.tokens for sequence in sequences] == before


def test_proposals_are_deterministic(make: Make) -> None:
    trees = []
    for drafter in (make(), make()):
        sequences = some_sequences()
        for sequence in sequences:
            drafter.begin(sequence)
        trees.append(proposals(drafter, sequences, GENEROUS))
    assert trees[0] == trees[1]


def test_a_batch_gives_what_each_gives_alone(make: Make) -> None:
    together, sequences = make(), some_sequences()
    for sequence in sequences:
        together.begin(sequence)
    trees = proposals(together, sequences, GENEROUS)
    for sequence, tree in zip(sequences, trees, strict=True):
        alone = make()
        alone.begin(sequence)
        check_equal(proposals(alone, [sequence], GENEROUS), [tree])
    check_equal(proposals(together, sequences[::-1], GENEROUS), trees[::-1])  # neither order nor repetition matters


def test_after_missed_rounds_it_guesses_as_if_it_had_begun_there(make: Make) -> None:
    late, fresh = make(), make()
    sequence = sequence_of([1, 2, 3, 4, 5] * 4, 0)
    late.begin(sequence)
    sequence.tokens.extend([9, 8, 1, 2, 3])
    fresh.begin(sequence)
    check_equal(proposals(late, [sequence], GENEROUS), proposals(fresh, [sequence], GENEROUS))


def test_the_memory_that_it_tells_of_does_not_fall_where_a_text_begins(make: Make) -> None:
    drafter = make()
    before = drafter.bytes
    sequence = sequence_of([1, 2, 3, 4, 5] * 9, 0)
    drafter.begin(sequence)
    proposals(drafter, [sequence], GENEROUS)
    assert drafter.bytes >= before >= 0
    drafter.end(sequence)
    assert drafter.bytes >= 0


def test_an_ended_number_can_be_used_again(make: Make) -> None:
    drafter, fresh = make(), make()
    drafter.begin(sequence_of([1, 2] * 20, 0))
    drafter.end(sequence_of([1, 2] * 20, 0))
    sequence = sequence_of([3, 4, 5] * 9, 0)
    for one in (drafter, fresh):
        one.begin(sequence)
    check_equal(proposals(drafter, [sequence], GENEROUS), proposals(fresh, [sequence], GENEROUS))


@pytest.mark.parametrize(
    "make",
    [pytest.param(name, marks=[pytest.mark.slow] if name in HELD_ALIKE else []) for name in (*DRAFTERS.names(), *SETTINGS)],
    indirect=True,
)
def test_the_end_frees_what_the_beginning_took(make: Make) -> None:
    check_memory(make())


def check_memory(drafter: Drafter) -> None:
    """Texts that have ended leave nothing behind, whether the drafter saw them at the beginning, was asked or was told."""
    randomness = random.Random(2)

    def live_through(number: int) -> None:
        sequence = sequence_of([*(randomness.randrange(VOCABULARY) for _ in range(480)), *range(20)], number)
        drafter.begin(sequence)
        for budget in (GENEROUS, DraftBudget(1, 1)):
            tree = proposals(drafter, [sequence], budget)[0]
            emitted = [*range(60)]  # always the same: what answers teach may be kept
            sequence.tokens.extend(emitted)
            drafter.observe(sequence, tree, Verdict([], emitted, likeliest=[[*range(40)] for _ in range(1 + len(tree))]))
        drafter.end(sequence)

    def held_after(numbers: range) -> int:
        for number in numbers:
            live_through(number)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = held_after(range(30))
        assert held_after(range(30, 60)) - before < 30 * 500 * 4  # as many bytes as the least copy of the tokens
    finally:
        tracemalloc.stop()


class Keeping(Drafter):
    """Never lets go of what it was told of."""

    name = "keeping"

    def __init__(self, what: Callable[[Sequence, DraftTree, Verdict], object]) -> None:
        self._what, self._kept = what, [object()]

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        self._kept.append(self._what(sequence, tree, verdict))


@pytest.mark.parametrize("what", [lambda sequence, tree, verdict: sequence, lambda sequence, tree, verdict: verdict])
def test_memory_that_is_kept_of_verdicts_is_found(what: Callable[[Sequence, DraftTree, Verdict], object]) -> None:
    check_memory(Keeping(lambda *_: None))
    with pytest.raises(AssertionError):
        check_memory(Keeping(what))


SEEDS = 320


def drawn_sequences(texts: int = 4) -> list[Sequence]:
    """A few texts, each to be drawn for under many seeds, so that one draw repeated is no law."""
    randomness = random.Random(17)
    tokens = [[randomness.randrange(VOCABULARY) for _ in range(20 + 3 * text)] for text in range(texts)]
    hot = SamplingParams(temperature=1.3, top_p=0.95)
    sequences = [sequence_of(tokens[number % texts], number) for number in range(SEEDS)]
    return [replace(sequence, params=hot, seed=1000 + number) for number, sequence in enumerate(sequences)]


def places_of_draws(tree: DraftTree, laws: DraftLaws, randomness: random.Random) -> list[float]:
    """For each drawn node a number that is uniform on [0, 1], whatever came before, if it was drawn from the law it is said to
    be from: where its token lies in the law's masses, the largest first, without the siblings drawn before it."""
    out: list[float] = []
    gone: dict[int, set[int]] = {}
    for node in sorted(laws.drawn):
        parent, token = tree.parents[node], tree.tokens[node]
        before = gone.setdefault(parent, set())
        masses = {int(id): float(mass) for id, mass in zip(laws.at[parent].ids, laws.at[parent].masses, strict=True)}
        left = sorted(((-mass, id) for id, mass in masses.items() if id not in before))
        above = sum(-mass for mass, id in left if (mass, id) < (-masses[token], token))
        out.append((above + randomness.random() * masses[token]) / sum(-mass for mass, _ in left))
        if not laws.replacement:
            before.add(token)
    return out


def check_frequencies(drafter: Drafter) -> None:
    """Drawn tokens come as often as the reported laws say: chi-squared of ten bins, beyond one chance in a million."""
    randomness, bins, count = random.Random(23), [0] * 10, 0
    sequences = drawn_sequences()
    for start in range(0, SEEDS, 16):
        batch = sequences[start : start + 16]
        for sequence in batch:
            drafter.begin(sequence)
        for tree, laws in drafter.draw(batch, [DraftBudget(nodes=5, depth=3)] * len(batch)):
            for place in places_of_draws(tree, laws, randomness):
                bins[min(9, int(10 * place))] += 1
                count += 1
        for sequence in batch:
            drafter.end(sequence)
    assert count >= SEEDS, "too few draws to say anything"
    deviation = sum((found - count / 10) ** 2 / (count / 10) for found in bins)
    assert deviation < 45.0, f"draws do not follow the reported laws: {bins}"


def test_draws_follow_the_laws_that_are_reported(make: Make, name: str) -> None:
    """Under rejection the text has the model's law only if they do, and the engine cannot tell."""
    drafter = make()
    if not drafter.draws or name in DRAW_WITHOUT_CHANCE:
        pytest.skip("it draws nothing")
    check_frequencies(drafter)


class Drawing(Drafter):
    """Draws from a law over the text's own tokens, and reports it."""

    name, draws = "drawing", True

    def __init__(self) -> None:
        self._generator = np.random.default_rng(1)

    def draw(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[tuple[DraftTree, DraftLaws]]:
        out = []
        for sequence in sequences:
            tree, laws, parent = DraftTree(), DraftLaws(), ROOT
            ids = np.unique(np.array(sequence.tokens, np.int64))
            masses = np.linspace(1.0, 4.0, len(ids))
            masses /= masses.sum()
            for _ in range(2):
                laws.at[parent] = Law(ids, masses)
                parent = tree.add(parent, self.token(sequence, ids, masses), 0.5, self.name)
                laws.drawn.add(parent)
            out.append((tree, laws))
        return out

    def token(self, sequence: Sequence, ids: IntArray, masses: Masses) -> int:
        return int(self._generator.choice(ids, p=masses))


class AlwaysTheSame(Drawing):
    def token(self, sequence: Sequence, ids: IntArray, masses: Masses) -> int:
        return int(ids[len(ids) // 2])


class OnceAText(Drawing):
    """From the law, but the same for every seed."""

    def token(self, sequence: Sequence, ids: IntArray, masses: Masses) -> int:
        return int(np.random.default_rng(sum(sequence.tokens)).choice(ids, p=masses))


class FromAnother(Drawing):
    def token(self, sequence: Sequence, ids: IntArray, masses: Masses) -> int:
        return int(self._generator.choice(ids))


def test_who_misreports_its_law_is_found() -> None:
    check_frequencies(Drawing())
    for liar in (AlwaysTheSame(), OnceAText(), FromAnother()):
        with pytest.raises(AssertionError, match="do not follow"):
            check_frequencies(liar)


def test_ending_what_never_began_does_no_harm(make: Make) -> None:
    make().end(sequence_of([1], 5))


def test_listing_names_imports_no_drafter_and_no_torch() -> None:
    program = (
        "import sys; from hasten.draft import DRAFTERS; assert {'none', 'suffix', 'lm'} <= set(DRAFTERS.names()); "
        "import hasten.draft.suffix; "
        "assert not {'torch', 'numpy', 'hasten.draft.lm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'suffix'"):
        DRAFTERS.resolve("sufix")
