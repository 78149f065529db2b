"""Draft model: a smaller model of the same vocabulary guesses ahead, with the target's own noise (shared-noise drafting).

It chooses each token as the target will (``sampling.choose``: same seed, same position) from its own logits, so at temperature 0
and above alike it proposes what the target would draw if the two agreed (Daliri et al. 2025; ERSD 2504.15475). By default the tree
is a chain of first choices; a level's next best choices hang beside it as leaves, which cost a verify row and no draft pass.
Other trees, and what is different where drafts are verified by rejection, are in ``growth``. With a trimmed head (``trim``) it
chooses among part of the vocabulary, under the same noise.

A chain's pass may hold guesses at what it will choose, and then makes several levels (``cascade``).

Before a level is computed the best survival is compared with the budget's minimum: AdaEDL's idea (2410.18351) of stopping on
the draft's own certainty, with the threshold set by measured cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field

from torch import Tensor

from hasten.cache.blocks import BlockManager
from hasten.core.errors import OutOfBlocks
from hasten.core.types import BLOCK_SIZE, ROOT, Batch, DraftTree, Segment, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.cascade import Cascade
from hasten.draft.children import Text, children, too_unsure
from hasten.draft.growth import Growing, Shape
from hasten.draft.recycled_rows import RowsOfTenants
from hasten.draft.shortlist import Shortlists
from hasten.model.head import IntArray, TrimmedHead
from hasten.sampling.guess import Guess
from hasten.sampling.laws import DraftLaws

Forward = Callable[[Batch], Tensor]
Commit = Callable[[list[int], int, list[int]], None]
LARGEST_CHUNK = 512
GOING_ON_WEIGHT, LEAST_GOING_ON = 0.02, 0.1
MOST_FRESH = 2  # tokens a sequence that a level reads beside guessing; a pass that reads more says nothing about what levels take


@dataclass(slots=True)
class DraftState:
    """What the draft model's pool holds of one sequence: keys and values of ``fed``, of which ``settled`` are known to be the
    sequence's own tokens."""

    fed: list[int] = field(default_factory=list)
    settled: int = 0
    blocks: list[int] = field(default_factory=list)
    text: Text = field(default_factory=Text)
    cascades: bool = False  # guesses ahead may be asked for


@dataclass(slots=True)
class Feeding:
    """A tree that is being drafted and how the model gets to see it. ``waiting`` are tokens to feed before its next level: at
    first the known ones it has not seen, then a chain's last. Other trees are fed whole, behind the last known token."""

    growing: Growing
    state: DraftState
    known: list[int]
    waiting: list[int]
    ahead: DraftTree = field(default_factory=DraftTree)  # guesses that a chain's pass is fed behind them


class LanguageModelDrafter(Drafter):
    """``forward`` runs the draft model over a batch (an executor's); ``blocks`` manages its pool; ``vocabulary`` is the number of
    ids the target may choose; ``tree``, ``width`` and ``branching`` as in ``growth.Shape``; ``head`` is the model's, where that is
    a trimmed one; ``commit`` (an executor's) moves rows of the pool into line: without it no pass makes more than one level. Raises
    ConfigError for values out of range."""

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
        commit: Commit | None = None,
    ) -> None:
        self.seconds_per_pass: float | None = None
        self._levels = self._foreseen = 0
        self._goes_on = 1.0  # how often there is another level behind one
        self._forward = forward
        self._blocks = blocks
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._shape = Shape(tree, width, branching)
        self._shortlists = None if head is None else Shortlists(head, vocabulary)
        self._commit = commit
        self._cascade = Cascade() if commit is not None and self._shape.linear else None
        self.likeliest_wanted = max(
            0 if self._shortlists is None else Shortlists.likeliest_wanted, 0 if self._cascade is None else Cascade.likeliest_wanted
        )
        self.positions = blocks.num_blocks * BLOCK_SIZE
        self._states: dict[int, DraftState] = {}

    def begin(self, sequence: Sequence) -> None:
        state = self._states[sequence.id] = DraftState()
        if self._shortlists is not None:
            self._shortlists.begin(sequence.id)
        known = self._known(sequence, state)
        state.blocks = self._blocks.match_prefix(known, sequence.tenant, len(known) - 1)
        state.settled = len(state.blocks) * BLOCK_SIZE
        state.fed = known[: state.settled]

    def recalled(self, sequence: Sequence) -> int:
        return self._states[sequence.id].settled

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        if self._shortlists is not None:
            self._shortlists.note(sequence.id, (token for row in verdict.likeliest for token in row))
        state = self._states.get(sequence.id)
        if self._cascade is not None and state is not None and state.cascades:
            self._cascade.observe(sequence, tree, verdict)

    def end(self, sequence: Sequence) -> None:
        if self._shortlists is not None:
            self._shortlists.end(sequence.id)
        state = self._states.pop(sequence.id, None)
        if state is not None:
            self._blocks.publish(state.blocks, state.fed, len(state.fed), sequence.tenant)
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

    def share_rows(self, rows: RowsOfTenants) -> None:
        """Guess ahead from the rows of a recycling drafter beside this one, which learns first. Before the first sequence."""
        if self._cascade is not None:
            self._cascade = Cascade(rows)

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
        self.passed_over = frozenset(each.id for each in sequences) - {feed.growing.sequence.id for feed in active}
        if self._shortlists is not None:
            self._shortlists.prepare()
        reads = sum(len(feed.waiting) for feed in active) > MOST_FRESH * len(active)
        seconds: list[float] = []
        self._levels = self._foreseen = 0
        while active:
            started = time.perf_counter()
            batch = Batch([self._segment(feed) for feed in active])
            logits = self._forward(batch)
            row = 0
            for feed, segment in zip(active, batch.segments, strict=True):
                rows = segment.rows - segment.first_logit
                self._grow(feed, logits[row : row + rows])
                row += rows
            seconds.append(time.perf_counter() - started)
            active = [feed for feed in active if feed.growing.continues and self._has_context(feed)]
        timed = seconds[1:] if reads else seconds
        self.seconds_per_pass = sum(timed) / len(timed) if timed else None
        self.passes, self.foreseen = len(seconds), self._foreseen / self._levels if self._levels else None
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
        state.cascades = self._cascade is not None and bool(budget.ahead)
        state.text.catch_up(sequence, self._shortlists)
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
        return self._make_room(state, len(feed.known) + more + len(budget.ahead))

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
            feed.ahead = self._guess_ahead(feed)
            return Segment(state.blocks, len(state.fed), feed.waiting, feed.ahead, first_logit=len(feed.waiting) - 1)
        root, tree = len(feed.known) - 1, growing.tree
        own = DraftTree([self._own_id(token) for token in tree.tokens], tree.parents, tree.scores, tree.drafters)
        return Segment(state.blocks, root, feed.known[root:], own, first_logit=1 + growing.frontier[0].node)

    def _guess_ahead(self, feed: Feeding) -> DraftTree:
        """What the model may choose at this level and the next ones, as far as knowing that can save a pass."""
        growing, floors = feed.growing, feed.growing.budget.ahead
        depth = min(growing.budget.depth, self._context_length - len(feed.known) - 1) - growing.level - 1
        if self._cascade is None or not floors or depth < 1:
            return DraftTree()
        return self._cascade.guess(growing.sequence, self._path(feed), self._worth(floors), depth)

    def _worth(self, floors: Row[float]) -> list[float]:
        """A guess saves a pass only where the draft goes on, so it must be as much likelier."""
        return [floor / self._goes_on for floor in floors]

    def _path(self, feed: Feeding) -> list[int]:
        """The drafted tokens above the frontier and at it."""
        return [] if feed.growing.level == 0 else feed.growing.path(feed.growing.frontier[0].node)

    def _grow(self, feed: Feeding, logits: Tensor) -> None:
        """Add one level below the frontier, whose logits come first; of a chain more, while it follows what was guessed ahead."""
        growing, state = feed.growing, feed.state
        if growing.level and not self._shape.linear:
            self._add_level(feed, logits)
            return
        context, chain = len(state.fed), len(feed.waiting)
        state.fed += feed.waiting
        self._add_level(feed, logits[:1])
        taken: list[int] = []
        while growing.continues and self._has_context(feed) and len(feed.ahead):
            token = growing.tree.tokens[growing.frontier[0].node]
            node = feed.ahead.child(taken[-1] if taken else ROOT, token)
            if node is None:
                break
            taken.append(node)
            state.fed.append(token)
            self._add_level(feed, logits[1 + node : 2 + node])
        if taken and self._commit is not None:
            self._commit(state.blocks, context, [*range(chain), *(chain + node for node in taken)])
        if self._shape.linear and growing.frontier:
            feed.waiting = [self._own_id(growing.tree.tokens[growing.frontier[0].node])]

    def _add_level(self, feed: Feeding, logits: Tensor) -> None:
        """One level below the frontier, whose logits these are."""
        growing, state = feed.growing, feed.state
        if too_unsure(growing, logits):
            growing.unsure = True
            return
        path = self._path(feed) if state.cascades else []
        found = [self._children(growing, state, beam.node, row) for beam, row in zip(growing.frontier, logits, strict=True)]
        growing.add_level(found)
        if self._cascade is not None and state.cascades and found[0]:
            self._levels += 1
            self._foreseen += self._cascade.chosen(
                growing.sequence, path, found[0][0].token, self._worth(growing.budget.ahead)
            )  # fmt: skip
            self._goes_on += GOING_ON_WEIGHT * ((1.0 if growing.continues else LEAST_GOING_ON) - self._goes_on)

    def _children(self, growing: Growing, state: DraftState, node: int, row: Tensor) -> list[Guess]:
        row, ids = self._pick(growing.sequence, row)
        return children(growing, node, row, ids, state.text.history, self._vocabulary)
