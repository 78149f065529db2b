"""Verification by rejection: exact in law, not token for token, for drafts that say which laws they were drawn from.

Two rules. Both turn a tree of draws and a few coins into tokens whose joint law is the target's, whatever the draft's laws:

*tokenwise* goes down from the root. A child x drawn from Q is accepted with probability min(1, P(x) / Q(x)); when it is not,
P becomes what the draw could not deliver, (P - Q)+ normalised, and Q the law of the next draw. On a chain this is speculative
sampling (Leviathan et al. 2211.17192, Chen et al. 2302.01318); with draws without replacement, recursive rejection (RSD,
2402.14160; Sequoia, 2402.12374); with replacement, SpecInfer (2305.09781).

*traversal* goes up from the leaves (Traversal Verification, 2505.12398) and decides about whole paths; it accepts more. On a
chain this is block verification (2403.10444). It asks a little more of how a tree came about: see ``laws.DraftLaws``.

A certain child (proposed without chance) counts as a draw from the law that is certain of it; at a node it comes after the drawn
ones, which are then draws from their law without the certain children's tokens. A tree of certain children only is verified in
the law of drawing a token at each node and following it (the reference's sections 1.2 and 1.8). At temperature 0 both rules
emit what coupled verification emits.

The order of drawn siblings is part of their law: it is that of node indices, and sorting them otherwise makes the result wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from hasten.core.types import ROOT, DraftTree, SamplingParams, Verdict
from hasten.sampling.choose import token_logprob
from hasten.sampling.draws import Coins, RoundCoins
from hasten.sampling.filters import History, Logits
from hasten.sampling.laws import DraftLaws, Law, Masses, warped_law
from hasten.sampling.verify import AllowedAfter, row_after

Rule = Literal["tokenwise", "traversal"]
RULES: tuple[Rule, ...] = get_args(Rule)


def verify_rejection(
    tree: DraftTree,
    laws: DraftLaws,
    logits: torch.Tensor | Callable[[int], torch.Tensor],
    params: SamplingParams,
    seed: int,
    position: int,
    *,
    rule: Rule = "tokenwise",
    history: History | None = None,
    limit: int | None = None,
    stop_tokens: Collection[int] = (),
    allowed_after: AllowedAfter | None = None,
    vocabulary_size: int | None = None,
) -> Verdict:
    """``verify.verify_tree`` by a rejection rule: the same arguments and result, and ``laws``, which must be those of ``tree``
    (``DraftLaws.check``). The coins follow from ``seed`` and ``position`` alone.

    Rows of ``logits`` that no decision needs are not read; "traversal" may read those of nodes that it does not accept. Below a
    node whose row cannot be used nothing counts; errors of the root's row are raised.
    """
    assert limit is None or limit >= 1, "a round emits at least one token"
    rows: dict[int, Logits] = {}

    def target(node: int) -> Law | None:
        before = [tree.tokens[above] for above in tree.path(node)]
        row = row_after(node, before, logits, params, position, history, allowed_after, vocabulary_size)
        if row is None:
            return None
        rows[node], _ = row
        return warped_law(rows[node], params)

    depths = tree.depths()
    last = {node for node in range(len(tree)) if depths[node] == limit or tree.tokens[node] in stop_tokens}
    path, token = decide(tree, laws, target, RoundCoins(seed, position), rule, last)
    tokens = [tree.tokens[node] for node in path] + ([] if token is None else [token])
    verdict = Verdict(path if token is not None else path[:-1], tokens)
    if params.logprobs is not None:
        for node, chosen in zip([ROOT, *path], tokens, strict=False):
            verdict.logprobs.append(token_logprob(rows[node], chosen, params.logprobs))
    return verdict


def decide(
    tree: DraftTree,
    laws: DraftLaws,
    target: Callable[[int], Law | None],
    coins: Coins,
    rule: Rule,
    last: Collection[int] = (),
) -> tuple[list[int], int | None]:
    """The accepted nodes from the root's child down, and the token that follows them.

    ``target(node)``, asked at most once a node, is the target's law after ``node`` (or ``ROOT``). What is below the nodes in
    ``last`` does not count, and nothing follows an accepted one (None). A node without a law (None) is one of the last: whether it
    has one depends, as that does, on the tokens up to it alone. All arithmetic is that of the laws' masses.
    """
    contests = _Contests(tree, laws, target, last)
    node, rest = _upward(contests, coins) if rule == "traversal" else _downward(contests, coins)
    path = tree.path(node)
    return path, None if rest is None else int(rest.ids[coins.pick(rest.masses)])


class _Contest:
    """A node whose children are being tried: what is left of the target's law after it, and of the law its draws come from."""

    __slots__ = ("_full", "_replacement", "_seen", "_total", "left")

    def __init__(self, target: Law, draft: Law | None, taken: list[int], replacement: bool) -> None:
        """``taken``: the tokens of certain children."""
        self.left = target
        self._replacement = replacement
        if draft is not None:
            self._full = Law(draft.ids, draft.masses.copy())  # with what was drawn set to 0, not normalised
            self._seen: Masses = draft.on(target.ids)  # the same where the target can be
            self._take(taken)

    def odds(self, token: int, drawn: bool) -> tuple[Any, Any]:
        """(P(x), Q(x)) up to a common factor."""
        return (self.left.of(token) * self._total, self._full.of(token)) if drawn else (self.left.of(token), 1)

    def reject(self, token: int, drawn: bool, weight: Any = 1) -> Any:
        """Go on to (weight * P - Q)+ normalised, and to the law of the next draw; returns the sum before normalising.

        The sum is positive but for rounding: a child can only be rejected where Q exceeds P somewhere, so it falls short
        elsewhere. Where rounding made it 0, P stays as it is.
        """
        short = self.left.masses * weight
        if drawn:
            short = np.maximum(short - self._seen / self._total, 0)
            if not self._replacement:
                self._take([token])
        elif (at := self.left.place(token)) is not None:
            short[at] = 0
        total = short.sum()
        if total > 0:
            self.left = Law(self.left.ids, short / total)
        return total

    def _take(self, tokens: list[int]) -> None:
        for token in tokens:
            for masses, at in ((self._full.masses, self._full.place(token)), (self._seen, self.left.place(token))):
                if at is not None:
                    masses[at] = 0
        self._total = self._full.masses.sum()


class _Contests:
    """The contests of a tree, made when they are first needed, and the order in which children are tried."""

    def __init__(self, tree: DraftTree, laws: DraftLaws, target: Callable[[int], Law | None], last: Collection[int]) -> None:
        self.tokens, self.drawn, self.last = tree.tokens, laws.drawn, set(last)
        self._laws, self._target = laws, target
        self._children: dict[int, list[int]] = {}
        for node, parent in enumerate(tree.parents):
            self._children.setdefault(parent, []).append(node)

    def children(self, node: int) -> list[int]:
        """Drawn ones first, in the order of their indices, which is that of the draws."""
        return [] if node in self.last else sorted(self._children.get(node, []), key=lambda child: child not in self.drawn)

    def at(self, node: int) -> _Contest | None:
        """None where the target has no law: the node is one of the last from now on."""
        target = self._target(node)
        if target is None:
            self.last.add(node)
            return None
        children = self.children(node)
        certain = [self.tokens[child] for child in children if child not in self.drawn]
        draft = self._laws.at[node] if len(certain) < len(children) else None
        return _Contest(target, draft, certain, self._laws.replacement)


def _downward(contests: _Contests, coins: Coins) -> tuple[int, Law | None]:
    """Token-wise: the last accepted node, and the law of the token after it."""
    node = ROOT
    while node not in contests.last and (contest := contests.at(node)) is not None:
        for child in contests.children(node):
            token, drawn = contests.tokens[child], child in contests.drawn
            if coins.below(child, *contest.odds(token, drawn)):
                node = child
                break
            contest.reject(token, drawn)
        else:
            return node, contest.left
    return node, None


@dataclass(slots=True)
class _Visit:
    """A node on the way to a leaf. ``weight``: the probability with which the path so far would be accepted as it stands."""

    node: int
    weight: Any
    waiting: list[int]  # children not tried yet, the next one last
    contest: _Contest | None = field(default=None)


def _upward(contests: _Contests, coins: Coins) -> tuple[int, Law | None]:
    """Traversal: a node is decided once all of its children are rejected; the first that is accepted ends the search."""
    visits = [_Visit(ROOT, 1, contests.children(ROOT)[::-1])]
    while True:
        visit = visits[-1]
        if visit.waiting:
            visit.contest = visit.contest or contests.at(visit.node)
            if visit.contest is None:
                visit.waiting.clear()
                continue
            child = visit.waiting.pop()
            likely, proposed = visit.contest.odds(contests.tokens[child], child in contests.drawn)
            weighed = visit.weight * likely
            if weighed > 0:
                weight = 1 if weighed >= proposed else weighed / proposed
                visits.append(_Visit(child, weight, contests.children(child)[::-1]))
            else:  # nothing below an impossible token can be accepted
                _reject(visit, child, contests)
        elif visit.node == ROOT or coins.below(visit.node, visit.weight, 1):
            contest = visit.contest or (contests.at(visit.node) if visit.node not in contests.last else None)
            return visit.node, None if contest is None else contest.left
        else:
            visits.pop()
            _reject(visits[-1], visit.node, contests)


def _reject(visit: _Visit, child: int, contests: _Contests) -> None:
    assert visit.contest is not None, "a child is rejected where it was tried"
    short = visit.contest.reject(contests.tokens[child], child in contests.drawn, visit.weight)
    whole = short + (1 - visit.weight)
    visit.weight = short / whole if whole > 0 else 1
