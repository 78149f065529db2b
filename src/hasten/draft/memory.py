"""Guess that the model says again what it once said to this tenant: its own past outputs, kept over requests and restarts.

In the spirit of SuffixDecoding's global tree (arXiv:2411.04975, section 3): wherever the end of the text occurs in an earlier
output, longest and most recent matches first, what followed there is guessed. Each output is kept with the last tokens of its
prompt, which are never proposed, so that a repeated question is recognised from its first token on.

Tenants do not share: each has its own texts in memory and rows on disk, found by its name only. Outputs of another vocabulary are
never read. The oldest outputs go first when a bound is reached.

The scores are probabilities as far as they can be before it is known whether the question is new. Replayed on the greedy answers of
a 135M model to 156 prompts (chat, translation, summaries, retrieval, mathematics, code), 16 nodes a round, each prompt once, then
all again, for the nodes whose parent was accepted:

    score               .05  .14  .24  .34  .45  .55  .65  .75  .85  .96
    accepted, new       .04  .14  .21  .31  .36  .44  .48  .61  .70  .85
    accepted, repeated  .00  .32  .51  .52  .52  .71  .85  .94 1.00 1.00

Tokens a round there, the model's own included: 1.25 new, 15.3 repeated. Cost in CPython: 90 to 160 us a tree.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np

from hasten.core.errors import ConfigError
from hasten.core.types import DraftTree, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.best_first import best_first
from hasten.draft.matches import LONGEST_MATCH, vote
from hasten.draft.output_store import OutputStore
from hasten.draft.recent_texts import RecentTexts, fit

PROMPT_END = 16  # tokens of the prompt kept before an output
SHORTEST_OUTPUT = 4  # a shorter one is not worth a row
ESCAPE = 16.0  # weight of "something new", as much as the latest match of three tokens
DOUBT = 0.02


class MemoryDrafter(Drafter):
    """One ``RecentTexts`` a tenant, filled from ``path`` when the tenant first asks; None keeps nothing over a restart.

    ``vocabulary`` is the tokenizer's fingerprint: what one vocabulary wrote means nothing to another. ``tokens`` bounds what is
    kept of a tenant, ``tenants`` how many are held in memory at once (the one that asked longest ago goes; it comes back from disk)
    and, times ``tokens``, what lies on disk. Raises ConfigError for values out of range; never because of the file.
    """

    name = "memory"

    def __init__(self, path: Path | str | None = None, vocabulary: str = "", tokens: int = 262_144, tenants: int = 16) -> None:
        for label, value, low, high in (("tokens", tokens, 1024, 1 << 26), ("tenants", tenants, 1, 1024)):
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{label} of the memory drafter must be a whole number from {low} to {high}, not {value!r}.")
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._tenants = tenants
        self._texts: OrderedDict[str, RecentTexts] = OrderedDict()
        self._store = None if path is None else OutputStore(Path(os.fspath(path)), tokens, tokens * tenants)

    @property
    def bytes(self) -> int:
        """Memory of all tenants' texts."""
        return sum(texts.bytes for texts in [*self._texts.values()])

    def begin(self, sequence: Sequence) -> None:
        """Have the tenant's outputs in memory."""
        self._of(sequence.tenant)

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        """What followed the end of each sequence in its tenant's outputs."""
        trees = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            if budget.nodes < 1 or budget.depth < 1:
                trees.append(DraftTree())
                continue
            start = self._of(sequence.tenant).matches(sequence.tokens[-LONGEST_MATCH:])
            trees.append(best_first(start, lambda found: vote(found, ESCAPE, DOUBT), budget, self.name))
        return trees

    def end(self, sequence: Sequence) -> None:
        """Keep the output, in memory and, in one transaction, on disk."""
        if sequence.output_length < SHORTEST_OUTPUT:
            return
        first = max(0, sequence.prompt_length - PROMPT_END)
        kept = np.array(sequence.tokens[first:], dtype=np.int32)
        context = sequence.prompt_length - first
        kept, context = fit(kept, context, self._tokens)
        if self._of(sequence.tenant).add(kept, context) and self._store is not None:
            self._store.save(sequence.tenant, self._vocabulary, kept, context)

    def _of(self, tenant: str) -> RecentTexts:
        texts = self._texts.get(tenant)
        if texts is None:
            texts = RecentTexts(self._tokens)
            if self._store is not None:
                texts.fill(self._store.load(tenant, self._vocabulary))
            self._texts[tenant] = texts
            while len(self._texts) > self._tenants:
                self._texts.popitem(last=False)
        self._texts.move_to_end(tenant)
        return texts
