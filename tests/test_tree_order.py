"""In which order a tree's nodes are computed: a path that is accepted stands where it is to stay."""

from __future__ import annotations

import random

import pytest

from hasten.control.rounds import Round
from hasten.core.config import SpeculationParams
from hasten.core.types import ROOT, DraftTree


def random_tree(seed: int, nodes: int) -> DraftTree:
    chance = random.Random(seed)
    tree = DraftTree()
    while len(tree) < nodes:
        tree.add(chance.randrange(-1, len(tree)), chance.randrange(99), chance.choice([0.1, 0.3, 0.5, 0.9]), chance.choice("ab"))
    return tree


def paths(tree: DraftTree) -> list[tuple[tuple[int, ...], float, str]]:
    """Each node by the tokens that lead to it."""
    return sorted(
        (tuple(tree.tokens[at] for at in tree.path(node)), tree.scores[node], tree.drafters[node]) for node in range(len(tree))
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_tree_in_line_is_the_same_tree(seed: int) -> None:
    tree = random_tree(seed, seed)
    order = tree.paths_in_line()
    assert sorted(order) == list(range(len(tree)))
    lined = tree.arranged(order)
    assert paths(lined) == paths(tree)
    assert all(parent < node for node, parent in enumerate(lined.parents))
    for parent in range(ROOT, len(lined)):
        children = [node for node in range(len(lined)) if lined.parents[node] == parent]
        scores = [lined.scores[child] for child in children]
        assert scores == sorted(scores, reverse=True)
        assert not children or children[0] == parent + 1, "the likeliest child stands right behind its parent"
    assert lined.paths_in_line() == list(range(len(tree)))


def test_equal_children_stay_in_the_order_in_which_they_were_found() -> None:
    tree = DraftTree([7, 5, 6], [ROOT, ROOT, ROOT], [0.5, 0.5, 0.5], ["a"] * 3)
    assert tree.paths_in_line() == [0, 1, 2]


def test_a_chain_whose_runners_up_hang_beside_it_comes_first() -> None:
    """So a draft model's tree grows: three children a level, of which the best is drafted on."""
    tree = DraftTree()
    below = ROOT
    for level in range(3):
        best = tree.add(below, 10 * level, 0.6, "lm")
        for other in (1, 2):
            tree.add(below, 10 * level + other, 0.1, "suffix")
        below = best
    round = Round(1, "greedy", 10, 1, 10, SpeculationParams())
    round.bid("lm", tree)
    round.origins = [*tree.drafters]
    round.keep(set(range(len(tree))) - {5})
    round.line_up()
    assert round.verified.tokens == [0, 10, 20, 21, 22, 11, 1, 2]
    assert round.verified.parents == [ROOT, 0, 1, 1, 1, 0, ROOT, ROOT]
    assert round.verified_origins == round.verified.drafters
