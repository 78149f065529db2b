"""What drafters hand over, held to the contract before anybody looks at it: one bid a sequence, trees that are trees, within their
budget and under their drafter's own name.

What breaks it beyond mending raises, and the drafter is off for the sequence; what is mended is named, so that it can be told.
"""

from __future__ import annotations

from operator import index

from hasten.core.types import ROOT, DraftTree, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.sampling.laws import DraftLaws

FOREIGN_TOKEN = "tokens outside of the vocabulary, which are left out"
NO_SCORE = "scores that are no numbers from 0 to 1, which count as the nearest, or 0"
OVER_BUDGET = "more or deeper guesses than its budget allows, which are left out"


def bids_of(
    drafter: Drafter, sequences: list[Sequence], budgets: list[DraftBudget], drawing: bool
) -> list[tuple[DraftTree, DraftLaws]]:
    """Raises ValueError where there is not one bid a sequence, and what the drafter raises."""
    if drawing:
        bids = [(tree, laws) for tree, laws in drafter.draw(sequences, budgets)]
    else:
        bids = [(tree, DraftLaws()) for tree in drafter.propose(sequences, budgets)]
    if len(bids) != len(sequences):
        raise ValueError(f"{len(bids)} bids for {len(sequences)} sequences")
    return bids


def check_names(tree: DraftTree, name: str) -> None:
    """Raises ValueError where a node is not said to be of the drafter called ``name``."""
    if tree.drafters.count(name) != len(tree.drafters):
        raise ValueError(f"a draft node is not named '{name}' as its drafter is")


def sound(tree: DraftTree, budget: DraftBudget, vocabulary: int) -> DraftTree:
    """The part of a bid that obeys the contract: tokens of the vocabulary, within depth and node count, under sound parents. The
    bid itself where all of it does.

    Raises ValueError when the tree is not a tree at all, TypeError for tokens that are no whole numbers.
    """
    count = len(tree.tokens)
    if not count == len(tree.parents) == len(tree.scores) == len(tree.drafters):
        raise ValueError("a draft tree's lists differ in length")
    if count <= budget.nodes and _obeys(tree, budget.depth, vocabulary):
        return tree
    out = DraftTree()
    placed: dict[int, int] = {ROOT: ROOT}
    depths: dict[int, int] = {ROOT: 0}
    for node in range(count):
        parent, token = tree.parents[node], index(tree.tokens[node])
        if not ROOT <= parent < node:
            raise ValueError("a draft node stands before its parent")
        if parent not in placed or depths[parent] >= budget.depth or not 0 <= token < vocabulary or len(out) >= budget.nodes:
            continue
        score = min(1.0, max(0.0, float(tree.scores[node])))
        placed[node] = out.add(placed[parent], token, score, tree.drafters[node])
        depths[node] = depths[parent] + 1
    return out


def fault_of(tree: DraftTree, budget: DraftBudget, vocabulary: int) -> str:
    """What had to be left out or mended of a bid that is a tree, in words; "" where it was only written in other types."""
    if not all(0 <= token < vocabulary for token in tree.tokens):
        return FOREIGN_TOKEN
    if len(tree) > budget.nodes or max(tree.depths(), default=0) > budget.depth:
        return OVER_BUDGET
    return "" if all(0.0 <= score <= 1.0 for score in tree.scores) else NO_SCORE


def _obeys(tree: DraftTree, depth: int, vocabulary: int) -> bool:
    """Whether nothing of a bid must be left out or mended, which is the rule."""
    depths: list[int] = []
    for node, (token, parent, score) in enumerate(zip(tree.tokens, tree.parents, tree.scores, strict=True)):
        if not (type(token) is int and 0 <= token < vocabulary and ROOT <= parent < node):
            return False
        if not (isinstance(score, float) and 0.0 <= score <= 1.0):
            return False
        depths.append(1 if parent == ROOT else depths[parent] + 1)
    return max(depths, default=0) <= depth and len({*zip(tree.parents, tree.tokens, strict=True)}) == len(tree)
