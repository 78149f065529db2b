"""Lookahead's trie (arXiv:2312.12728, sections 3.2-3.4): what followed the last few tokens, counted over texts and requests.

``suffix`` weighs single matches in one request's text. This is its complement: counts, merged over all answers that a tenant was
given and over the present request. A *branch* is a run of up to ``ORDER`` tokens and what came after it. As in the paper the
prompt counts for its own request only, and answers for all later ones of their tenant; here an answer joins them when it ends, so
that requests that run side by side do not change each other's drafts.

A token's score is its probability by the counts, each order falling back on the next shorter one with the weight of Witten and
Bell (IEEE Trans. Inf. Theory 37(4), 1991; method C): the share of an unseen token is the number of distinct tokens seen. So the
scores of siblings sum to less than one and need no threshold of the paper's; the tree takes the likeliest branches first.

Bounded: when a tenant's store passes ``most_counts`` every count is halved and those below one go (the paper's squeeze), until
half is free. Least recently used tenants go when there are too many.
"""

from __future__ import annotations

from collections.abc import Iterable

from hasten.core.errors import ConfigError
from hasten.core.types import DraftTree, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import LEAST_SURVIVAL, best_first

ORDER = 3  # tokens of the longest branch that is looked up
ESCAPE = 2.0

Context = tuple[int, ...]


class BranchCounts:
    """How often each token followed each run of 1 to ``ORDER`` tokens. ``size`` is the number of counts kept."""

    def __init__(self) -> None:
        self.size = 0
        self._followers: dict[Context, dict[int, float]] = {}

    def add(self, tokens: list[int], start: int = 0) -> None:
        """Count what ``tokens[start:]`` followed; those before ``start`` are context only."""
        followers = self._followers
        for at in range(max(start, 1), len(tokens)):
            token = tokens[at]
            for length in range(1, min(ORDER, at) + 1):
                counts = followers.setdefault(tuple(tokens[at - length : at]), {})
                if token not in counts:
                    self.size += 1
                counts[token] = counts.get(token, 0.0) + 1.0

    def after(self, context: Context) -> dict[int, float]:
        """The counts of what followed ``context``; not to be changed."""
        return self._followers.get(context, {})

    def squeeze(self, most: int) -> None:
        """Halve all counts and drop those below one, until at most ``most`` are left; equal counts fall together."""
        while self.size > most:
            kept: dict[Context, dict[int, float]] = {}
            for context, counts in self._followers.items():
                halved = {token: count / 2 for token, count in counts.items() if count >= 2.0}
                if halved:
                    kept[context] = halved
            self._followers = kept
            self.size = sum(len(counts) for counts in kept.values())


def likely_after(stores: list[BranchCounts], context: Context) -> dict[int, float]:
    chances: dict[int, float] = {}
    for length in range(1, len(context) + 1):
        found = [counts for store in stores if (counts := store.after(context[-length:]))]
        if not found:
            break
        merged = dict(found[0])
        for counts in found[1:]:
            for token, count in counts.items():
                merged[token] = merged.get(token, 0.0) + count
        unseen = ESCAPE * len(merged)
        total = sum(merged.values()) + unseen
        chances = {token: chance * unseen / total for token, chance in chances.items()}
        for token, count in merged.items():
            chances[token] = chances.get(token, 0.0) + count / total
    return chances


class TrieDrafter(Drafter):
    name = "trie"

    def __init__(self, most_counts: int = 65_536, most_tenants: int = 16) -> None:
        self._most_counts = most_counts
        self._most_tenants = most_tenants
        self._tenants: dict[str, BranchCounts] = {}
        self._own: dict[int, tuple[BranchCounts, int]] = {}

    def begin(self, sequence: Sequence) -> None:
        own = BranchCounts()
        own.add(sequence.tokens)
        self._own[sequence.id] = (own, len(sequence.tokens))

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        trees: list[DraftTree] = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            own, counted = self._own[sequence.id]
            own.add(sequence.tokens, counted)
            self._own[sequence.id] = (own, len(sequence.tokens))
            shared = self._tenants.get(sequence.tenant)
            stores = [own] if shared is None else [own, shared]

            def follow(context: Context, stores: list[BranchCounts] = stores) -> Iterable[tuple[int, float, Context]]:
                for token, chance in likely_after(stores, context).items():
                    if chance >= LEAST_SURVIVAL:
                        yield token, chance, (*context, token)[-ORDER:]

            trees.append(best_first(tuple(sequence.tokens[-ORDER:]), follow, budget.nodes, budget.depth, self.name))
        return trees

    def end(self, sequence: Sequence) -> None:
        if self._own.pop(sequence.id, None) is None or not sequence.output_length:
            return
        shared = self._tenants.setdefault(sequence.tenant, BranchCounts())
        shared.add(sequence.tokens[max(0, sequence.prompt_length - ORDER) :], min(ORDER, sequence.prompt_length))
