"""Grow a draft tree from its likeliest leaf, for drafters whose nodes cost nothing until they are verified.

The frontier's leaf with the largest survival is added next. As no node survives more often than its parent, that is the tree of
the given size with the largest expected number of accepted nodes: Sequoia's optimum (arXiv:2402.12374, section 3) where a node's
probability is known when its parent is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import TypeVar

from hasten.core.types import ROOT, DraftTree
from hasten.draft.base import DraftBudget

State = TypeVar("State")
LEAST_SURVIVAL = 0.02  # less likely nodes are not worth a row on any machine


def best_first(
    start: State,
    follow: Callable[[State], Iterable[tuple[int, float, State]]],
    budget: DraftBudget,
    drafter: str,
    least: float = LEAST_SURVIVAL,
) -> DraftTree:
    """The likeliest continuations within ``budget``; fewer where nothing likely is left, or nothing that would be verified.

    ``follow(state)`` gives (token, P(accepted | parent accepted), state after it) of the candidates after a node, tokens distinct.
    Nodes that survive less often than ``least`` are left out. Equal survivals stand in the order in which they were given.
    """
    tree = DraftTree()
    leaves: list[tuple[float, int, int, int, float, State, int]] = []
    order, parent, level, survival, state = 0, ROOT, 0, 1.0, start
    floors, most = budget.floors, budget.nodes
    while len(tree) < most:
        if level < budget.depth:
            for token, score, after in follow(state):
                if survival * score >= least:
                    heappush(leaves, (-survival * score, order, parent, token, score, after, level + 1))
                    order += 1
        if not leaves:
            break
        loss, _, above, token, score, state, level = heappop(leaves)
        survival, parent = -loss, len(tree)
        if parent < len(floors) and survival < floors[parent]:
            break
        tree.tokens.append(token)  # not tree.add: siblings are distinct by construction
        tree.parents.append(above)
        tree.scores.append(score)
        tree.drafters.append(drafter)
    return tree
