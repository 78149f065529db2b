"""Laws of the next token: the target's after all filters, and those that a draft's tokens were drawn from.

A law lists the tokens that are possible and their masses. The arithmetic is NumPy's on arrays of float64; arrays of exact
fractions (dtype object) go through the same code, so that small cases can be enumerated without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.core.types import ROOT, DraftTree, SamplingParams
from hasten.sampling.filters import Logits, kept, largest, weights
from hasten.sampling.noise import IntArray

Masses = npt.NDArray[Any]
"""float64, or object for exact fractions; one entry a token."""

_FEW = 2048  # where both of two laws list more tokens, a table over the vocabulary is faster than looking them up


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """Probabilities over a few tokens or over all of a vocabulary. ``ids``: int64 [k], ascending; ``masses``: [k], at least 0,
    of sum 1. Tokens that are not listed are impossible. Read only."""

    ids: IntArray
    masses: Masses

    def place(self, token: int) -> int | None:
        """Where ``token`` stands in the arrays, or None; any integer may be asked for."""
        if len(self.ids) == 0 or not self.ids[0] <= token <= self.ids[-1]:
            return None
        at = int(np.searchsorted(self.ids, token))
        return at if self.ids[at] == token else None

    def of(self, token: int) -> Any:
        """The probability of ``token``, 0 where it is impossible."""
        at = self.place(token)
        return 0 if at is None else self.masses[at]

    def on(self, ids: IntArray) -> Masses:
        """The probabilities of ``ids`` (ascending), as an array of its own."""
        out: Masses = np.zeros(len(ids), self.masses.dtype)
        if min(len(ids), len(self.ids)) > _FEW:
            dense: Masses = np.zeros(1 + int(max(ids[-1], self.ids[-1])), self.masses.dtype)
            dense[self.ids] = self.masses
            return dense[ids]
        if len(self.ids) < len(ids):
            at = np.minimum(np.searchsorted(ids, self.ids), len(ids) - 1)
            hit = ids[at] == self.ids
            out[at[hit]] = self.masses[hit]
        elif len(ids):
            at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
            hit = self.ids[at] == ids
            out[hit] = self.masses[at[hit]]
        return out


def warped_law(values: Logits, params: SamplingParams) -> Law:
    """The law that ``choose`` draws from, of a row that ``filters.adjusted`` has returned: the same temperature, top-k, top-p
    and min-p. At temperature 0, as at top-p 0, all mass is on the largest value, the lowest id on ties."""
    if params.greedy:
        return Law(np.array([values.argmax()], np.int64), np.ones(1))
    ids = kept(values, params)
    weight = weights(values if ids is None else values[ids], params.temperature)
    weight /= weight.sum()
    return Law(np.arange(len(values)) if ids is None else ids, weight)


def likeliest(law: Law, count: int) -> Law:
    """``law`` given that one of its ``count`` likeliest tokens (the lowest ids of equals) is drawn.

    A draft may draw from this instead: it then has less to carry, and every rule stays exact for the law that was drawn from.
    """
    if count >= len(law.ids):
        return law
    for reach in (1e-3, 1e-6, 0.0):  # finding the head costs less than ranking everything
        pool = np.flatnonzero(law.masses >= law.masses.max() * reach)
        if len(pool) >= count:
            break
    best = pool[largest(law.masses[pool], count)]
    masses = law.masses[best]
    return Law(law.ids[best], masses / masses.sum())


@dataclass(slots=True)
class DraftLaws:
    """How the nodes of a tree came to be: what a rejection rule must know of a draft besides its tokens.

    A node in ``drawn`` was drawn from ``at[its parent]`` (``ROOT`` included), given the drawn siblings of smaller index: without
    replacement, in the order of node indices. With ``replacement`` each was drawn from the law itself, and a token drawn twice
    is two nodes. Every other node is *certain*: proposed without chance, or with chance but also by somebody else without.

    Which draws stand in the tree must not depend on what was drawn (the non-anticipation rule): whether the k-th drawn child
    of a node is there may depend on the tokens above it, on its earlier siblings and on all laws so far, never on its own
    token, its probability or what hangs below it. So a tree may lose the last drawn children of a node, for reasons that do
    not look at them, but not the unlikely ones; and a choice of the best nodes by score must settle one node after the other,
    parents and earlier siblings first, and stop without having looked at what it leaves out. Certain nodes may come and go
    for any reason, but must not be chosen in view of what was drawn beside them.

    That is enough for the rule "tokenwise". "traversal" needs one such order for all of the tree: each node's being there is
    settled before its token and those of all later nodes. A tree that is verified as it was grown has one.

    To call a drawn node certain is always exact, and accepts less: the way out for a drafter that cannot say what it drew from.
    (Not beside nodes that stay drawn from the same law.)

    Draws whose repetitions were dropped are draws without replacement: whether a draw repeats an earlier one says nothing about
    what the next new one will be.
    """

    at: dict[int, Law] = field(default_factory=dict)
    drawn: set[int] = field(default_factory=set)
    replacement: bool = False

    def keep(self, nodes: set[int]) -> DraftLaws:
        """The laws that go with ``DraftTree.keep(nodes)``."""
        place = {ROOT: ROOT} | {node: index for index, node in enumerate(sorted(nodes))}
        at = {place[node]: law for node, law in self.at.items() if node in place}
        return DraftLaws(at, {place[node] for node in self.drawn & nodes}, self.replacement)

    def check(self, tree: DraftTree) -> None:
        """Raise ValueError when these cannot be the laws that ``tree`` was drawn from."""
        for law in self.at.values():
            if len(law.ids) == 0 or law.ids.shape != law.masses.shape or bool((np.diff(law.ids) <= 0).any()):
                raise ValueError("a draft law needs ascending ids and one mass for each")
            if not bool((law.masses >= 0).all()) or not abs(float(law.masses.sum()) - 1.0) <= 1e-6:
                raise ValueError("the masses of a draft law must be at least 0 and sum to 1")
        seen: set[tuple[int, int]] = set()
        for node in sorted(self.drawn):
            if not 0 <= node < len(tree):
                raise ValueError("a drawn node is not in the tree")
            parent, token = tree.parents[node], tree.tokens[node]
            if parent not in self.at or not self.at[parent].of(token) > 0:
                raise ValueError("a drawn node is impossible under the law it was drawn from")
            if not self.replacement and (parent, token) in seen:
                raise ValueError("a token was drawn twice without replacement")
            seen.add((parent, token))


def merge(tree: DraftTree, laws: DraftLaws, other: DraftTree, other_laws: DraftLaws) -> None:
    """``tree.merge(other)`` that keeps ``laws`` in step: what anybody proposes without chance becomes certain.

    Both must be free of repeated siblings. Raises ValueError, and changes nothing, when children of the root were drawn in
    both: two draws of one node would need the law of both together.
    """
    if laws.at and other_laws.at:
        raise ValueError("only one of the drafters that share a tree may draw its tokens by chance")
    placed = {ROOT: ROOT}
    for node, (token, parent) in enumerate(zip(other.tokens, other.parents, strict=True)):
        size = len(tree)
        at = placed[node] = tree.join(placed[parent], token, other.scores[node], other.drafters[node])
        if node not in other_laws.drawn:
            laws.drawn.discard(at)
        elif at == size:
            laws.drawn.add(at)
    laws.at.update({placed[node]: law for node, law in other_laws.at.items()})
