"""Laws after the filters, coins by counter, and draws without replacement: chi-square at alpha 1e-4, fixed seeds, and oracles."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import pytest
from scipy import stats

from hasten.core.types import ROOT, DraftTree, SamplingParams
from hasten.sampling import noise
from hasten.sampling.draws import Beam, RoundCoins, draw_without_replacement, extend_beams
from hasten.sampling.laws import DraftLaws, Law, likeliest, merge, warped_law
from sampling_oracles import oracle_filter, random_params, random_row

ALPHA = 1e-4
Q = np.array([0.35, 0.05, 0.25, 0.0, 0.2, 0.15])


def law_of(masses: Iterable[float]) -> Law:
    array = np.array(list(masses))
    return Law(np.arange(len(array)), array / array.sum())


def surprise(outcomes: Iterable[Hashable], expected: dict[Hashable, float]) -> float:
    """p-value of the outcomes under a law; 0 when something impossible came up."""
    counts = Counter(outcomes)
    possible = [outcome for outcome, p in expected.items() if p > 0]
    if set(counts) - set(possible):
        return 0.0
    observed = [counts[outcome] for outcome in possible]
    return float(stats.chisquare(observed, [expected[outcome] * sum(observed) for outcome in possible]).pvalue)


# Laws.


def test_warped_law_is_the_law_that_choose_draws_from() -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        row = random_row(random, int(random.integers(1, 12)))
        params = random_params(random, len(row))
        law = warped_law(row, params)
        ids = oracle_filter(row.tolist(), params)
        weight = [math.exp((float(row[i]) - float(row.max())) / params.temperature) for i in ids]
        assert [i for i, mass in zip(law.ids, law.masses, strict=True) if mass > 0] == [
            i for i, w in zip(ids, weight, strict=True) if w > 0
        ]
        assert law.masses.sum() == pytest.approx(1.0, abs=1e-12)
        for i, w in zip(ids, weight, strict=True):
            assert law.of(i) == pytest.approx(w / math.fsum(weight), rel=1e-12)


def test_warped_law_at_temperature_0_is_the_first_of_the_largest() -> None:
    law = warped_law(np.array([1.0, 3.0, 3.0], np.float32), SamplingParams())
    assert (law.ids.tolist(), law.masses.tolist()) == ([1], [1.0])


def test_law_answers_for_any_token_and_on_any_ids() -> None:
    random = np.random.default_rng(1)
    for size in (1, 5, 40, 6000):
        ids = np.sort(random.choice(2 * size, size, replace=False))
        law = Law(ids, random.random(size))
        known = dict(zip(ids.tolist(), law.masses.tolist(), strict=True))
        for token in [-1, 2**70, -(2**70), *range(min(2 * size, 100))]:
            assert law.of(token) == known.get(token, 0)
        for other in (1, 3, size, 2 * size):
            asked = np.sort(random.choice(2 * size, min(other, 2 * size), replace=False))
            assert law.on(asked).tolist() == [known.get(token, 0) for token in asked.tolist()]
        assert law.on(np.empty(0, np.int64)).tolist() == []
        same = law.on(ids)
        same[:] = 0
        assert law.masses.sum() > 0


def test_likeliest_tokens_keep_their_proportions() -> None:
    random = np.random.default_rng(2)
    for count, size in [(1, 6), (3, 6), (5, 6), (9, 6), (200, 5000)]:
        law = law_of(np.exp(random.normal(size=size) * 3))
        cut = likeliest(law, count)
        assert cut.ids.tolist() == sorted(np.argsort(-law.masses, kind="stable")[:count].tolist())
        assert cut.masses.sum() == pytest.approx(1.0)
        assert cut.masses / law.on(cut.ids) == pytest.approx(np.full(len(cut.ids), 1 / law.on(cut.ids).sum()))


def small_tree() -> tuple[DraftTree, DraftLaws]:
    tree = DraftTree()
    for parent, token in [(ROOT, 4), (ROOT, 0), (0, 2), (2, 5)]:
        tree.add(parent, token, 0.5, "drawn")
    return tree, DraftLaws({ROOT: law_of(Q), 0: law_of(Q)}, {0, 1, 2})


def test_kept_laws_follow_kept_nodes() -> None:
    tree, laws = small_tree()
    kept, kept_laws = tree.keep({0, 2, 3}), laws.keep({0, 2, 3})
    assert kept.tokens == [4, 2, 5]
    assert kept_laws.drawn == {0, 1}
    assert kept_laws.at == {ROOT: laws.at[ROOT], 0: laws.at[0]}
    kept_laws.check(kept)
    assert laws.keep({1}).drawn == {0}
    assert set(laws.keep({1}).at) == {ROOT}


def test_what_anybody_proposes_without_chance_is_certain() -> None:
    for drawn_first in (True, False):
        certain = DraftTree()
        for parent, token in [(ROOT, 0), (ROOT, 3), (0, 1)]:
            certain.add(parent, token, 0.9, "certain")
        (tree, laws), other = (small_tree(), (certain, DraftLaws())) if drawn_first else ((certain, DraftLaws()), small_tree())
        expected = DraftTree()
        for part in (tree, other[0]):
            expected.merge(part)
        merge(tree, laws, *other)
        assert tree == expected
        laws.check(tree)
        drawn = {tuple(tree.tokens[n] for n in tree.path(node)) for node in laws.drawn}
        assert drawn == {(4,), (4, 2)}
        assert {tuple(tree.tokens[n] for n in tree.path(node)) for node in laws.at} == {(), (4,)}
    with pytest.raises(ValueError, match="only one"):
        merge(*small_tree(), *small_tree())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda tree, laws: laws.drawn.add(4), "not in the tree"),
        (lambda tree, laws: laws.drawn.add(3), "impossible"),
        (lambda tree, laws: laws.at.pop(ROOT), "impossible"),
        (lambda tree, laws: tree.tokens.__setitem__(1, 3), "impossible"),
        (lambda tree, laws: tree.tokens.__setitem__(1, 99), "impossible"),
        (lambda tree, laws: tree.tokens.__setitem__(1, 4), "twice"),
        (lambda tree, laws: laws.at.update({0: Law(np.array([2, 1]), np.array([0.5, 0.5]))}), "ascending"),
        (lambda tree, laws: laws.at.update({0: Law(np.array([2, 5]), np.array([1.0]))}), "one mass"),
        (lambda tree, laws: laws.at.update({0: Law(np.empty(0, np.int64), np.empty(0))}), "one mass"),
        (lambda tree, laws: laws.at.update({0: Law(np.array([2, 5]), np.array([1.5, -0.5]))}), "at least 0"),
        (lambda tree, laws: laws.at.update({0: Law(np.array([2, 5]), np.array([0.5, 0.4]))}), "sum to 1"),
        (lambda tree, laws: laws.at.update({0: Law(np.array([2, 5]), np.array([0.5, np.nan]))}), "at least 0"),
    ],
)
def test_laws_that_cannot_be_are_refused(spoil: Callable[[DraftTree, DraftLaws], object], says: str) -> None:
    tree, laws = small_tree()
    laws.check(tree)
    spoil(tree, laws)
    with pytest.raises(ValueError, match=says):
        laws.check(tree)


# Coins.


def test_coins_follow_from_seed_position_and_node_and_nothing_else() -> None:
    seen = set()
    for seed, position, node in itertools.product((0, 1, 2**63), (0, 1, 500), range(5)):
        coins = RoundCoins(seed, position)
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if coins.below(node, middle, 1.0) else (middle, high)
        seen.add(low)
    assert len(seen) == 45


def test_coins_are_fair_and_independent() -> None:
    """Of each other, from node to node and round to round; of the noise of ``choose``; of the pick; of the draft's draws."""
    outcomes = []
    for position in range(3000):
        coins, later = RoundCoins(7, position), RoundCoins(7, position + 1)
        outcomes.append(
            (
                coins.below(0, 0.3, 1.0),
                coins.below(1, 1.0, 2.0),
                later.below(0, 0.3, 1.0),
                coins.pick(np.array([0.0, 1.0, 1.0, 0.0])) == 1,
                bool(noise.noise_of(7, position, np.array([0]))[0] < 0.0),  # probability exp(-1)
                draw_without_replacement(law_of([0.5, 0.5]), 1, 7, position, ROOT)[0].token == 0,
            )
        )
    shares = [0.3, 0.5, 0.3, 0.5, math.exp(-1), 0.5]
    for one, two in itertools.combinations(range(len(shares)), 2):
        expected: dict[Hashable, float] = {
            (a, b): (shares[one] if a else 1 - shares[one]) * (shares[two] if b else 1 - shares[two])
            for a in (True, False)
            for b in (True, False)
        }
        assert surprise(((o[one], o[two]) for o in outcomes), expected) > ALPHA


def test_pick_follows_the_masses_and_never_takes_an_impossible_token() -> None:
    masses = np.array([0.0, 3.0, 0.0, 1.0, 4.0, 0.0])
    picks = [RoundCoins(3, position).pick(masses) for position in range(6000)]
    assert surprise(picks, dict(enumerate(masses / 8))) > ALPHA

    class Highest(RoundCoins):
        def _uniform(self, purpose: int, index: int) -> float:
            return 1.0 - 2.0**-53

    assert Highest(0, 0).pick(np.array([0.1, 0.2, 0.7 + 1e-16, 0.0])) == 2
    assert Highest(0, 0).pick(np.array([1e-300, 0.0])) == 0


# Draws.


def law_of_orders(masses: np.ndarray, count: int) -> dict[Hashable, float]:
    """What drawing without replacement means: each in proportion to what is left."""
    out: dict[Hashable, float] = {}
    for order in itertools.permutations(range(len(masses)), count):
        p, left = 1.0, 1.0
        for token in order:
            p, left = p * masses[token] / left, left - masses[token]
        out[order] = p
    return out


def test_draws_without_replacement_come_in_the_order_of_their_law() -> None:
    law = law_of(Q)
    drawn = [draw_without_replacement(law, 3, 5, position, 2) for position in range(8000)]
    orders = [tuple(child.token for child in children) for children in drawn]
    assert surprise(orders, law_of_orders(law.masses, 3)) > ALPHA
    assert surprise([order[::-1] for order in orders], law_of_orders(law.masses, 3)) < 1e-30
    for children in drawn[:50]:
        assert [child.score for child in children] == sorted((child.score for child in children), reverse=True)
        assert all(child.log_probability == pytest.approx(math.log(law.of(child.token))) for child in children)
    assert sorted(child.token for child in draw_without_replacement(law, 99, 5, 0, 0)) == [0, 1, 2, 4, 5]


def test_draws_of_different_nodes_and_rounds_differ() -> None:
    law = law_of(np.ones(5000))
    draws = [draw_without_replacement(law, 1, s, p, n)[0].token for s in (1, 2) for p in (0, 1) for n in (ROOT, 0, 1)]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 8.0])
def test_large_laws_are_drawn_from_as_if_every_token_were_scored(spread: float) -> None:
    random = np.random.default_rng(4)
    values = random.normal(size=20_000) * spread
    masses = np.exp(values - values.max()) * (random.random(20_000) < 0.9)
    law = Law(np.arange(0, 40_000, 2), masses / masses.sum())
    places = np.flatnonzero(law.masses)
    for position in range(25):
        stream = noise.derive_seed(noise.derive_seed(9, (0x636F696E << 32) + 3), position + 1)
        scores = np.log(law.masses[places]) + noise.noise_of(stream, 4, law.ids[places])
        expected = law.ids[places[np.argsort(-scores, kind="stable")[:5]]].tolist()
        assert [child.token for child in draw_without_replacement(law, 5, 9, position, 3)] == expected


TABLE = [law_of(Q[[0, 2, 4]]), law_of([0.1, 0.6, 0.3]), law_of([0.8, 0.0, 0.2])]
"""The law after each token; the first is also the root's."""


def sampled_paths(width: int, position: int) -> list[tuple[int, int]]:
    """Two levels of stochastic beam search; paths in order of falling score."""
    first = extend_beams([Beam()], [TABLE[0]], width, 11, position)
    beams = [Beam(node, child.log_probability, child.score) for node, child in enumerate(first)]
    second = extend_beams(beams, [TABLE[child.token] for child in first], width, 11, position)
    for level in (first, second):
        assert [child.score for child in level] == sorted((child.score for child in level), reverse=True)
    for child in second:
        path = TABLE[0].of(first[child.parent].token) * TABLE[first[child.parent].token].of(child.token)
        assert child.log_probability == pytest.approx(math.log(path))
        assert child.score <= beams[child.parent].score
    assert {beam.score for beam in beams} >= {second[0].score}  # a beam's best child has its score
    return [(first[child.parent].token, child.token) for child in second]


def test_stochastic_beams_are_paths_without_replacement() -> None:
    paths = [tuple(sampled_paths(3, position)) for position in range(5000)]
    names = list(itertools.product(range(3), repeat=2))
    masses = np.array([TABLE[0].of(a) * TABLE[a].of(b) for a, b in names])
    expected = {tuple(names[i] for i in order): p for order, p in law_of_orders(masses, 3).items()}  # type: ignore[attr-defined]
    common: dict[Hashable, float] = {order: p for order, p in expected.items() if p > 1e-3}
    common["rare"] = 1 - sum(common.values())
    assert surprise((path if path in common else "rare" for path in paths), common) > ALPHA


def test_one_beam_is_ancestral_sampling() -> None:
    paths = [sampled_paths(1, position) for position in range(4000)]
    assert all(len(path) == 1 for path in paths)
    expected: dict[Hashable, float] = {(a, b): TABLE[0].of(a) * TABLE[a].of(b) for a in range(3) for b in range(3)}
    assert surprise((path[0] for path in paths), expected) > ALPHA
