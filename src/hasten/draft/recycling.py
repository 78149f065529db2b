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
from collections.abc import Iterable, Mapping

from hasten.core.errors import ConfigError
from hasten.core.types import DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import best_first
from hasten.draft.recycled_rows import WIDTH, RowsOfTenants, before, root_of


class RecyclingDrafter(Drafter):
    """One ``TenantRows`` a tenant. ``most_rows`` bounds each of its three tables (at most some 250 bytes a row), ``most_tenants``
    how many are kept; the one that wrote longest ago goes. ``seeds``: for how many tokens, those of the lowest ids, the
    target is asked at the start what follows them (``seed``). Raises ConfigError for values out of range.

    The nodes cost nothing until they are verified, so only ``budget.floors`` ends a tree early.
    """

    name = "recycling"
    likeliest_wanted = WIDTH

    def __init__(self, most_rows: int = 16_384, most_tenants: int = 32, seeds: int = 0) -> None:
        for label, value, low, high in (
            ("most_rows", most_rows, 1, 1 << 22),
            ("most_tenants", most_tenants, 1, 1 << 16),
            ("seeds", seeds, 0, 1 << 22),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{label} of the recycling drafter must be a whole number from {low} to {high}, not {value!r}.")
        self.rows = RowsOfTenants(most_rows, most_tenants)
        self.seeds = seeds

    def seed(self, rows: Mapping[int, Iterable[int]]) -> None:
        """Give every tenant a start: the target's likeliest tokens after single tokens, the likeliest first. They must come from
        the model alone, for all tenants see them."""
        for token, successors in rows.items():
            self.rows.seeded[token] = array("i", list(dict.fromkeys(successors))[:WIDTH])

    @property
    def bytes(self) -> int:
        return self.rows.bytes

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        """Follow the tenant's rows from the last tokens on."""
        trees: list[DraftTree] = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            place = before(sequence.tokens, len(sequence.tokens))
            trees.append(best_first(place, self.rows.get(sequence.tenant).follow, budget, self.name))
        return trees

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        """Learn acceptance from the target's choices, then its likeliest tokens of every row. Nothing where they were not asked."""
        root = root_of(sequence.tokens, verdict)
        if root is None:
            return
        rows = self.rows.write(sequence.tenant)
        for at in range(root, len(sequence.tokens)):
            rows.acceptance.observe(rows.candidates(before(sequence.tokens, at)), sequence.tokens[at])
        self.rows.learn(sequence, tree, verdict)
