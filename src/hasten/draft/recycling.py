"""Token Recycling (arXiv:2408.08696, section 3): what the target found likely after a token when it last saw that token.

Every verified row, of rejected nodes too, leaves the target's few likeliest successors. The paper keeps them by the row's token,
the last write wins. Here they are also kept by the row's last two and three tokens: the longest known key gives a place its
candidates, and those of the single token stand behind. Rows of accepted nodes are written after those of rejected ones.

The paper copies one template of 80 nodes. Here the tree follows from measured acceptance: once the target has chosen, its choice
is looked up among the candidates that the rows had for its place, drafted or not, so that each rank of each kind of row knows
how often it is right, with forgetting. On these chances the tree grows best-first, as large as the budget (Sequoia,
arXiv:2402.12374, section 3).

Greedy answers of SmolLM2-135M to 28 chat prompts, first candidates that were right, by key and by whether the single token's row
begins with the same candidate: three tokens .67 (same) and .38 (other), two .57 and .14, one .26; seeded rows .14. Second
candidates: .09 of all.

Rows and acceptance are a tenant's own, outlive its requests, and reach no other tenant. Cost in CPython: some 5 us a verified row,
20 us an emitted token, 100 us a tree.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from hasten.core.errors import ConfigError
from hasten.core.types import DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import LEAST_SURVIVAL, best_first

WIDTH = 8  # successors a row
LONGEST_KEY = 3  # tokens
PRIOR_STRENGTH = 40.0  # look-ups that the priors below are worth
FORGETTING = 0.998  # a kind's evidence halves in about 350 look-ups of that kind

BEHIND, SEEDED = "behind", "seeded"  # candidates of the single token behind those of a longer key; of a seeded row
_FIRST = {"3 same": 0.62, "3 other": 0.38, "2 same": 0.50, "2 other": 0.14, "1 same": 0.22, BEHIND: 0.04, SEEDED: 0.14}
_OTHERS = (0.09, 0.045, 0.025, 0.02, 0.015, 0.01, 0.01)
_OTHERS_BEHIND = (0.025, 0.02, 0.015, 0.01, 0.01, 0.005, 0.005)

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

    def follow(self, place: Key) -> Iterator[tuple[int, float, Key]]:
        """The candidates with their chances, and the places behind them."""
        for token, kind, rank in self.candidates(place):
            chance = self.acceptance.chance(kind, rank)
            if chance >= LEAST_SURVIVAL:
                yield token, chance, (*place, token)[-LONGEST_KEY:]

    def write(self, place: Key, likeliest: list[int]) -> None:
        """Keep the target's likeliest tokens after ``place``."""
        row = array("i", likeliest[:WIDTH])
        for length in range(1, len(place) + 1):
            self.tables[length - 1].write(place[-length:], row)


class RecyclingDrafter(Drafter):
    """One ``TenantRows`` a tenant. ``most_rows`` bounds each of its three tables (at most some 250 bytes a row), ``most_tenants``
    how many are kept; the one that wrote longest ago goes. Raises ConfigError for values out of range.

    The nodes cost nothing until they are verified, so only ``budget.floors`` ends a tree early.
    """

    name = "recycling"
    likeliest_wanted = WIDTH

    def __init__(self, most_rows: int = 16_384, most_tenants: int = 32) -> None:
        for label, value, high in (("most_rows", most_rows, 1 << 22), ("most_tenants", most_tenants, 1 << 16)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
                raise ConfigError(f"{label} of the recycling drafter must be a whole number from 1 to {high}, not {value!r}.")
        self._most_rows = most_rows
        self._most_tenants = most_tenants
        self._seeded: dict[int, array[int]] = {}
        self._tenants: OrderedDict[str, TenantRows] = OrderedDict()

    def seed(self, rows: Mapping[int, Iterable[int]]) -> None:
        """Give every tenant a start: the target's likeliest tokens after single tokens, the likeliest first. They must come from
        the model alone, for all tenants see them."""
        for token, successors in rows.items():
            self._seeded[token] = array("i", list(dict.fromkeys(successors))[:WIDTH])

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        """Follow the tenant's rows from the last tokens on."""
        trees: list[DraftTree] = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            rows = self._tenants.get(sequence.tenant) or TenantRows(self._most_rows, self._seeded)
            place = tuple(sequence.tokens[-LONGEST_KEY:])
            trees.append(best_first(place, rows.follow, budget, self.name))
        return trees

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        """Learn acceptance from the target's choices, then its likeliest tokens of every row. Nothing where they were not asked."""
        root = len(sequence.tokens) - _emitted(sequence.tokens, verdict.tokens)
        if not verdict.likeliest or root < 1 or root == len(sequence.tokens):
            return
        rows = self._tenant(sequence.tenant)
        for at in range(root, len(sequence.tokens)):
            rows.acceptance.observe(rows.candidates(_before(sequence.tokens, at)), sequence.tokens[at])
        places = [_before(sequence.tokens, root)]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            places.append((*places[parent + 1], token)[-LONGEST_KEY:])
        accepted = {0, *(node + 1 for node in verdict.path)}
        for row in sorted(range(len(places)), key=lambda row: row in accepted):
            rows.write(places[row], verdict.likeliest[row])

    def _tenant(self, name: str) -> TenantRows:
        rows = self._tenants.get(name)
        if rows is None:
            rows = self._tenants[name] = TenantRows(self._most_rows, self._seeded)
        self._tenants.move_to_end(name)
        if len(self._tenants) > self._most_tenants:
            self._tenants.popitem(last=False)
        return rows


def _before(tokens: list[int], end: int) -> Key:
    return tuple(tokens[max(0, end - LONGEST_KEY) : end])


def _emitted(tokens: list[int], chosen: list[int]) -> int:
    """How many of the ``chosen`` tokens stand at the end of ``tokens``: all, unless the answer ended among them."""
    for count in range(len(chosen), 0, -1):
        if tokens[-count:] == chosen[:count]:
            return count
    return 0
