"""The target's likeliest tokens at verified rows, for drafters that learn from them, and who pays for finding them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hasten.control.rounds import Round, share_out
from hasten.draft.base import Drafter
from hasten.sampling.likeliest import likeliest


@dataclass(slots=True)
class LikeliestRows:
    """``logits`` [rows, vocabulary] of a step, and what was ``found`` in them."""

    logits: Tensor | None = None
    found: list[list[int]] = field(default_factory=list)

    def know(self, logits: Tensor, likeliest: Tensor) -> None:
        """Take what the head has told, unless some row has fewer logits above -infinity."""
        self.forget()
        found = likeliest.tolist()
        if all(row[-1] >= 0 for row in found):
            self.logits, self.found = logits, found

    def look(self, logits: Tensor, asked: Sequence[tuple[Round, Sequence[Drafter]]], clock: Callable[[], float]) -> None:
        """Look through all rows at once where drafters of more than one round want to know: fewer calls, and threads share more."""
        self.forget()
        wanting = [(round, drafter) for round, drafters in asked for drafter in drafters if drafter.likeliest_wanted]
        if len({round.sequence for round, _ in wanting}) < 2:
            return
        started = clock()
        self.logits, self.found = logits, likeliest(logits, max(drafter.likeliest_wanted for _, drafter in wanting))
        share_out(clock() - started, [(round, drafter.name) for round, drafter in wanting])

    def forget(self) -> None:
        """The step is over, and its logits are let go."""
        self.logits, self.found = None, []

    def find(self, rows: Tensor, drafters: Sequence[Drafter], round: Round | None, clock: Callable[[], float]) -> list[list[int]]:
        """Of each of ``rows``, which may be a slice of what was looked at; nothing where none of the drafters wants to know."""
        wanting = [drafter for drafter in drafters if drafter.likeliest_wanted]
        if not wanting:
            return []
        known = self._known(rows)
        if known is not None:
            return known
        started = clock()
        found = likeliest(rows, max(drafter.likeliest_wanted for drafter in wanting))
        if round is not None:
            share_out(clock() - started, [(round, drafter.name) for drafter in wanting])
        return found

    def _known(self, rows: Tensor) -> list[list[int]] | None:
        whole = self.logits
        if whole is None or rows.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return None
        first, rest = divmod(int(rows.storage_offset()) - int(whole.storage_offset()), whole.stride(0))
        within = rest == 0 and first >= 0 and first + len(rows) <= len(self.found)
        return self.found[first : first + len(rows)] if within else None
