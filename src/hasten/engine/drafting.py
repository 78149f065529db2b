"""Between drafters, controller and scheduler: collect the bids of a step, let the controller choose, report what became of them.

A drafter that raises, or proposes a malformed tree, is switched off for that sequence and named in a warning; the answer goes on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from hasten.control.controller import Controller
from hasten.core.types import ROOT, DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.engine.scheduler import Scheduled

log = logging.getLogger(__name__)
DEEPEST = 24


@dataclass(slots=True)
class Drafting:
    """``vocabulary`` is the number of token ids that may be proposed."""

    drafters: list[Drafter]
    controller: Controller
    vocabulary: int
    _broken: set[tuple[str, int]] = field(default_factory=set)
    _levels: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def likeliest_wanted(self) -> int:
        return max((drafter.likeliest_wanted for drafter in self.drafters), default=0)

    def begin(self, sequence: Sequence) -> None:
        for drafter in self.drafters:
            try:
                drafter.begin(sequence)
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)

    def propose(self, items: list[Scheduled], room: int) -> None:
        """Give a tree to every item that chooses a token after its first one. ``room`` bounds the nodes of all of them."""
        self._levels.clear()
        decoding = [item for item in items if item.completes and item.sequence.output_length > 0]
        if not decoding or not self.drafters or room <= 0:
            return
        started = time.perf_counter()
        trees = [DraftTree() for _ in decoding]
        for drafter in self.drafters:
            chosen = [at for at, item in enumerate(decoding) if self._wanted(drafter, item.sequence, trees[at], len(decoding))]
            self._ask(drafter, [decoding[at] for at in chosen], [trees[at] for at in chosen], room // len(decoding))
        spent = time.perf_counter() - started
        rows = sum(item.chain for item in items)
        for item, tree in zip(decoding, self.controller.select(trees, rows, spent), strict=True):
            item.tree = tree

    def _wanted(self, drafter: Drafter, sequence: Sequence, free: DraftTree, sequences: int) -> bool:
        if (drafter.name, sequence.id) in self._broken:
            return False
        return not drafter.paid or self.controller.ask(drafter.name, sequence.id, free, sequences)

    def _ask(self, drafter: Drafter, items: list[Scheduled], trees: list[DraftTree], share: int) -> None:
        """One drafter's bids, merged into ``trees``."""
        if not items:
            return
        floor = self.controller.minimum_survival(drafter.name, len(items)) if drafter.paid else 0.0
        nodes = min(share, self.controller.most_nodes)
        budgets = [DraftBudget(nodes, min(DEEPEST, _depth_left(item.sequence)), floor) for item in items]
        try:
            bids = drafter.propose([item.sequence for item in items], budgets)
            for item, tree, bid, budget in zip(items, trees, bids, budgets, strict=True):
                sound = _sound(bid, budget, self.vocabulary)
                tree.merge(sound)
                if drafter.paid and len(sound):
                    self._levels.setdefault(item.sequence.id, {})[drafter.name] = max(sound.depths())
        except Exception as problem:
            for item in items:
                self._switch_off(drafter, item.sequence, problem)
        if drafter.paid and drafter.seconds_per_level is not None:
            self.controller.charge(drafter.name, drafter.seconds_per_level)

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        """After the sequence has grown by the verdict's tokens."""
        self.controller.observe(sequence.id, tree, verdict, self._levels.get(sequence.id, {}))
        for drafter in self.drafters:
            if (drafter.name, sequence.id) not in self._broken:
                try:
                    drafter.observe(sequence, tree, verdict)
                except Exception as problem:
                    self._switch_off(drafter, sequence, problem)

    def end(self, sequence: Sequence) -> None:
        self.controller.forget(sequence.id)
        for drafter in self.drafters:
            self._broken.discard((drafter.name, sequence.id))
            try:
                drafter.end(sequence)
            except Exception as problem:
                log.warning("Drafter '%s' failed to clean up (%r).", drafter.name, problem)

    def _switch_off(self, drafter: Drafter, sequence: Sequence, problem: Exception) -> None:
        self._broken.add((drafter.name, sequence.id))
        log.warning("Drafter '%s' failed (%r) and is off for request %s.", drafter.name, problem, sequence.request_id)


def _depth_left(sequence: Sequence) -> int:
    """Nodes that can still be accepted: one less than the tokens wanted, for the round always adds one of the target's own."""
    return max(0, sequence.tokens_left - 1)


def _sound(tree: DraftTree, budget: DraftBudget, vocabulary: int) -> DraftTree:
    """The part of a bid that obeys the contract: tokens of the vocabulary, within depth and node count, under sound parents.

    Raises ValueError when the tree is not a tree at all.
    """
    count = len(tree.tokens)
    if not count == len(tree.parents) == len(tree.scores) == len(tree.drafters):
        raise ValueError("a draft tree's lists differ in length")
    out = DraftTree()
    placed: dict[int, int] = {ROOT: ROOT}
    depths: dict[int, int] = {ROOT: 0}
    for node in range(count):
        parent, token = tree.parents[node], tree.tokens[node]
        if not ROOT <= parent < node:
            raise ValueError("a draft node stands before its parent")
        if parent not in placed or depths[parent] >= budget.depth or not 0 <= token < vocabulary or len(out) >= budget.nodes:
            continue
        score = min(1.0, max(0.0, float(tree.scores[node])))
        placed[node] = out.add(placed[parent], token, score, tree.drafters[node])
        depths[node] = depths[parent] + 1
    return out
