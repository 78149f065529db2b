"""Verification by rejection as the engine calls it: on logits, with counted coins and drafts that a model would draw.

Chi-square tests at alpha 1e-4 with fixed seeds, on toy models that look at the last token only; drafts that reverse the order of
siblings, or drop what is unlikely, must be caught by the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from hasten.core.errors import ModelError
from hasten.core.types import ROOT, DraftTree, SamplingParams
from hasten.sampling.choose import token_logprob
from hasten.sampling.draws import Beam, draw_without_replacement, extend_beams
from hasten.sampling.filters import History, adjusted
from hasten.sampling.laws import DraftLaws, Law, likeliest, warped_law
from hasten.sampling.rejection import RULES, Rule, verify_rejection
from hasten.sampling.verify import verify_tree

ALPHA = 1e-4
START, LAST = 5, 1  # position of the first token emitted, and the token before it
WARM = SamplingParams(temperature=0.9, top_p=0.95)
PLAIN = SamplingParams(temperature=1.0)
Draft = Callable[[int], tuple[DraftTree, DraftLaws]]


class Toy:
    """Logits of the target and of a draft that resembles it, from the last token alone."""

    def __init__(self, vocabulary: int, params: SamplingParams = PLAIN, key: int = 0) -> None:
        random = np.random.default_rng([vocabulary, key])
        self.params, self.vocabulary = params, vocabulary
        self.target = torch.from_numpy(random.normal(size=(vocabulary, vocabulary)) * 1.5)
        self.draft = self.target + torch.from_numpy(random.normal(size=(vocabulary, vocabulary)) * 1.2)
        self.target_laws = [warped_law(row.numpy(), params) for row in self.target]
        self.draft_laws = [warped_law(row.numpy(), params) for row in self.draft]

    def rows(self, tree: DraftTree) -> torch.Tensor:
        return self.target[[LAST, *tree.tokens]]

    def constant_branching(self, seed: int, widths: tuple[int, ...], most: int = 10**9) -> tuple[DraftTree, DraftLaws]:
        """RSD-C."""
        tree, laws, level = DraftTree(), DraftLaws(), [ROOT]
        for width in widths:
            below: list[int] = []
            for node in level:
                laws.at[node] = likeliest(self.draft_laws[LAST if node == ROOT else tree.tokens[node]], most)
                for child in draw_without_replacement(laws.at[node], width, seed, START, node):
                    below.append(tree.add(node, child.token, 0.5, "drawn"))
            level = below
            laws.drawn.update(below)
        return tree, laws

    def beam_search(self, seed: int, width: int, depth: int) -> tuple[DraftTree, DraftLaws]:
        """RSD-S."""
        tree, laws, beams = DraftTree(), DraftLaws(), [Beam()]
        for _ in range(depth):
            for beam in beams:
                laws.at[beam.node] = self.draft_laws[LAST if beam.node == ROOT else tree.tokens[beam.node]]
            children = extend_beams(beams, [laws.at[beam.node] for beam in beams], width, seed, START)
            nodes = [tree.add(beams[child.parent].node, child.token, 0.5, "drawn") for child in children]
            beams = [Beam(node, child.log_probability, child.score) for node, child in zip(nodes, children, strict=True)]
            laws.drawn.update(nodes)
        return tree, laws

    def surprises(self, draft: Draft, rounds: int) -> dict[Rule, float]:
        """p-value of the next two tokens under each rule; where a round gives one, plain sampling adds the second."""
        plain = {rule: np.random.default_rng(99) for rule in RULES}
        pairs: dict[Rule, Counter[tuple[int, int]]] = {rule: Counter() for rule in RULES}
        for seed in range(rounds):
            tree, laws = draft(seed)
            rows = self.rows(tree)
            for rule in RULES:
                tokens = verify_rejection(tree, laws, rows, self.params, seed, START, rule=rule).tokens
                if len(tokens) == 1:
                    law = self.target_laws[tokens[0]]
                    tokens.append(int(plain[rule].choice(law.ids, p=law.masses)))
                pairs[rule][tokens[0], tokens[1]] += 1
        return {rule: chi_square(pairs[rule], self.target_laws, rounds) for rule in RULES}


def chi_square(pairs: Counter[tuple[int, int]], laws: list[Law], rounds: int) -> float:
    """Pairs that are expected fewer than five times are counted together."""
    observed, expected, rare = [], [], [0.0, 0.0]
    for first, p in zip(laws[LAST].ids.tolist(), laws[LAST].masses.tolist(), strict=True):
        for second, q in zip(laws[first].ids.tolist(), laws[first].masses.tolist(), strict=True):
            if rounds * p * q < 5:
                rare[0] += pairs.pop((first, second), 0)
                rare[1] += rounds * p * q
            else:
                observed.append(float(pairs.pop((first, second), 0)))
                expected.append(rounds * p * q)
    if pairs:
        return 0.0  # something impossible
    return float(stats.chisquare([*observed, rare[0]], [*expected, rare[1]]).pvalue)


DRAFTS: dict[str, Callable[[Toy, int], tuple[DraftTree, DraftLaws]]] = {
    "chain": lambda toy, seed: toy.constant_branching(seed, (1, 1, 1)),
    "RSD-C": lambda toy, seed: toy.constant_branching(seed, (3, 2)),
    "RSD-C from the likeliest": lambda toy, seed: toy.constant_branching(seed, (2, 2), most=4),
    "RSD-S": lambda toy, seed: toy.beam_search(seed, 3, 2),
    "RSD-S, deep": lambda toy, seed: toy.beam_search(seed, 4, 3),
}


@pytest.mark.parametrize("draft", DRAFTS)
def test_law_of_the_next_two_tokens(draft: str) -> None:
    toy = Toy(8, WARM if draft == "RSD-C" else PLAIN)
    found = toy.surprises(partial(DRAFTS[draft], toy), 1200)
    assert min(found.values()) > ALPHA, found


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("vocabulary", [8, 50])
def test_law_of_the_next_two_tokens_at_length(draft: str, vocabulary: int) -> None:
    toy = Toy(vocabulary, key=1)
    found = toy.surprises(partial(DRAFTS[draft], toy), 12_000)
    assert min(found.values()) > ALPHA, found


def reversed_siblings(tree: DraftTree, laws: DraftLaws) -> tuple[DraftTree, DraftLaws]:
    """The same tree, with the children of every node in the opposite order."""
    out, out_laws, placed = DraftTree(), DraftLaws(), {ROOT: ROOT}
    for depth in range(1, 1 + max(tree.depths())):
        for node in reversed(range(len(tree))):
            if tree.depths()[node] == depth:
                placed[node] = out.add(placed[tree.parents[node]], tree.tokens[node], 0.5, "drawn")
    out_laws.at = {placed[node]: law for node, law in laws.at.items()}
    out_laws.drawn = {placed[node] for node in laws.drawn}
    return out, out_laws


def likely_ones(tree: DraftTree, laws: DraftLaws) -> tuple[DraftTree, DraftLaws]:
    """Without drafts that are unlikely under the law they were drawn from."""
    kept: set[int] = set()
    for node, parent in enumerate(tree.parents):
        law = laws.at[parent]
        if (parent == ROOT or parent in kept) and law.of(tree.tokens[node]) * 2 > law.masses.max():
            kept.add(node)
    return tree.keep(kept), laws.keep(kept)


@pytest.mark.parametrize("draft", ["RSD-C", "RSD-S"])
def test_drafts_that_break_their_law_are_caught(draft: str) -> None:
    toy = Toy(8)
    drafts = [DRAFTS[draft](toy, seed) for seed in range(1200)]
    for flaw in (reversed_siblings, likely_ones):
        broken = [flaw(*drawn) for drawn in drafts]
        found = toy.surprises(broken.__getitem__, len(broken))
        assert max(found.values()) < ALPHA, (flaw, found)


@pytest.mark.parametrize("rule", RULES)
def test_a_draft_equal_to_its_target_is_accepted_whole(rule: Rule) -> None:
    toy = Toy(30, WARM)
    toy.draft_laws = toy.target_laws
    for seed in range(100):
        tree, laws = toy.constant_branching(seed, (1,) * 6)
        assert len(verify_rejection(tree, laws, toy.rows(tree), WARM, seed, START, rule=rule).tokens) == 7


def test_traversal_accepts_more() -> None:
    toy = Toy(8)
    accepted = dict.fromkeys(RULES, 0)
    for seed in range(600):
        tree, laws = toy.constant_branching(seed, (2, 2, 1))
        for rule in RULES:
            accepted[rule] += len(verify_rejection(tree, laws, toy.rows(tree), PLAIN, seed, START, rule=rule).path)
    assert accepted["traversal"] > accepted["tokenwise"] > 600


def test_the_answer_repeats_under_a_seed_and_changes_with_it() -> None:
    toy = Toy(50)
    tree, laws = toy.constant_branching(0, (3, 2))
    tokens = [[verify_rejection(tree, laws, toy.rows(tree), PLAIN, seed, START).tokens for seed in range(30)] for _ in range(2)]
    assert tokens[0] == tokens[1]
    assert len({tuple(each) for each in tokens[0]}) > 5


# As the engine calls it.


def some_toys(params: SamplingParams) -> list[Toy]:
    return [Toy(6, params, key) for key in range(20)]


def random_case(random: np.random.Generator, toys: list[Toy]) -> tuple[Toy, DraftTree, DraftLaws]:
    """A tree of draws and certain tokens, some of them wild."""
    toy = toys[int(random.integers(len(toys)))]
    tree, laws = toy.constant_branching(int(random.integers(1000)), tuple(random.integers(1, 4, int(random.integers(0, 4)))), 4)
    for _ in range(int(random.integers(0, 6))):
        size = len(tree)
        parent, token = int(random.integers(-1, size)), int(random.choice([0, 1, 2, 3, 4, 5, -1, 77, 2**62]))
        laws.drawn.discard(tree.add(parent, token, 0.5, "certain"))
    return toy, tree, laws


def rows_of(toy: Toy, tree: DraftTree) -> torch.Tensor:
    return torch.stack([toy.target[token if 0 <= token < toy.vocabulary else 0] for token in [LAST, *tree.tokens]])


@pytest.mark.parametrize("rule", RULES)
def test_temperature_0_is_greedy_matching(rule: Rule) -> None:
    random, toys = np.random.default_rng(0), some_toys(PLAIN)
    penalised = SamplingParams(frequency_penalty=0.9, repetition_penalty=1.2, logprobs=2, logit_bias={2: 0.7})
    lengths = Counter[int]()
    for seed in range(400):
        toy, tree, laws = random_case(random, toys)
        rows, history = rows_of(toy, tree), History([LAST])
        for params in (SamplingParams(), penalised):
            coupled = verify_tree(tree, rows, params, seed, START, history=history)
            assert verify_rejection(tree, laws, rows, params, seed, START, rule=rule, history=history) == coupled
            for limit in (1, 2, 3):
                cut = verify_tree(tree, rows, params, seed, START, history=history, limit=limit, stop_tokens={0, 3})
                rejected = verify_rejection(
                    tree, laws, rows, params, seed, START, rule=rule, history=history, limit=limit, stop_tokens={0, 3}
                )
                assert rejected == cut
            lengths[len(coupled.tokens)] += 1
    assert len(lengths) >= 3


@pytest.mark.parametrize("rule", RULES)
def test_verdicts_are_sound(rule: Rule) -> None:
    """Paths lead down from the root, nothing impossible is emitted, limits and stops hold, log-probabilities are the node's."""
    random = np.random.default_rng(1)
    lengths = Counter[int]()
    params = SamplingParams(temperature=0.9, top_k=4, logprobs=2, frequency_penalty=0.5)
    toys = some_toys(params)
    for seed in range(400):
        toy, tree, laws = random_case(random, toys)
        laws.check(tree)
        rows = rows_of(toy, tree)
        limit, stop = int(random.integers(1, 5)), {int(random.integers(6))}
        verdict = verify_rejection(
            tree, laws, rows, params, seed, START, rule=rule, history=History([LAST]), limit=limit, stop_tokens=stop
        )
        assert len(verdict.tokens) == len(verdict.path) + 1 <= limit
        assert [tree.tokens[node] for node in verdict.path] == verdict.tokens[:-1]
        assert [tree.parents[node] for node in verdict.path] == [ROOT, *verdict.path][: len(verdict.path)]
        assert not stop & set(verdict.tokens[:-1])
        for i, (node, token) in enumerate(zip([ROOT, *verdict.path], verdict.tokens, strict=True)):
            values = adjusted(rows[node + 1], params, 0, History([LAST], verdict.tokens[:i]))
            assert warped_law(values, params).of(token) > 0
            assert verdict.logprobs[i] == token_logprob(values, token, 2)
        lengths[len(verdict.tokens)] += 1
    assert len(lengths) >= 3
    with pytest.raises(AssertionError):
        verify_rejection(DraftTree(), DraftLaws(), torch.zeros(1, 3), PLAIN, 0, START, limit=0)


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_cannot_be_used_end_a_path(rule: Rule) -> None:
    random, toys = np.random.default_rng(4), some_toys(PLAIN)
    lengths = Counter[int]()
    for seed in range(300):
        toy, tree, laws = random_case(random, toys)
        rows = rows_of(toy, tree)
        bad = {int(node) for node in random.integers(0, len(tree), 3)} if len(tree) else set()
        rows[[node + 1 for node in bad]] = torch.nan
        for params in (PLAIN, SamplingParams(temperature=0.9, logprobs=1), SamplingParams()):
            verdict = verify_rejection(tree, laws, rows, params, seed, START, rule=rule)
            assert len(verdict.tokens) == len(verdict.path) + 1
            assert not bad & set(verdict.path)
            assert len(verdict.logprobs) == (0 if params.logprobs is None else len(verdict.tokens))
            lengths[len(verdict.tokens)] += 1
        assert verdict == verify_tree(tree, rows, SamplingParams(), seed, START)
    assert len(lengths) >= 3
    with pytest.raises(ModelError):
        verify_rejection(DraftTree(), DraftLaws(), torch.full((1, 6), torch.nan), PLAIN, 0, START, rule=rule)


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_read_at_most_once_and_only_where_needed(rule: Rule) -> None:
    random, toys = np.random.default_rng(2), some_toys(PLAIN)
    for seed in range(200):
        toy, tree, laws = random_case(random, toys)
        rows = rows_of(toy, tree)
        asked: list[int] = []

        def row(index: int, asked: list[int] = asked, rows: torch.Tensor = rows) -> torch.Tensor:
            asked.append(index)
            return rows[index]

        lazy = verify_rejection(tree, laws, row, PLAIN, seed, START, rule=rule, stop_tokens={2})
        assert lazy == verify_rejection(tree, laws, rows, PLAIN, seed, START, rule=rule, stop_tokens={2})
        assert len(set(asked)) == len(asked)
        assert all(tree.tokens[index - 1] != 2 for index in asked if index)
        if rule == "tokenwise":
            assert asked == [0, *(node + 1 for node in lazy.path)]


@pytest.mark.parametrize("rule", RULES)
def test_masks_follow_the_path_and_padding_is_never_emitted(rule: Rule) -> None:
    random, toys = np.random.default_rng(3), some_toys(PLAIN)

    def allowed_after(path: list[int] | tuple[int, ...]) -> torch.Tensor | None:
        mask = torch.ones(6, dtype=torch.bool)
        mask[path[-1] if path else 0] = False
        return mask

    longest = 0
    for seed in range(300):
        toy, tree, laws = random_case(random, toys)
        wild = {node for node in range(len(tree)) if any(not 0 <= tree.tokens[above] < 6 for above in tree.path(node))}
        laws, tree = laws.keep(set(range(len(tree))) - wild), tree.keep(set(range(len(tree))) - wild)
        rows = rows_of(toy, tree)
        rows[:, 5] = 50.0
        tokens = verify_rejection(
            tree,
            laws,
            rows,
            PLAIN,
            seed,
            START,
            rule=rule,
            allowed_after=allowed_after,  # type: ignore[arg-type]
            vocabulary_size=5,
        ).tokens
        assert all(0 <= token < 5 for token in tokens)
        assert all(a != b for a, b in zip([0, *tokens], tokens, strict=False))
        longest = max(longest, len(tokens))
    assert longest >= 3
