"""What a rejection rule must not do, and what a draft must not do: each is shown to change the law, by enumeration."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest

from hasten.core.types import ROOT
from hasten.sampling.rejection import RULES, Rule, decide
from rejection_oracles import (
    BINARY_DRAFT,
    BINARY_TARGET,
    COIN_FLAWS,
    DRAFT,
    TARGET,
    TOKENWISE_FLAWS,
    TRAVERSAL_FLAWS,
    Chances,
    Conditional,
    Path,
    ScriptedCoins,
    Shape,
    drafted,
    draw_tree,
    enumerate_law,
    flat,
    is_exact,
    joint,
    law_of,
    level_shape,
    path_tokens,
    random_conditional,
    run,
    target_of,
)

# Flaws must be caught.


CASES: list[tuple[Conditional, Conditional, Shape]] = [
    (flat(TARGET), flat(DRAFT), ((), ())),
    (flat(TARGET), flat(DRAFT), ((), (), ())),
    (BINARY_TARGET, BINARY_DRAFT, level_shape((1, 1))),
    (BINARY_TARGET, BINARY_DRAFT, level_shape((2, 1))),
]


def caught(rule: Rule, flaw: str) -> bool:
    return any(
        not is_exact(drafted(rule, target, draft, shape, flaw)[0], target, 2 + (target is BINARY_TARGET))
        for target, draft, shape in CASES
    )


@pytest.mark.parametrize(
    ("rule", "flaw"),
    [("tokenwise", flaw) for flaw in ["", *TOKENWISE_FLAWS, *COIN_FLAWS]]
    + [("traversal", flaw) for flaw in ["", *TRAVERSAL_FLAWS, *COIN_FLAWS]],
)
def test_a_flawed_rule_is_caught(rule: Rule, flaw: str) -> None:
    assert caught(rule, flaw) == (flaw != "")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lie", ["siblings reversed", "with replacement", "another law"])
def test_a_draft_that_misreports_its_law_is_caught(rule: Rule, lie: str) -> None:
    def experiment(chances: Chances) -> Path:
        tree, laws = draw_tree(chances, flat(DRAFT), ((), ()))
        if lie == "siblings reversed":
            tree.tokens.reverse()
        elif lie == "with replacement":
            laws.replacement = True
        else:
            laws.at[ROOT] = law_of((Fraction(1, 4),) * 4)
        return run(chances, rule, flat(TARGET), tree, laws)[1]

    assert not is_exact(enumerate_law(experiment), flat(TARGET), 2)


# What a draft may do.


def pruned(chances: Chances, rule: Rule, key: int, shape: Shape, gone: Callable[[list[int]], set[int]]) -> Path:
    """A round on a drawn tree without the nodes that ``gone`` names in view of all tokens."""
    target = random_conditional(key, 3)
    tree, laws = draw_tree(chances, random_conditional(key + 101, 3), shape)
    kept = set(range(len(tree))) - gone(tree.tokens)
    return run(chances, rule, target, tree.keep(kept), laws.keep(kept))[1]


def test_traversal_needs_one_order_in_which_the_tree_was_settled() -> None:
    """A draw (node 2) is shown if what is below its uncle is token 0, and that (node 4) if the draw, shown or not, is token 0.
    No node's being there depends on itself, and that is all that tokenwise needs."""

    def gone(tokens: list[int]) -> set[int]:
        return ({2} if tokens[4] else set()) | ({4} if tokens[2] else set())

    for rule in RULES:
        law = enumerate_law(partial(pruned, rule=rule, key=15, shape=(((), ()), ((),)), gone=gone))
        assert is_exact(law, random_conditional(15, 3), 3) == (rule == "tokenwise")


@pytest.mark.parametrize("rule", RULES)
def test_which_draws_may_be_pruned(rule: Rule) -> None:
    """The last sibling, in view of the others and of what is below them; not a node in view of what is below it."""
    shape: Shape = (((),), ((),))
    for gone, exact in [
        (lambda tokens: {2, 3} if tokens[0] == tokens[1] else set(), True),
        (lambda tokens: {3} if tokens[1] == 0 else set(), True),
        (lambda tokens: {1} if tokens[0] == 1 else set(), True),
        (lambda tokens: {0, 1, 2, 3} if tokens[1] == 0 else set(), False),
        (lambda tokens: {2, 3} if tokens[2] == 0 else set(), False),
    ]:
        law = enumerate_law(partial(pruned, rule=rule, key=15, shape=shape, gone=gone))
        assert is_exact(law, random_conditional(15, 3), 3) == exact


# The law over rounds.


def over_rounds(
    rule: Rule, target: Conditional, draft: Conditional, shape: Shape, length: int, by_depth: bool
) -> dict[Path, Fraction]:
    """The law of ``length`` tokens, drafting again whenever a round ends. ``by_depth``: a coin belongs to its position, so a
    later round meets it again."""

    def experiment(chances: Chances) -> Path:
        out: Path = ()
        while len(out) < length:
            tree, laws = draw_tree(chances, draft, shape, out, len(out))
            coins = ScriptedCoins(chances, len(out), "coins of positions" if by_depth else "", tree)
            path, token = decide(tree, laws, target_of(tree, target, out), coins, rule)
            out += (*path_tokens(tree, path[-1] if path else ROOT), token or 0)
        return out[:length]

    return enumerate_law(experiment)


@pytest.mark.parametrize("rule", RULES)
def test_joint_law_of_three_tokens_over_rounds(rule: Rule) -> None:
    target, draft = random_conditional(11, 2), random_conditional(12, 2)
    for shape, length in [(level_shape((1,)), 3), (level_shape((1, 1)), 3), (level_shape((2,)), 3), (level_shape((2, 1)), 2)]:
        assert over_rounds(rule, target, draft, shape, length, by_depth=False) == joint(target, length)


def test_coins_belong_to_rounds_not_to_positions() -> None:
    """Traversal looks at coins deeper than what it emits; a round that meets them again is not independent."""
    target, draft = random_conditional(13, 2), random_conditional(114, 2)
    assert over_rounds("traversal", target, draft, level_shape((1, 1)), 3, by_depth=True) != joint(target, 3)
    assert over_rounds("traversal", target, draft, level_shape((1, 1)), 3, by_depth=False) == joint(target, 3)
