"""Token Recycling (arXiv:2408.08696, sections 3.1-3.3): what the target thought likely after a token, last time it saw that token.

Every verified row, of rejected nodes too, leaves the target's few likeliest successors. They are kept for the row's token, and for
the row's last two tokens, which is a better key where it is known; the last write wins, and accepted rows write last. A
tree is read off by following them. Where the paper copies one template of 80 nodes, the shape here follows from measured
acceptance: after each round the tokens that the target chose are looked up in what the tables said before, so that each rank
of each kind of row knows how often it is right (with forgetting), and the tree of any size is grown best-first on these
(Sequoia, arXiv:2402.12374).

Tables and acceptance belong to a tenant and outlive its requests. Nothing of one tenant reaches another.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import best_first

NO_TOKEN = -1
KINDS = ("pair", "rest", "token")  # by two tokens; by one, what two do not name; by one, where two are not known
PRIOR = {
    "pair": (0.50, 0.10, 0.05, 0.03, 0.02, 0.02, 0.01, 0.01),
    "rest": (0.05, 0.03, 0.02, 0.015, 0.01, 0.01, 0.01, 0.01),
    "token": (0.25, 0.08, 0.05, 0.03, 0.02, 0.02, 0.01, 0.01),
}
PRIOR_STRENGTH = 60.0
FORGETTING = 0.998  # of a kind's evidence, by each further look-up of that kind

Place = tuple[int, int]  # the last two tokens
Candidate = tuple[int, str, int]  # token, kind of row, rank in it


class RecentRows:
    """Successors by key, the last ones written; at most ``most`` keys, the longest unwritten go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: dict[object, array[int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: object) -> array[int] | None:
        return self._rows.get(key)

    def write(self, key: object, successors: array[int]) -> None:
        self._rows.pop(key, None)
        self._rows[key] = successors
        if len(self._rows) > self._most:
            del self._rows[next(iter(self._rows))]


class RankAcceptance:
    """How often the candidate of each kind and rank was what the target chose."""

    def __init__(self) -> None:
        self._seen = dict.fromkeys(KINDS, PRIOR_STRENGTH)
        self._right = {kind: [chance * PRIOR_STRENGTH for chance in PRIOR[kind]] for kind in KINDS}

    def chance(self, kind: str, rank: int) -> float:
        return self._right[kind][rank] / self._seen[kind]

    def observe(self, candidates: list[Candidate], chosen: int) -> None:
        """The target chose that token where these were the candidates."""
        for kind in {kind for _, kind, _ in candidates}:
            self._seen[kind] = self._seen[kind] * FORGETTING + 1.0
            self._right[kind] = [value * FORGETTING for value in self._right[kind]]
        for token, kind, rank in candidates:
            if token == chosen:
                self._right[kind][rank] += 1.0


@dataclass(slots=True)
class TenantRows:
    by_token: RecentRows
    by_pair: RecentRows
    acceptance: RankAcceptance = field(default_factory=RankAcceptance)

    def candidates(self, place: Place) -> list[Candidate]:
        pair = self.by_pair.get(place)
        single = self.by_token.get(place[1])
        if pair is None:
            return [] if single is None else [(token, "token", rank) for rank, token in enumerate(single)]
        out = [(token, "pair", rank) for rank, token in enumerate(pair)]
        if single is not None:
            rest = [token for token in single if token not in pair]
            out += [(token, "rest", rank) for rank, token in enumerate(rest)]
        return out

    def follow(self, place: Place) -> list[tuple[int, float, Place]]:
        return [
            (token, self.acceptance.chance(kind, rank), (place[1], token)) for token, kind, rank in self.candidates(place)
        ]

    def write(self, place: Place, likeliest: list[int]) -> None:
        row = array("i", likeliest)
        self.by_token.write(place[1], row)
        self.by_pair.write(place, row)


class RecyclingDrafter(Drafter):
    name = "recycling"
    likeliest_wanted = 8

    def __init__(self, most_rows: int = 16_384, most_tenants: int = 64) -> None:
        self._most_rows = most_rows
        self._most_tenants = most_tenants
        self._tenants: dict[str, TenantRows] = {}

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        trees: list[DraftTree] = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            rows = self._tenants.get(sequence.tenant)
            if rows is None:
                trees.append(DraftTree())
                continue
            place = place_before(sequence.tokens, len(sequence.tokens))
            trees.append(best_first(place, rows.follow, budget.nodes, budget.depth, self.name))
        return trees

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        if not verdict.likeliest:
            return
        rows = self._tenants.get(sequence.tenant)
        if rows is None:
            rows = self._tenants[sequence.tenant] = TenantRows(RecentRows(self._most_rows), RecentRows(self._most_rows))
        emitted = emitted_of(sequence.tokens, verdict.tokens)
        root = len(sequence.tokens) - emitted
        for at in range(emitted):
            candidates = rows.candidates(place_before(sequence.tokens, root + at))
            if candidates:
                rows.acceptance.observe(candidates, verdict.tokens[at])
        places = [place_before(sequence.tokens, root)]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            places.append((places[parent + 1][1], token))
        accepted = [0, *(node + 1 for node in verdict.path)]
        rejected = set(range(len(places))) - set(accepted)
        for row in [*sorted(rejected), *accepted]:
            rows.write(places[row], verdict.likeliest[row])


def place_before(tokens: list[int], end: int) -> Place:
    return (tokens[end - 2] if end > 1 else NO_TOKEN, tokens[end - 1])


def emitted_of(tokens: list[int], chosen: list[int]) -> int:
    for count in range(len(chosen), 0, -1):
        if tokens[-count:] == chosen[:count]:
            return count
    return 0
