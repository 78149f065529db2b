"""Draft model: a smaller model of the same vocabulary guesses ahead, with the target's own noise (shared-noise drafting).

It chooses each token as the target will (``sampling.choose``: same seed, same position) from its own logits, so at temperature 0
and above alike it proposes what the target would draw if the two agreed (Daliri et al. 2025; ERSD 2504.15475). The chain is the
first choice of each level; a level's next best choices hang beside it as leaves, which cost a verify row and no draft pass.
With a trimmed head (``trim``) it chooses among part of the vocabulary, under the same noise.

Before a level is computed the chain's survival is compared with the budget's minimum: AdaEDL's idea (2410.18351) of stopping on
the draft's own certainty, with the threshold set by measured cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from hasten.cache.blocks import BlockManager
from hasten.core.errors import OutOfBlocks
from hasten.core.types import BLOCK_SIZE, ROOT, Batch, DraftTree, Segment, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.shortlist import Shortlists
from hasten.model.head import TrimmedHead
from hasten.sampling.filters import History
from hasten.sampling.guess import choose_several

Forward = Callable[[Batch], Tensor]
LARGEST_CHUNK = 512


@dataclass(slots=True)
class DraftState:
    """What the draft model's pool holds of one sequence: keys and values of ``fed``, of which ``settled`` are known to be the
    sequence's own tokens."""

    fed: list[int] = field(default_factory=list)
    settled: int = 0
    blocks: list[int] = field(default_factory=list)
    history: History | None = None
    counted: int = 0  # output tokens that the history has seen
    noted: int = 0  # tokens that the shortlist has seen


@dataclass(slots=True)
class Growing:
    """One sequence's tree while it is drafted. ``waiting`` are tokens to feed before its next choice."""

    sequence: Sequence
    budget: DraftBudget
    state: DraftState
    waiting: list[int]
    tree: DraftTree = field(default_factory=DraftTree)
    node: int = ROOT
    path: list[int] = field(default_factory=list)
    survival: float = 1.0
    unsure: bool = False  # the next level has more entropy than the budget allows


class LanguageModelDrafter(Drafter):
    """``forward`` runs the draft model over a batch (an executor's); ``blocks`` manages its pool; ``vocabulary`` is the number of
    ids the target may choose; ``width`` the choices kept a level; ``head`` is the model's, where that is a trimmed one."""

    name = "lm"
    paid = True

    def __init__(
        self,
        forward: Forward,
        blocks: BlockManager,
        vocabulary: int,
        context_length: int,
        width: int = 3,
        head: TrimmedHead | None = None,
    ) -> None:
        self.seconds_per_level: float | None = None
        self._forward = forward
        self._blocks = blocks
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._width = width
        self._shortlists = None if head is None else Shortlists(head, vocabulary)
        self.likeliest_wanted = 0 if head is None else Shortlists.likeliest_wanted
        self.positions = blocks.num_blocks * BLOCK_SIZE
        self._states: dict[int, DraftState] = {}

    def begin(self, sequence: Sequence) -> None:
        self._states[sequence.id] = DraftState()
        if self._shortlists is not None:
            self._shortlists.begin(sequence.id)

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        if self._shortlists is not None:
            self._shortlists.note(sequence.id, (token for row in verdict.likeliest for token in row))

    def end(self, sequence: Sequence) -> None:
        if self._shortlists is not None:
            self._shortlists.end(sequence.id)
        state = self._states.pop(sequence.id, None)
        if state is not None:
            self._blocks.free(state.blocks)

    def pass_seconds(self, rows: int, context: int) -> float:
        blocks = self._blocks.allocate(-(-(context + rows) // BLOCK_SIZE))
        started = time.perf_counter()
        self._forward(Batch([Segment(blocks, context, [0] * rows, first_logit=rows - 1)])).sum().item()
        spent = time.perf_counter() - started
        self._blocks.free(blocks)
        return spent

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        growing = [self._start(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        active = [g for g in growing if g is not None and self._catch_up(g)]
        if self._shortlists is not None:
            self._shortlists.prepare()
        spent, levels = 0.0, 0
        while active:
            started = time.perf_counter()
            logits = self._forward(Batch([self._segment(g) for g in active]))
            for row, g in enumerate(active):
                self._grow(g, logits[row])
            spent += time.perf_counter() - started
            levels += 1
            active = [g for g in active if self._continues(g)]
        if levels:
            self.seconds_per_level = spent / levels
        return [DraftTree() if g is None else g.tree for g in growing]

    def _start(self, sequence: Sequence, budget: DraftBudget) -> Growing | None:
        """Line the draft's memory up with what was committed; None where there is nothing to draft."""
        if budget.nodes < 1 or budget.depth < 1 or len(sequence.tokens) + 1 >= self._context_length:
            return None
        state = self._states[sequence.id]
        known = sequence.tokens
        while state.settled < min(len(state.fed), len(known) - 1) and state.fed[state.settled] == known[state.settled]:
            state.settled += 1
        del state.fed[state.settled :]
        if sequence.params.needs_history:
            if state.history is None:
                state.history = History(known[: sequence.prompt_length])
            state.history.extend(known[sequence.prompt_length + state.counted :])
            state.counted = sequence.output_length
        if self._shortlists is not None:
            self._shortlists.note(sequence.id, known[state.noted :])
            state.noted = len(known)
        return Growing(sequence, budget, state, known[state.settled :])

    def _catch_up(self, g: Growing) -> bool:
        """Feed all but a last few waiting tokens in chunks; False when the pool has no room for this sequence."""
        while len(g.waiting) > BLOCK_SIZE:
            chunk = g.waiting[: min(LARGEST_CHUNK, len(g.waiting) - 1)]
            if not self._make_room(g.state, len(g.state.fed) + len(chunk)):
                return False
            self._forward(Batch([Segment(g.state.blocks, len(g.state.fed), chunk, first_logit=len(chunk))]))
            g.state.fed += chunk
            g.state.settled = len(g.state.fed)
            g.waiting = g.waiting[len(chunk) :]
        deepest = len(g.state.fed) + len(g.waiting) + g.budget.depth
        return self._make_room(g.state, min(deepest, self._context_length))

    def _make_room(self, state: DraftState, positions: int) -> bool:
        missing = -(-positions // BLOCK_SIZE) - len(state.blocks)
        try:
            state.blocks += self._blocks.allocate(max(0, missing))
        except OutOfBlocks:
            return False
        return True

    def _segment(self, g: Growing) -> Segment:
        return Segment(g.state.blocks, len(g.state.fed), g.waiting, first_logit=len(g.waiting) - 1)

    def _grow(self, g: Growing, logits: Tensor) -> None:
        """Add one level: the choice that the chain goes on with, and its runners-up as leaves."""
        sequence, history = g.sequence, g.state.history
        g.state.fed += g.waiting
        if g.path and g.budget.most_entropy < inf and entropy(logits, sequence.params.temperature or 1.0) > g.budget.most_entropy:
            g.unsure = True
            return
        ids = None
        if self._shortlists is not None:
            logits, ids = self._shortlists.pick(sequence.id, logits)
        choices = choose_several(
            logits,
            sequence.params,
            sequence.seed,
            len(sequence.tokens) + len(g.path),
            self._width,
            history=history.with_path(g.path) if history is not None else None,
            vocabulary_size=self._vocabulary,
            ids=ids,
        )
        parent = g.node
        for rank, (token, probability) in enumerate(choices):
            if len(g.tree) >= g.budget.nodes:
                break
            node = g.tree.add(parent, token, probability, self.name)
            if rank == 0:
                g.node = node
                g.path.append(token)
                g.survival *= g.budget.calibrated(probability)
                g.waiting = [token]

    def _continues(self, g: Growing) -> bool:
        return (
            not g.unsure
            and len(g.path) < g.budget.depth
            and len(g.tree) < g.budget.nodes
            and g.survival >= g.budget.minimum_survival
            and len(g.state.fed) + 1 < self._context_length
        )


def entropy(logits: Tensor, temperature: float) -> float:
    """Of the law of one row, in nats."""
    law = torch.log_softmax(logits.double() / temperature, dim=-1)
    return float(-(law.exp() * law).nan_to_num(0.0).sum())
