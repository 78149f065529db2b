"""What a draft model will choose next, guessed for nothing, so that one of its passes makes several levels.

A pass of the draft model over a few rows takes little longer than over one. So the token that it is to continue from is fed
together with a few guesses at what it will choose; where it chooses one of them, the next level's logits are there already. That
is the vertical cascade of Cascade Speculative Drafting (2312.11462, section 3) with statistics below the draft model. Which tokens
are drafted does not depend on it, only how many passes that takes.

The guesses come from rows of token recycling (``recycled_rows``): the target's likeliest tokens after the same words. How often
they are right is learnt from the draft model's own choices.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Row
from functools import partial
from itertools import takewhile

from hasten.core.types import DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget
from hasten.draft.best_first import best_first
from hasten.draft.recycled_rows import LONGEST_KEY, WIDTH, RankAcceptance, RowsOfTenants, before

MOST_ROWS = 8192  # a table of a tenant, some 250 bytes each
MOST_TENANTS = 32
NAME = "cascade"


class Cascade:
    """``rows`` are those of a recycling drafter beside it; without one it has its own. What it learns of a tenant, and of greedy
    and sampled answers, stays apart."""

    likeliest_wanted = WIDTH

    def __init__(self, rows: RowsOfTenants | None = None) -> None:
        self._rows = rows or RowsOfTenants(MOST_ROWS, MOST_TENANTS)
        self._acceptance: OrderedDict[tuple[str, bool], RankAcceptance] = OrderedDict()

    def guess(self, sequence: Sequence, path: list[int], floors: Row[float], depth: int) -> DraftTree:
        """At most ``len(floors)`` tokens that may be chosen behind the sequence and ``path``, at most ``depth`` in a row; guess
        number n at least ``floors[n]`` likely."""
        follow = partial(self._rows.get(sequence.tenant).follow, acceptance=self._acceptance_of(sequence))
        return best_first(_place(sequence, path), follow, DraftBudget(len(floors), depth, floors=floors), NAME)

    def chosen(self, sequence: Sequence, path: list[int], token: int, floors: Row[float]) -> bool:
        """The draft model chose ``token`` behind the sequence and ``path``: whether it is among the guesses there, fed or not."""
        acceptance = self._acceptance_of(sequence)
        candidates = self._rows.get(sequence.tenant).candidates(_place(sequence, path))
        chances = sorted((-acceptance.chance(kind, rank), other) for other, kind, rank in candidates)
        guessed = takewhile(lambda pair: -pair[0][0] >= pair[1], zip(chances, floors, strict=False))
        foreseen = any(other == token for (_, other), _ in guessed)
        acceptance.observe(candidates, token)
        return foreseen

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        """Learn what the target found likely at every row of the tree that was verified."""
        self._rows.learn(sequence, tree, verdict)

    def _acceptance_of(self, sequence: Sequence) -> RankAcceptance:
        key = sequence.tenant, sequence.params.greedy
        found = self._acceptance.setdefault(key, RankAcceptance())
        self._acceptance.move_to_end(key)
        if len(self._acceptance) > 2 * MOST_TENANTS:
            self._acceptance.popitem(last=False)
        return found


def _place(sequence: Sequence, path: list[int]) -> tuple[int, ...]:
    tokens = [*sequence.tokens[-LONGEST_KEY:], *path]
    return before(tokens, len(tokens))
