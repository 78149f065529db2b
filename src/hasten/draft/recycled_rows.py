"""What the target found likely after a place when it last saw that place: tables of rows, and how often their candidates are right.

A place is the last one, two and three tokens; see ``recycling``, whose drafts come from here, and ``cascade``, which guesses a
draft model's choices from the same.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from hasten.core.types import DraftTree, Sequence, Verdict
from hasten.draft.best_first import LEAST_SURVIVAL

WIDTH = 8  # successors a row
LONGEST_KEY = 3  # tokens
PRIOR_STRENGTH = 40.0  # look-ups that the priors below are worth
FORGETTING = 0.998  # a kind's evidence halves in about 350 look-ups of that kind

BEHIND, SEEDED = "behind", "seeded"  # candidates of the single token behind those of a longer key; of a seeded row
_FIRST = {"3 same": 0.62, "3 other": 0.38, "2 same": 0.50, "2 other": 0.14, "1 same": 0.22, BEHIND: 0.04, SEEDED: 0.14}
_OTHERS = (0.09, 0.045, 0.025, 0.02, 0.015, 0.01, 0.01)
_OTHERS_BEHIND = (0.025, 0.02, 0.015, 0.01, 0.01, 0.005, 0.005)

BYTES = 250  # of memory a row, about

Key = tuple[int, ...]  # the last tokens before a place, at most ``LONGEST_KEY``
Candidate = tuple[int, str, int]  # token, kind, rank among those of its kind


class RecentRows:
    """Successors by key; beyond ``most`` keys those written longest ago go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: OrderedDict[Key, array[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: Key) -> array[int] | None:
        """The successors last written for ``key``, the likeliest first."""
        return self._rows.get(key)

    def write(self, key: Key, successors: array[int]) -> None:
        """Replace what is known of ``key``."""
        self._rows[key] = successors
        self._rows.move_to_end(key)
        if len(self._rows) > self._most:
            self._rows.popitem(last=False)


class RankAcceptance:
    """How often the candidate of a kind and rank was what the target chose. Starts at the priors."""

    def __init__(self) -> None:
        self._seen = dict.fromkeys(_FIRST, PRIOR_STRENGTH)
        self._right: dict[str, list[float]] = {}
        for kind, first in _FIRST.items():
            chances = (first, *(_OTHERS_BEHIND if kind in (BEHIND, SEEDED) else _OTHERS))
            self._right[kind] = [chance * PRIOR_STRENGTH for chance in chances]

    def chance(self, kind: str, rank: int) -> float:
        """P(the target chooses that candidate)."""
        return self._right[kind][rank] / self._seen[kind]

    def observe(self, candidates: list[Candidate], chosen: int) -> None:
        """The target chose ``chosen`` at a place that had these candidates."""
        for kind in {kind for _, kind, _ in candidates}:
            self._seen[kind] = self._seen[kind] * FORGETTING + 1.0
            self._right[kind] = [count * FORGETTING for count in self._right[kind]]
        for token, kind, rank in candidates:
            if token == chosen:
                self._right[kind][rank] += 1.0


class TenantRows:
    """What one tenant's requests have left: rows by the last one, two and three tokens, each at most ``most``, and acceptance.

    ``seeded`` are rows by single token that no tenant's request has left; they answer where nothing else is known.
    """

    def __init__(self, most: int, seeded: Mapping[int, array[int]]) -> None:
        self.tables = [RecentRows(most) for _ in range(LONGEST_KEY)]
        self.acceptance = RankAcceptance()
        self._seeded = seeded

    def candidates(self, place: Key) -> list[Candidate]:
        """What may follow ``place``; tokens are distinct."""
        if not place:
            return []
        single = self.tables[0].get(place[-1:])
        for length in range(len(place), 1, -1):
            row = self.tables[length - 1].get(place[-length:])
            if row is not None:
                same = single is not None and single[0] == row[0]
                kind = f"{length} same" if same else f"{length} other"
                out = [(token, kind, rank) for rank, token in enumerate(row)]
                behind = [token for token in single or () if token not in row]
                return out + [(token, BEHIND, rank) for rank, token in enumerate(behind)]
        if single is not None:
            return [(token, "1 same", rank) for rank, token in enumerate(single)]
        return [(token, SEEDED, rank) for rank, token in enumerate(self._seeded.get(place[-1], ()))]

    def follow(self, place: Key, acceptance: RankAcceptance | None = None) -> Iterator[tuple[int, float, Key]]:
        """The candidates with their chances, and the places behind them. ``acceptance`` where somebody else chooses than the
        target."""
        believed = acceptance or self.acceptance
        for token, kind, rank in self.candidates(place):
            chance = believed.chance(kind, rank)
            if chance >= LEAST_SURVIVAL:
                yield token, chance, (*place, token)[-LONGEST_KEY:]

    def learn(self, tokens: list[int], root: int, tree: DraftTree, verdict: Verdict) -> None:
        """Keep the target's likeliest tokens at every row of a verified tree whose root stood at ``tokens[root - 1]``; those of
        accepted nodes are written after those of rejected ones."""
        places = [before(tokens, root)]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            places.append((*places[parent + 1], token)[-LONGEST_KEY:])
        accepted = {0, *(node + 1 for node in verdict.path)}
        for row in sorted(range(len(places)), key=lambda row: row in accepted):
            self._write(places[row], array("i", verdict.likeliest[row][:WIDTH]))

    def _write(self, place: Key, row: array[int]) -> None:
        for length in range(1, len(place) + 1):
            self.tables[length - 1].write(place[-length:], row)


class RowsOfTenants:
    """One ``TenantRows`` a tenant, each of at most ``most_rows`` keys a table; of more than ``most_tenants`` the one that wrote
    longest ago goes."""

    def __init__(self, most_rows: int, most_tenants: int) -> None:
        self._most_rows, self._most_tenants = most_rows, most_tenants
        self._tenants: OrderedDict[str, TenantRows] = OrderedDict()
        self.seeded: dict[int, array[int]] = {}
        self._learnt: Verdict | None = None

    @property
    def bytes(self) -> int:
        """Of memory, about."""
        rows = sum(len(table) for tenant in [*self._tenants.values()] for table in tenant.tables)
        return BYTES * (rows + len(self.seeded))

    def learn(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        """Keep what the target found likely at every row of the sequence's tree that was verified; nothing where that was not asked
        for, and once, however many drafters tell of it."""
        root = root_of(sequence.tokens, verdict)
        if root is not None and verdict is not self._learnt:
            self._learnt = verdict
            self.write(sequence.tenant).learn(sequence.tokens, root, tree, verdict)

    def get(self, tenant: str) -> TenantRows:
        """To look things up; what is written there of a tenant that has none yet is lost."""
        return self._tenants.get(tenant) or TenantRows(self._most_rows, self.seeded)

    def write(self, tenant: str) -> TenantRows:
        """To write to."""
        rows = self._tenants.get(tenant)
        if rows is None:
            rows = self._tenants[tenant] = TenantRows(self._most_rows, self.seeded)
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > self._most_tenants:
            self._tenants.popitem(last=False)
        return rows


def before(tokens: list[int], end: int) -> Key:
    return tuple(tokens[max(0, end - LONGEST_KEY) : end])


def root_of(tokens: list[int], verdict: Verdict) -> int | None:
    """Where the first token of the verdict stands in ``tokens``, which end with all of it, or with as much as the answer still
    took. None where the target's likeliest tokens were not asked for, or nothing stands before it."""
    for count in range(len(verdict.tokens), 0, -1):
        if tokens[-count:] == verdict.tokens[:count]:
            return len(tokens) - count if verdict.likeliest and count < len(tokens) else None
    return None
