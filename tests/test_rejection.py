"""Rejection rules by exhaustion: for every draw and every coin of small cases the tokens have the target's joint law, exactly.

The coins of a round are replaced by an enumeration in exact fractions (``rejection_oracles``). The reference's golden numbers
(section 0.5) come out as fractions, and verifiers with one deliberate flaw each are caught by the same enumeration.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hasten.core.types import ROOT, DraftTree
from hasten.sampling.laws import DraftLaws, Law, merge
from hasten.sampling.rejection import RULES, Rule, decide
from rejection_oracles import (
    BINARY_DRAFT,
    BINARY_TARGET,
    DRAFT,
    TARGET,
    Chances,
    Conditional,
    Path,
    ScriptedCoins,
    Shape,
    all_shapes,
    drafted,
    draw_tree,
    enumerate_law,
    flat,
    is_exact,
    joint,
    level_shape,
    path_tokens,
    plain_block,
    random_conditional,
    run,
    target_of,
)

F = Fraction

# The reference's numbers.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("replacement", "accepted"),
    [(True, [F(1, 2), F(3, 5), F(17, 25), F(93, 125)]), (False, [F(1, 2), F(241, 350), F(19, 20), F(1)])],
)
def test_golden_acceptance_of_one_level(rule: Rule, replacement: bool, accepted: list[Fraction]) -> None:
    for width, expected in enumerate(accepted, 1):
        law, mean = drafted(rule, flat(TARGET), flat(DRAFT), ((),) * width, replacement=replacement)
        assert mean == expected
        assert is_exact(law, flat(TARGET), 2)


@pytest.mark.parametrize(
    ("widths", "replacement", "tokenwise", "traversal"),
    [
        ((1, 1), False, F(113, 100), F(29, 25)),
        ((2, 1), False, F(41, 25), F(167, 100)),
        ((1, 2), False, F(7, 5), F(7, 5)),
        ((2, 1), True, F(667, 500), F(341, 250)),
        ((2, 2), True, F(1427, 1000), F(371, 250)),
    ],
)
def test_golden_acceptance_of_two_levels(
    widths: tuple[int, int], replacement: bool, tokenwise: Fraction, traversal: Fraction
) -> None:
    for rule, expected in zip(RULES, (tokenwise, traversal), strict=True):
        law, mean = drafted(rule, BINARY_TARGET, BINARY_DRAFT, level_shape(widths), replacement=replacement)
        assert mean == expected
        assert is_exact(law, BINARY_TARGET, 3)


@pytest.mark.parametrize(
    ("flaw", "output"),
    [
        ("draft law not normalised", (0.38893, 0.31107, 0.2, 0.1)),
        ("residual is the target without the token", (0.31431, 0.28430, 0.28889, 0.1125)),
    ],
)
def test_golden_mistakes(flaw: str, output: tuple[float, ...]) -> None:
    law, _ = drafted("tokenwise", flat(TARGET), flat(DRAFT), ((), ()), flaw)
    first = [float(sum(p for tokens, p in law.items() if tokens[0] == x)) for x in range(4)]
    assert first == pytest.approx(output, abs=6e-6)


def test_golden_dropping_by_the_tokens_own_identity() -> None:
    """Section 0.6: p = (.7, .3), q = (.5, .5), and the draft is dropped when it is token 1."""
    target = flat((F(7, 10), F(3, 10)))

    def experiment(chances: Chances) -> int:
        tree, laws = draw_tree(chances, flat((F(1, 2), F(1, 2))), ((),))
        kept = {node for node in range(1) if tree.tokens[node] == 0}
        return run(chances, "tokenwise", target, tree.keep(kept), laws.keep(kept))[1][0]

    assert enumerate_law(experiment) == {0: F(85, 100), 1: F(15, 100)}


def test_block_verification_is_traversal_of_a_chain() -> None:
    for length in (1, 2, 3):
        for key in range(4):
            target, draft = random_conditional(key, 2, zeros=key == 3), random_conditional(key + 50, 2)

            def experiment(
                chances: Chances, length: int = length, target: Conditional = target, draft: Conditional = draft
            ) -> Path:
                tree, laws = draw_tree(chances, draft, level_shape((1,) * length))
                rows, coins = target_of(tree, target), ScriptedCoins(chances)
                path, token = decide(tree, laws, rows, coins, "traversal")
                assert plain_block(tree, laws, rows, coins) == (path, token)
                return (*path_tokens(tree, path[-1] if path else ROOT), token or 0)

            assert is_exact(enumerate_law(experiment), target, length + 1)


# The law, for every small tree.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocabulary", [2, 3])
def test_every_shape_of_drawn_trees(rule: Rule, vocabulary: int) -> None:
    shapes = [shape for nodes in range(5 if vocabulary == 2 else 4) for shape in all_shapes(nodes, 3)]
    assert len(shapes) == (22 if vocabulary == 2 else 9)
    for at, shape in enumerate(shapes):
        target = random_conditional(at, vocabulary, zeros=at % 2 == 1)
        draft = random_conditional(at + 1000, vocabulary, zeros=at % 3 == 1)
        law, mean = drafted(rule, target, draft, shape)
        assert is_exact(law, target, 5 if vocabulary == 2 else 4)
        assert mean > 0 or not shape or at % 2 == 1


def test_traversal_accepts_at_least_as_much_and_a_perfect_draft_is_accepted() -> None:
    gains = []
    for at, shape in enumerate(all_shapes(3, 2)):
        target, draft = random_conditional(at, 2), random_conditional(at + 9, 2)
        gains.append(drafted("traversal", target, draft, shape)[1] - drafted("tokenwise", target, draft, shape)[1])
        for rule in RULES:
            assert drafted(rule, target, target, level_shape((1, 1, 1)))[1] == 3
    assert min(gains) >= 0
    assert max(gains) > 0


def certain_tree(paths: Sequence[Path]) -> DraftTree:
    tree, index = DraftTree(), {(): ROOT}
    for path in paths:
        index[path] = tree.add(index[path[:-1]], path[-1], 0.9, "certain")
    return tree


CERTAIN: list[list[Path]] = [[(0,)], [(1,), (0,)], [(2,), (2, 0), (0,)], [(1,), (1, 1), (1, 2)], [(0,), (1,), (2,)]]


@pytest.mark.parametrize("rule", RULES)
def test_certain_children_alone(rule: Rule) -> None:
    """They accept what drawing a token at each node and following it accepts (sections 1.2 and 1.8)."""
    for at, paths in enumerate(CERTAIN):
        target, tree = random_conditional(at, 3, zeros=at == 1), certain_tree(paths)
        law = enumerate_law(lambda chances, target=target, tree=tree: run(chances, rule, target, tree, DraftLaws())[1])
        assert is_exact(law, target, 3)
        matched: dict[Path, Fraction] = {}
        for tokens, p in joint(target, 3).items():
            size = next(size for size in range(4) if tokens[: size + 1] not in paths)
            matched[tokens[: size + 1]] = matched.get(tokens[: size + 1], F(0)) + p
        if rule == "tokenwise":
            assert law == matched
        else:  # rejecting a path as a whole, it may stop early where the other goes on, but not on the mean
            accepted = [sum(p * len(tokens) for tokens, p in each.items()) for each in (law, matched)]
            assert accepted[0] == accepted[1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drawn_first", [False, True])
def test_drawn_and_certain_children_in_one_tree(rule: Rule, drawn_first: bool) -> None:
    shapes: list[Shape] = [((), ()), (((),),), (((),), ())]
    for at, paths in enumerate(CERTAIN):
        target, draft = random_conditional(at, 3), random_conditional(at + 7, 3, zeros=at == 2)
        for shape in shapes:

            def experiment(
                chances: Chances,
                paths: list[Path] = paths,
                target: Conditional = target,
                draft: Conditional = draft,
                shape: Shape = shape,
            ) -> Path:
                drawn, certain = draw_tree(chances, draft, shape), (certain_tree(paths), DraftLaws())
                (tree, laws), other = (drawn, certain) if drawn_first else (certain, drawn)
                merge(tree, laws, *other)
                return run(chances, rule, target, tree, laws)[1]

            assert is_exact(enumerate_law(experiment), target, 3)


@pytest.mark.parametrize("rule", RULES)
def test_repeated_draws_that_were_dropped_are_draws_without_replacement(rule: Rule) -> None:
    for at in range(2):
        target, draft = random_conditional(at, 3), random_conditional(at + 30, 3)
        for shape in [((), (), ()), (((),), ())]:

            def experiment(
                chances: Chances, target: Conditional = target, draft: Conditional = draft, shape: Shape = shape
            ) -> Path:
                repeated, repeated_laws = draw_tree(chances, draft, shape, replacement=True)
                tree, laws = DraftTree(), DraftLaws()
                merge(tree, laws, repeated, repeated_laws)
                return run(chances, rule, target, tree, laws)[1]

            assert is_exact(enumerate_law(experiment), target, 3)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_follows_the_last_nodes(rule: Rule) -> None:
    target, draft = random_conditional(3, 2), random_conditional(4, 2)

    def experiment(chances: Chances) -> Path:
        tree, laws = draw_tree(chances, draft, level_shape((2, 1, 1)))
        last = {node for node in range(len(tree)) if tree.tokens[node] == 0 or len(tree.path(node)) == 2}
        path, token = decide(tree, laws, target_of(tree, target), ScriptedCoins(chances), rule, last)
        assert (token is None) == bool(path and path[-1] in last)
        assert len(path) <= 2
        return path_tokens(tree, path[-1] if path else ROOT) + (() if token is None else (token,))

    assert is_exact(enumerate_law(experiment), target, 3)


@pytest.mark.parametrize("rule", RULES)
def test_nodes_without_a_law_are_the_last_ones(rule: Rule) -> None:
    target, draft = random_conditional(3, 2), random_conditional(4, 2)
    unusable = {(0,), (1, 0), (1, 1, 1)}

    def experiment(chances: Chances) -> Path:
        tree, laws = draw_tree(chances, draft, level_shape((2, 1, 1)))
        rows, coins = target_of(tree, target), ScriptedCoins(chances)

        def some(node: int) -> Law | None:
            return None if path_tokens(tree, node) in unusable else rows(node)

        path, token = decide(tree, laws, some, coins, rule)
        assert (path, token) == decide(tree, laws, rows, coins, rule, {at for at in range(len(tree)) if some(at) is None})
        return path_tokens(tree, path[-1] if path else ROOT) + (() if token is None else (token,))

    assert is_exact(enumerate_law(experiment), target, 4)


@pytest.mark.parametrize("rule", RULES)
def test_calling_draws_certain_is_exact_and_accepts_less(rule: Rule) -> None:
    """The way out for a drafter that cannot say what it drew from."""
    for at, shape in enumerate(all_shapes(3, 3)):
        target, draft = random_conditional(at, 3), random_conditional(at + 40, 3)

        def experiment(chances: Chances, target: Conditional = target, draft: Conditional = draft, shape: Shape = shape) -> Path:
            tree, _ = draw_tree(chances, draft, shape)
            return run(chances, rule, target, tree, DraftLaws())[1]

        law = enumerate_law(experiment)
        assert is_exact(law, target, 4)
        assert sum(p * (len(tokens) - 1) for tokens, p in law.items()) <= drafted(rule, target, draft, shape)[1]


def test_fractions_and_floats_decide_alike() -> None:
    """The same code on float64: the same decisions, for the same uniform numbers."""
    random = np.random.default_rng(0)
    lengths = set()
    for key in range(150):
        target, draft = random_conditional(key, 5, zeros=True), random_conditional(key + 900, 5, zeros=key % 2 == 0)
        chances = Chances(random.integers(0, 2, 40).tolist())
        tree, laws = draw_tree(chances, draft, level_shape((3, 2, 1)))
        uniform = random.random(len(tree) + 1)

        class Fixed:
            def below(self, node: int, mass: Any, of: Any, uniform: np.ndarray = uniform) -> bool:
                return bool(Fraction(uniform[node]) * Fraction(of) < Fraction(mass))

            def pick(self, masses: Any, uniform: np.ndarray = uniform) -> int:
                return int(np.searchsorted(np.cumsum(masses.astype(float)), uniform[-1]))

        rows = target_of(tree, target)
        floats = DraftLaws({node: law_of_floats(law) for node, law in laws.at.items()}, laws.drawn)
        floats.check(tree)
        for rule in RULES:
            exact = decide(tree, laws, rows, Fixed(), rule)
            assert decide(tree, floats, lambda node, rows=rows: law_of_floats(rows(node)), Fixed(), rule) == exact
            lengths.add(len(exact[0]))
    assert lengths == {0, 1, 2, 3}


def law_of_floats(law: Any) -> Any:
    return type(law)(law.ids, law.masses.astype(np.float64))
