"""Who runs in the next step, with how many rows and on which blocks. No torch.

There are no phases: each sequence has known tokens and computed ones, and a step computes some of the difference under a budget
of rows. Sequences whose last known token is all that is left (they decode) come first, then prompts in order of arrival, in
chunks. While somebody decodes chunks are smaller, so that no next token waits for much of a long prompt (stall-free batching:
Sarathi-Serve, 2403.02310, section 4), unless one step brings far more first tokens than there are next ones to wait. When
blocks run short for known tokens, the youngest sequence is preempted: its blocks are freed and its tokens are computed again
later, which changes nothing in its text. Draft rows get what is left, and preempt nobody.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

from hasten.cache.blocks import BlockManager
from hasten.core.errors import OutOfBlocks, PromptTooLong
from hasten.core.results import CutBy
from hasten.core.types import BLOCK_SIZE, DraftTree, Segment, Sequence

# Where somebody decodes, prompts get one part in so many of a step's rows. Of 512 rows that leaves 128, which take no longer a row
# than 512 do (with AMX half as long again), and make use of rows that would cost three times as much in a step of their own.
MIXED_SHARE = 4
MANY_BEGIN = 2  # times as many first tokens as next ones are worth a whole step's rows


@dataclass(slots=True)
class Scheduled:
    """One sequence's share of a step: ``chain`` known tokens to compute and, when they reach the last known one, a tree.

    ``room``: rows that blocks are sought for even if the tree has fewer. A tree that was drawn by chance must not be dropped for
    its size, which depends on what was drawn."""

    sequence: Sequence
    chain: int
    tree: DraftTree = field(default_factory=DraftTree)
    room: int = 0

    @property
    def completes(self) -> bool:
        """Whether the step computes the last known token, so that the next one can be chosen."""
        return self.sequence.computed + self.chain == len(self.sequence.tokens)

    def segment(self) -> Segment:
        sequence = self.sequence
        chain = sequence.tokens[sequence.computed : sequence.computed + self.chain]
        first_logit = len(chain) - 1 if self.completes else len(chain) + len(self.tree)
        leaders, draw = (0, None) if sequence.laws and len(self.tree) else (sequence.leaders, sequence.draw)
        return Segment(sequence.blocks, sequence.computed, chain, self.tree, first_logit, leaders, draw)


@dataclass(slots=True)
class Packed:
    """A step ready to run. ``copies`` are block copies (source, destination) to perform before it."""

    items: list[Scheduled]
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Owns the queues. ``capacity`` is the longest sequence, in positions, that context and pool allow. ``model_context`` is what
    the model could have, where ``context_length`` is less."""

    def __init__(
        self, blocks: BlockManager, context_length: int, max_rows: int, max_sequences: int, model_context: int | None = None
    ) -> None:
        self.blocks = blocks
        self.capacity = min(context_length, blocks.num_blocks * BLOCK_SIZE)
        self._context_length = context_length
        self._model_context = model_context or context_length
        self.preemptions = 0
        self._max_rows = max_rows
        self._max_sequences = min(max_sequences, max_rows)  # each of them gets a row in every step
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._sources: dict[int, Sequence] = {}  # sequence id -> the sibling whose prompt it may share
        self._chains: dict[int, list[bytes]] = {}  # sequence id -> where its prompt would be cached, while it waits

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def running(self) -> list[Sequence]:
        return list(self._running)

    @property
    def waiting(self) -> list[Sequence]:
        return list(self._waiting)

    def add(self, siblings: list[Sequence]) -> None:
        """Queue the n answers of one request. Raises PromptTooLong when its prompt can never fit."""
        self.check_length(siblings[0].prompt_length)
        for sequence in siblings:
            if sequence is not siblings[0]:
                self._sources[sequence.id] = siblings[0]
            self._waiting.append(sequence)

    def check_length(self, length: int) -> None:
        """Raise PromptTooLong when a prompt of that many tokens can never fit."""
        if length + 1 > self.capacity:
            # These first words are those by which clients know that they have to shorten a conversation.
            raise PromptTooLong(f"Prompt is too long: {length} tokens > {self.capacity - 1} maximum; shorten it{self._room()}.")

    def _room(self) -> str:
        """What makes room for a longer prompt: whichever bound holds now, with how far it can be raised."""
        if self.bound == "cache_tokens":
            return f", or raise --cache-tokens, up to the context of {self._context_length}"
        if self.bound == "context_length":
            return f", or raise --context-length, up to the model's {self._model_context}"
        return f": the model's context has {self._context_length} positions"

    @property
    def bound(self) -> CutBy:
        """The setting that ``capacity`` comes from, or "model"."""
        if self.capacity < self._context_length:
            return "cache_tokens"
        return "context_length" if self._context_length < self._model_context else "model"

    def plan(self) -> list[Scheduled]:
        """Sequences of the next step and how many known tokens each computes; admits waiting ones while there is room."""
        self._admit()
        items = [Scheduled(s, 1) for s in self._running if len(s.tokens) - s.computed == 1][: self._max_rows]
        left = self._max_rows - len(items)
        prompts = [s for s in self._running if len(s.tokens) - s.computed > 1]
        if items:
            left = min(left, max(1, self._max_rows // MIXED_SHARE, _rows_of_many(prompts, left, MANY_BEGIN * len(items))))
        for sequence in prompts:
            if left > 0:
                items.append(Scheduled(sequence, min(len(sequence.tokens) - sequence.computed, left)))
                left -= items[-1].chain
        return items

    def pack(self, items: list[Scheduled]) -> Packed:
        """Give every item the blocks its rows need: first for known tokens, for which the youngest is preempted when there are too
        few, then for trees, of what is left: drafts preempt nobody."""
        packed = Packed([])
        for item in sorted(items, key=lambda item: self._running.index(item.sequence)):
            if item.sequence in self._running and self._place(item, packed):
                packed.items.append(item)
        for item in packed.items:
            if not self._grow(item, item.chain + max(len(item.tree), item.room)):
                item.tree, item.room = DraftTree(), 0
        return packed

    def _place(self, item: Scheduled, packed: Packed) -> bool:
        while not self._reserve(item, packed):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is item.sequence:
                return False
        return True

    def _reserve(self, item: Scheduled, packed: Packed) -> bool:
        """Own the blocks that the item's chain is written to; False leaves all tables as they were."""
        sequence, held = item.sequence, len(item.sequence.blocks)
        if not self._grow(item, item.chain):
            return False
        try:
            packed.copies += self.blocks.make_writable(sequence.blocks, sequence.computed // BLOCK_SIZE)
        except OutOfBlocks:
            self.blocks.free(sequence.blocks[held:])
            del sequence.blocks[held:]
            return False
        return True

    def _grow(self, item: Scheduled, rows: int) -> bool:
        """Grow the block table to so many rows; False, with nothing changed, where there are too few blocks."""
        sequence = item.sequence
        missing = -(-(sequence.computed + rows) // BLOCK_SIZE) - len(sequence.blocks)
        if missing > 0:
            try:
                sequence.blocks += self.blocks.allocate(missing)
            except OutOfBlocks:
                return False
        return True

    def committed(self, item: Scheduled, accepted: int) -> None:
        """The item's chain and ``accepted`` nodes are computed now: publish full blocks, free those no longer reached."""
        sequence = item.sequence
        sequence.computed += item.chain + accepted
        self.blocks.publish(sequence.blocks, sequence.tokens, sequence.computed, sequence.tenant)
        reached = -(-len(sequence.tokens) // BLOCK_SIZE)
        self.blocks.free(sequence.blocks[reached:])
        del sequence.blocks[reached:]

    def remove(self, sequence: Sequence) -> None:
        """A sequence is finished or cancelled: it leaves whatever queue it is in and its blocks are freed."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._sources.pop(sequence.id, None)
        self._chains.pop(sequence.id, None)
        self._release(sequence)

    def check_integrity(self) -> None:
        """Raises AssertionError when tables, queues and block manager disagree. For tests and idle moments."""
        assert all(not sequence.blocks for sequence in self._waiting), "a waiting sequence holds blocks"
        self.blocks.check_integrity(sequence.blocks for sequence in self._running)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting[0]
            source = self._sources.get(sequence.id)
            if source is not None and not source.finished and source.computed < source.prompt_length:
                return  # its prompt is being computed by a sibling: share it then
            if not self._take_prefix(sequence, source):
                return
            self._waiting.popleft()
            self._chains.pop(sequence.id, None)
            self._running.append(sequence)

    def _take_prefix(self, sequence: Sequence, source: Sequence | None) -> bool:
        """Attach blocks that are computed already; False when what is left to compute would not fit beside the running ones."""
        limit = found = 0
        if source is not None and source.blocks and source.computed >= source.prompt_length:
            sequence.computed = sequence.prompt_length - 1
            sequence.blocks = self.blocks.fork(source.blocks[: -(-sequence.computed // BLOCK_SIZE)])
        else:
            limit = len(sequence.tokens) - 1
            chain = self._chains.setdefault(sequence.id, [])
            sequence.blocks = self.blocks.match_prefix(sequence.tokens, sequence.tenant, limit, chain)
            found = len(sequence.blocks)
            sequence.computed = found * BLOCK_SIZE
        needed = -(-(len(sequence.tokens) + 1) // BLOCK_SIZE) - len(sequence.blocks) + 1
        if self._running and needed > self.blocks.available:
            self._release(sequence)
            return False
        self.blocks.count(limit, found)
        if sequence.cached is None:  # what a preempted sequence finds again is its own
            sequence.cached = found * BLOCK_SIZE
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.blocks.free(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0


def _rows_of_many(prompts: list[Sequence], rows: int, many: int) -> int:
    """How many of ``rows`` it takes to read as many of these as can be read to their end, one behind the other; 0 where these are
    not so ``many``."""
    ends = list(takewhile(rows.__ge__, accumulate(len(sequence.tokens) - sequence.computed for sequence in prompts)))
    return ends[-1] if len(ends) >= many else 0
