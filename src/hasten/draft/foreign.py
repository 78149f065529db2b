"""A draft model of another vocabulary, e.g. SmolLM2 drafts for Qwen.

The model reads the text in its own tokens (``vocabularies.Reading``) and guesses on. Three ways to put its guesses to the target:

- "strings": it drafts in its own vocabulary, and what it wrote is encoded in the target's (SLEM, 2502.05202);
- "tokens": it chooses among the tokens that both vocabularies have, in the target's ids (token-level intersection, TLI, same
  paper), so that noise, penalties and, for verification by rejection, laws are those of the target's tokens;
- "merges": it drafts in its own vocabulary; tokens that both have are taken as they are, runs of tokens that are known to be one
  token of the target's are merged (OmniDraft's n-gram cache, 2507.02659), and a tenant's merges are learnt from its texts.

Noise goes by the target's ids wherever a token has one, so above temperature 0 guesses stay coupled to the target's choices.
Under verification by rejection the second draws and reports its laws; the others are proposals without chance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hasten.cache.blocks import BlockManager
from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, DraftTree, Sequence
from hasten.draft.base import DraftBudget
from hasten.draft.lm import DraftState, Forward, LanguageModelDrafter
from hasten.draft.vocabularies import Merges, Overlap, Reading, Telling, Vocabulary
from hasten.model.head import IntArray

MATCHES = ("strings", "tokens", "merges")
MOST_TENANTS = 32
Tell = Callable[[list[int], list[int]], list[tuple[int, int]]]


class ForeignDrafter(LanguageModelDrafter):
    """``target`` and ``own`` are the tokenizers of the two models, ``shared`` what they have in common; the rest is as in
    ``LanguageModelDrafter``. Raises ConfigError for values out of range."""

    name = "foreign"

    def __init__(
        self,
        forward: Forward,
        blocks: BlockManager,
        target: Vocabulary,
        own: Vocabulary,
        shared: Overlap,
        context_length: int,
        match: str = "strings",
        width: int = 3,
        tree: str = "chain",
        branching: tuple[int, ...] = (2, 2),
    ) -> None:
        if match not in MATCHES:
            raise ConfigError(f"match of a draft model of another vocabulary must be one of {', '.join(MATCHES)}, not {match!r}.")
        self.draws = match == "tokens"
        own_tokens = own.vocabulary_size if match != "tokens" else 0
        super().__init__(
            forward, blocks, target.vocabulary_size + own_tokens, context_length, width, tree=tree, branching=branching
        )  # fmt: skip
        self._match, self._target, self._own, self._shared = match, target, own, shared
        self._columns, self._ids = _choices(target, own, shared, match)
        self._own_ids: dict[int, int] = dict(zip(self._ids.tolist(), self._columns.tolist(), strict=True))
        self._readings: dict[int, Reading] = {}
        self._telling = Telling(target, own)
        self._merges: OrderedDict[str, Merges] = OrderedDict()

    def begin(self, sequence: Sequence) -> None:
        self._readings[sequence.id] = Reading(self._target, self._own, self._shared)
        super().begin(sequence)

    def recalled(self, sequence: Sequence) -> int:
        """In the target's tokens, of which the model's own are more or fewer."""
        return super().recalled(sequence) * len(sequence.tokens) // max(1, len(self._readings[sequence.id].tokens))

    def end(self, sequence: Sequence) -> None:
        super().end(sequence)
        self._readings.pop(sequence.id, None)

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        trees = super().propose(sequences, budgets)
        if self._match == "tokens":
            return trees
        return [
            self._told(tree, sequence, budget) for tree, sequence, budget in zip(trees, sequences, budgets, strict=True)
        ]  # fmt: skip

    @property
    def bytes(self) -> int:
        return sum(merges.bytes for merges in [*self._merges.values()])

    def _known(self, sequence: Sequence, state: DraftState) -> list[int]:
        reading = self._readings[sequence.id]
        if self._match == "merges":
            self._merges_of(sequence.tenant).learn(sequence.tokens[state.text.noted :])
            state.text.noted = len(sequence.tokens)
        state.settled = min(state.settled, reading.extend(sequence.tokens))
        return list(reading.tokens)

    def _own_id(self, token: int) -> int:
        return self._own_ids[token]

    def _pick(self, sequence: Sequence, row: Tensor) -> tuple[Tensor, IntArray | None]:
        return row[torch.from_numpy(self._columns).to(row.device)], self._ids

    def _merges_of(self, tenant: str) -> Merges:
        found = self._merges.get(tenant)
        if found is None:
            found = self._merges[tenant] = Merges(self._own, self._target, self._shared)
        self._merges.move_to_end(tenant)
        if len(self._merges) > MOST_TENANTS:
            self._merges.popitem(last=False)
        return found

    def _told(self, tree: DraftTree, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        """The tree in the target's tokens. A token's score is the product of those that it took from the draft."""
        out = DraftTree()
        parents = set(tree.parents)
        for leaf in range(len(tree)):
            if leaf in parents:
                continue
            nodes = tree.path(leaf)
            survivals = np.cumprod([1.0, *(tree.scores[node] for node in nodes)]).tolist()
            at, begun = ROOT, 0
            for depth, (token, reached) in enumerate(self._told_path(tree, nodes, sequence), start=1):
                if depth > budget.depth or len(out) >= budget.nodes:
                    break
                score = survivals[reached] / survivals[begun] if survivals[begun] > 0 else 0.0
                at, begun = out.add(at, token, min(1.0, score), self.name), reached
        return out

    def _told_path(self, tree: DraftTree, nodes: list[int], sequence: Sequence) -> list[tuple[int, int]]:
        """(target token, draft tokens begun when it ends). The end of an answer is told as such, and ends the draft."""
        tell: Tell = self._merges_of(sequence.tenant).tell if self._match == "merges" else self._telling.tell
        draft = [self._own_ids[tree.tokens[node]] for node in nodes]
        end = next((at for at, token in enumerate(draft) if token in self._own.eos_token_ids), len(draft))
        told = tell(sequence.tokens, draft[:end]) if end else []
        if end < len(draft) and (not told or told[-1][1] == end):
            told.append((self._shared.to_target[draft[end]], end + 1))
        return told


def _choices(target: Vocabulary, own: Vocabulary, shared: Overlap, match: str) -> tuple[IntArray, IntArray]:
    """The model's ids that may be chosen, and what they are called: the target's id, or one beyond its vocabulary."""
    if match == "tokens":
        return shared.own, shared.target
    allowed = [token for token in range(own.vocabulary_size) if token not in own.special_ids or token in shared.to_target]
    names = [shared.to_target.get(token, target.vocabulary_size + token) for token in allowed]
    return np.array(allowed, np.int64), np.array(names, np.int64)
