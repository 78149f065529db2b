"""Draft model: a smaller model of the same vocabulary guesses ahead, with the target's own noise (shared-noise drafting).

It chooses each token as the target will (``sampling.choose``: same seed, same position) from its own logits, so at temperature 0
and above alike it proposes what the target would draw if the two agreed (Daliri et al. 2025; ERSD 2504.15475). By default the tree
is a chain of first choices; a level's next best choices hang beside it as leaves, which cost a verify row and no draft pass.
Other trees, and what is different where drafts are verified by rejection, are in ``growth``. With a trimmed head (``trim``) it
chooses among part of the vocabulary, under the same noise.

Before a level is computed the best survival is compared with the budget's minimum: AdaEDL's idea (2410.18351) of stopping on
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
from hasten.core.types import BLOCK_SIZE, Batch, DraftTree, Segment, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.growth import Growing, Shape
from hasten.draft.shortlist import Shortlists
from hasten.model.head import IntArray, TrimmedHead
from hasten.sampling.filters import History
from hasten.sampling.guess import Guess, draft_law, guesses
from hasten.sampling.laws import DraftLaws

Forward = Callable[[Batch], Tensor]
LARGEST_CHUNK = 512
MOST_FRESH = 2  # tokens a sequence that a level reads beside guessing; a pass that reads more says nothing about what levels take


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
class Feeding:
    """A tree that is being drafted and how the model gets to see it. ``waiting`` are tokens to feed before its next level: at
    first the known ones it has not seen, then a chain's last. Other trees are fed whole, behind the last known token."""

    growing: Growing
    state: DraftState
    known: list[int]
    waiting: list[int]
    first_row: int = 0  # of the frontier, among the rows of the tree


class LanguageModelDrafter(Drafter):
    """``forward`` runs the draft model over a batch (an executor's); ``blocks`` manages its pool; ``vocabulary`` is the number of
    ids the target may choose; ``tree``, ``width`` and ``branching`` as in ``growth.Shape``; ``head`` is the model's, where that is
    a trimmed one. Raises ConfigError for values out of range."""

    name = "lm"
    paid = True
    draws = True

    def __init__(
        self,
        forward: Forward,
        blocks: BlockManager,
        vocabulary: int,
        context_length: int,
        width: int = 3,
        head: TrimmedHead | None = None,
        tree: str = "chain",
        branching: tuple[int, ...] = (2, 2),
    ) -> None:
        self.seconds_per_level: float | None = None
        self._forward = forward
        self._blocks = blocks
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._shape = Shape(tree, width, branching)
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
        return [tree for tree, _ in self._draft(sequences, budgets, drawing=False)]

    def draw(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[tuple[DraftTree, DraftLaws]]:
        return self._draft(sequences, budgets, drawing=True)

    # What a model of another vocabulary does differently (``foreign``)

    def _known(self, sequence: Sequence, state: DraftState) -> list[int]:
        """The sequence in the model's own token ids; what changed of it since the last call must not count as settled."""
        return sequence.tokens

    def _own_id(self, token: int) -> int:
        """The model's id of a token that ``_pick`` offered."""
        return token

    def _pick(self, sequence: Sequence, row: Tensor) -> tuple[Tensor, IntArray | None]:
        """Of a row of the model's logits those that may be proposed, and the target's ids of them; None: 0, 1, 2 ..."""
        return (row, None) if self._shortlists is None else self._shortlists.pick(sequence.id, row)

    # One round

    def _draft(self, sequences: list[Sequence], budgets: list[DraftBudget], drawing: bool) -> list[tuple[DraftTree, DraftLaws]]:
        feeds = [self._start(sequence, budget, drawing) for sequence, budget in zip(sequences, budgets, strict=True)]
        active = [feed for feed in feeds if feed is not None and self._catch_up(feed)]
        if self._shortlists is not None:
            self._shortlists.prepare()
        reads = sum(len(feed.waiting) for feed in active) > MOST_FRESH * len(active)
        seconds: list[float] = []
        while active:
            started = time.perf_counter()
            logits = self._forward(Batch([self._segment(feed) for feed in active]))
            row = 0
            for feed in active:
                rows = len(feed.growing.frontier)
                self._grow(feed, logits[row : row + rows])
                row += rows
            seconds.append(time.perf_counter() - started)
            active = [feed for feed in active if feed.growing.continues and self._has_context(feed)]
        levels = seconds[1:] if reads else seconds
        if levels:
            self.seconds_per_level = sum(levels) / len(levels)
        return [(DraftTree(), DraftLaws()) if feed is None else (feed.growing.tree, feed.growing.laws) for feed in feeds]

    def _start(self, sequence: Sequence, budget: DraftBudget, drawing: bool) -> Feeding | None:
        """Line the draft's memory up with what was committed; None where there is nothing to draft."""
        state = self._states[sequence.id]
        if budget.nodes < 1 or budget.depth < 1:
            return None
        known = self._known(sequence, state)
        if not known or len(known) + 1 >= self._context_length:
            return None
        while state.settled < min(len(state.fed), len(known) - 1) and state.fed[state.settled] == known[state.settled]:
            state.settled += 1
        del state.fed[state.settled :]
        if sequence.params.needs_history:
            if state.history is None:
                state.history = History(sequence.tokens[: sequence.prompt_length])
            state.history.extend(sequence.tokens[sequence.prompt_length + state.counted :])
            state.counted = sequence.output_length
        if self._shortlists is not None:
            self._shortlists.note(sequence.id, sequence.tokens[state.noted :])
            state.noted = len(sequence.tokens)
        drawn = drawing and self._shape.tree != "top-k" and not sequence.params.greedy
        return Feeding(Growing(sequence, budget, self._shape, self.name, drawn), state, known, known[state.settled :])

    def _catch_up(self, feed: Feeding) -> bool:
        """Feed all but a last few waiting tokens in chunks; False when the pool has no room for this sequence."""
        state = feed.state
        while len(feed.waiting) > BLOCK_SIZE:
            chunk = feed.waiting[: min(LARGEST_CHUNK, len(feed.waiting) - 1)]
            if not self._make_room(state, len(state.fed) + len(chunk)):
                return False
            self._forward(Batch([Segment(state.blocks, len(state.fed), chunk, first_logit=len(chunk))]))
            state.fed += chunk
            state.settled = len(state.fed)
            feed.waiting = feed.waiting[len(chunk) :]
        # By the budget, not by what is drawn: whether there is room must not depend on draws.
        budget = feed.growing.budget
        more = min(budget.depth, self._context_length - len(feed.known)) if self._shape.linear else budget.nodes
        return self._make_room(state, len(feed.known) + more)

    def _make_room(self, state: DraftState, positions: int) -> bool:
        missing = -(-positions // BLOCK_SIZE) - len(state.blocks)
        try:
            state.blocks += self._blocks.allocate(max(0, missing))
        except OutOfBlocks:
            return False
        return True

    def _has_context(self, feed: Feeding) -> bool:
        return len(feed.known) + feed.growing.level + 1 < self._context_length

    def _segment(self, feed: Feeding) -> Segment:
        growing, state = feed.growing, feed.state
        if growing.level == 0 or self._shape.linear:
            return Segment(state.blocks, len(state.fed), feed.waiting, first_logit=len(feed.waiting) - 1)
        root, tree = len(feed.known) - 1, growing.tree
        own = DraftTree([self._own_id(token) for token in tree.tokens], tree.parents, tree.scores, tree.drafters)
        return Segment(state.blocks, root, feed.known[root:], own, first_logit=1 + growing.frontier[0].node)

    def _grow(self, feed: Feeding, logits: Tensor) -> None:
        """Add one level below the frontier, whose logits these are."""
        growing, state = feed.growing, feed.state
        if growing.level == 0 or self._shape.linear:
            state.fed += feed.waiting
        most, temperature = growing.budget.most_entropy, growing.sequence.params.temperature or 1.0
        if growing.level and most < inf and min(entropy(row, temperature) for row in logits) > most:
            growing.unsure = True
            return
        found = [self._children(growing, state, beam.node, row) for beam, row in zip(growing.frontier, logits, strict=True)]
        growing.add_level(found)
        if self._shape.linear and growing.frontier:
            feed.waiting = [self._own_id(growing.tree.tokens[growing.frontier[0].node])]

    def _children(self, growing: Growing, state: DraftState, node: int, row: Tensor) -> list[Guess]:
        sequence, before = growing.sequence, growing.path(node)
        row, ids = self._pick(sequence, row)
        position = len(sequence.tokens) + len(before)
        history = None if state.history is None else state.history.with_path(before)
        if growing.drawn:
            law = draft_law(row, sequence.params, position, history=history, vocabulary_size=self._vocabulary, ids=ids)
            return growing.draw(node, law)
        return guesses(
            row,
            sequence.params,
            sequence.seed,
            position,
            growing.shape.children(growing.level),
            history=history,
            vocabulary_size=self._vocabulary,
            ids=ids,
            noisy=growing.noisy,
        )


def entropy(logits: Tensor, temperature: float) -> float:
    """Of the law of one row, in nats."""
    law = torch.log_softmax(logits.double() / temperature, dim=-1)
    return float(-(law.exp() * law).nan_to_num(0.0).sum())
