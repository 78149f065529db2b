"""Between drafters, controller and scheduler: collect the bids of a step, let the controller choose, report what became of them.

A drafter that raises, or proposes a malformed tree, is switched off for that sequence and named in a warning; the answer goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from hasten.control.accounts import Tally
from hasten.control.controller import Controller
from hasten.control.cost import Average
from hasten.control.memory import Memory
from hasten.control.rounds import Round, kind_of
from hasten.core.config import SpeculationParams
from hasten.core.types import ROOT, DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.engine.scheduler import Scheduled
from hasten.sampling.likeliest import likeliest

log = logging.getLogger(__name__)
DEEPEST = 24
LONGEST_REST = 8  # steps
AUTO = SpeculationParams()


@dataclass(slots=True, weakref_slot=True)
class Drafting:
    """``vocabulary`` is the number of token ids that may be proposed. ``memory`` keeps what the controller learns; without one
    it is forgotten. ``clock`` is asked for the time, in seconds."""

    drafters: list[Drafter]
    controller: Controller
    vocabulary: int
    memory: Memory | None = None
    clock: Callable[[], float] = time.perf_counter
    _out: set[tuple[str, int]] = field(default_factory=set)  # drafters that take no part in a sequence: silent or broken ones
    _wishes: dict[int, SpeculationParams] = field(default_factory=dict)
    _seen: dict[tuple[str, int], int] = field(default_factory=dict)  # tokens a paid drafter has read of a sequence
    _rounds: dict[int, Round] = field(default_factory=dict)  # of the step in progress, by sequence id
    _rest: int = 0  # steps of the present rest: while nobody drafts, most steps are not even looked at
    _rested: int = 0
    _settling: Average = field(default_factory=lambda: Average(0.1))  # seconds that the books of a round take

    def begin(self, sequence: Sequence, wish: SpeculationParams = AUTO) -> None:
        self._wishes[sequence.id] = wish
        self._rest = 0
        if wish.mode == "off":
            return
        for drafter in self.drafters:
            try:
                drafter.begin(sequence)
                if not drafter.serves(sequence):
                    self._out.add((drafter.name, sequence.id))
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)

    def propose(self, items: list[Scheduled], room: int) -> None:
        """Give a tree to every item that chooses a token after its first one. ``room`` bounds the nodes of all of them."""
        began = self.clock()
        self._rounds.clear()
        if not self.drafters:
            return
        if self._rested < self._rest:
            self._rested += 1
            return
        decoding = [item for item in items if item.completes and item.sequence.output_length > 0]
        wishes = [self._wishes.get(item.sequence.id, AUTO) for item in decoding]
        if all(wish.mode == "off" for wish in wishes):
            return
        rounds = [Round.of(item.sequence, wish) for item, wish in zip(decoding, wishes, strict=True)]
        self._rounds = {round.sequence: round for round in rounds}
        rested, self._rested = self._rested, 0
        if not self.controller.open(rounds, rested) or room <= 0:
            return
        # Free drafters first: a paid one is worth what it adds to theirs.
        for drafter in sorted(self.drafters, key=lambda drafter: drafter.paid):
            able = [at for at, item in enumerate(decoding) if (drafter.name, item.sequence.id) not in self._out]
            wanted = self.controller.ask(drafter.name, drafter.paid, [rounds[at] for at in able]) if able else []
            chosen = [at for at, on in zip(able, wanted, strict=True) if on]
            if chosen:
                self._ask(drafter, [decoding[at].sequence for at in chosen], [rounds[at] for at in chosen], room // len(decoding))
        if not any(round.seconds for round in rounds):
            self._rest = min(LONGEST_REST, 2 * self._rest + 1)
            return
        self._rest = 0
        rows = sum(item.chain for item in items)
        for item, tree in zip(decoding, self.controller.select(rounds, rows, self.clock() - began), strict=True):
            item.tree = tree
        _share_deciding(rounds, self.clock() - began + (self._settling.value or 0.0))

    def _ask(self, drafter: Drafter, sequences: list[Sequence], rounds: list[Round], share: int) -> None:
        """One drafter's bids, merged into the rounds' trees, and what they took."""
        budgets = [
            self._budget(drafter, sequence, round, share, len(rounds)) for sequence, round in zip(sequences, rounds, strict=True)
        ]
        started = self.clock()
        try:
            bids = drafter.propose(sequences, budgets)
            for round, bid, budget in zip(rounds, bids, budgets, strict=True):
                sound = _sound(bid, budget, self.vocabulary)
                round.bid(drafter.name, sound)
                if drafter.paid and len(sound):
                    round.levels[drafter.name] = max(sound.depths())
        except Exception as problem:
            for sequence in sequences:
                self._switch_off(drafter, sequence, problem)
        self._charge(drafter, sequences, rounds, self.clock() - started)

    def _budget(self, drafter: Drafter, sequence: Sequence, round: Round, share: int, askers: int) -> DraftBudget:
        depth, floor, entropy = self.controller.limits(drafter.name, drafter.paid, round, askers)
        nodes = min(share, self.controller.most_nodes, round.wish.nodes)
        calibrated = self.controller.calibrated(drafter.name, round.kind)
        return DraftBudget(nodes, min(DEEPEST, depth, _depth_left(sequence)), floor, calibrated, entropy)

    def _charge(self, drafter: Drafter, sequences: list[Sequence], rounds: list[Round], spent: float) -> None:
        """Share out what a drafter took: its levels evenly, its reading by how much each sequence had grown since."""
        guessing = spent
        unread = [max(0, round.context - self._seen.get((drafter.name, round.sequence), 0)) for round in rounds]
        if drafter.paid:
            levels = max((round.levels.get(drafter.name, 0) for round in rounds), default=0)
            if drafter.seconds_per_level is not None and levels:
                guessing = min(spent, levels * drafter.seconds_per_level)
            self.controller.costs.charge(drafter.name, drafter.seconds_per_level, spent - guessing, sum(unread), len(rounds))
        whole = max(1, sum(unread))
        for sequence, round, tokens in zip(sequences, rounds, unread, strict=True):
            reading = (spent - guessing) * tokens / whole
            round.seconds[drafter.name] = guessing / len(rounds) + reading
            round.catching_up[drafter.name] = reading
            self._seen[drafter.name, sequence.id] = round.context

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict, logits: Tensor) -> None:
        """After the sequence has grown by the verdict's tokens. ``tree`` is what was verified: what was selected, or nothing where
        blocks ran out; ``logits`` [1 + nodes, vocabulary] are the target's.

        Drafters learn of the first token and of rounds that they were asked in; what that takes is charged to them."""
        if not self.drafters or self._wishes.get(sequence.id, AUTO).mode == "off":
            return
        round = self._rounds.get(sequence.id)
        if round is not None:
            if len(tree) != len(round.verified):
                round.keep(set())
            self.controller.observe(round, verdict.path)
        learning = [drafter for drafter in self.drafters if self._learns(drafter, sequence, round)]
        self._find_likeliest(learning, verdict, logits, round)
        for drafter in learning:
            started = self.clock()
            try:
                drafter.observe(sequence, tree, verdict)
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)
            if round is not None:
                round.seconds[drafter.name] += self.clock() - started

    def _learns(self, drafter: Drafter, sequence: Sequence, round: Round | None) -> bool:
        return (drafter.name, sequence.id) not in self._out and (round is None or drafter.name in round.seconds)

    def _find_likeliest(self, learning: list[Drafter], verdict: Verdict, logits: Tensor, round: Round | None) -> None:
        wanting = [drafter for drafter in learning if drafter.likeliest_wanted]
        if not wanting:
            return
        started = self.clock()
        verdict.likeliest = likeliest(logits[:, : self.vocabulary], max(drafter.likeliest_wanted for drafter in wanting))
        if round is not None:
            for drafter in wanting:
                round.seconds[drafter.name] += (self.clock() - started) / len(wanting)

    def settle(self, items: list[Scheduled], rows: int, forward: float, whole: float) -> None:
        """A step of these items is over, ``whole`` seconds after it began: learn what it cost and what drafting brought."""
        if not self._rounds:
            return
        began = self.clock()
        rounds = [self._rounds[item.sequence.id] for item in items if item.sequence.id in self._rounds]
        # Prompt chunks have other shapes than decoding steps and would distort the curve.
        pure = len(rounds) == len(items)
        self.controller.settle(rounds, rows, forward, whole, [drafter.name for drafter in self.drafters], pure)
        self._settling.observe(self.clock() - began)

    def end(self, sequence: Sequence) -> None:
        complete = sequence.finish_reason in ("stop", "length") and sequence.output_length > 0
        self.controller.finish(sequence.id, kind_of(sequence.params), sequence.output_length, complete)
        wish = self._wishes.pop(sequence.id, AUTO)
        for drafter in self.drafters if wish.mode != "off" else ():
            self._out.discard((drafter.name, sequence.id))
            self._seen.pop((drafter.name, sequence.id), None)
            try:
                drafter.end(sequence)
            except Exception as problem:
                log.warning("Drafter '%s' failed to clean up (%r).", drafter.name, problem)
        if self.memory is not None:
            self.memory.save_sometimes(self.controller)

    def decisions(self, sequence: Sequence) -> dict[str, str]:
        """Why each drafter is on or off for a sequence, one line each. Ask before its ``end``."""
        return {drafter.name: self.controller.explain(drafter.name, sequence.id) for drafter in self.drafters}

    def statistics(self) -> dict[str, Tally]:
        """What each drafter did since the engine started."""
        return {drafter.name: self.controller.tallies.get(drafter.name, Tally()) for drafter in self.drafters}

    def _switch_off(self, drafter: Drafter, sequence: Sequence, problem: Exception) -> None:
        self._out.add((drafter.name, sequence.id))
        log.warning("Drafter '%s' failed (%r) and is off for request %s.", drafter.name, problem, sequence.request_id)


def _share_deciding(rounds: list[Round], spent: float) -> None:
    """What the round took beyond the drafters' own time (choosing, merging, keeping the books) is charged to those who bid."""
    asked = [(round, name) for round in rounds for name in round.seconds]
    rest = spent - sum(round.seconds[name] for round, name in asked)
    for round, name in asked:
        round.seconds[name] += rest / len(asked)


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
