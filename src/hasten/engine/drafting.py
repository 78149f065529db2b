"""Between drafters, controller and scheduler: collect the bids of a step, let the controller choose, report what became of them.

Where drafts are verified by rejection, one drafter may draw its tokens by chance. What the others proposed is chosen before it
draws, and all that it draws is verified: a choice in view of the draws would bias the law (``sampling.laws.DraftLaws``).

A drafter that proposes a malformed tree, or raises, is switched off for that sequence (for all that it was asked about together,
where it raises) and named in a warning; the answers go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from operator import index
from typing import Concatenate, ParamSpec

from torch import Tensor

from hasten.control.accounts import Tally
from hasten.control.controller import Controller
from hasten.control.cost import Average, interrupted
from hasten.control.memory import Memory
from hasten.control.rounds import Round, share_deciding
from hasten.core.config import SpeculationParams
from hasten.core.types import ROOT, DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.engine.scheduler import Scheduled
from hasten.sampling.laws import DraftLaws, merge
from hasten.sampling.likeliest import likeliest

log = logging.getLogger(__name__)
LONGEST_REST = 8  # steps of a sequence alone; looking takes longer where there are more
AUTO = SpeculationParams()
Arguments = ParamSpec("Arguments")


def _counted(method: Callable[Concatenate[Drafting, Arguments], None]) -> Callable[Concatenate[Drafting, Arguments], None]:
    """Adds what a call takes to ``spent``."""

    @wraps(method)
    def counted(self: Drafting, /, *arguments: Arguments.args, **named: Arguments.kwargs) -> None:
        began = self.clock()
        try:
            method(self, *arguments, **named)
        finally:
            self.spent += self.clock() - began

    return counted


@dataclass(slots=True, weakref_slot=True)
class Drafting:
    """``vocabulary`` is the number of token ids that may be proposed. ``memory`` keeps what the controller learns; without one
    it is forgotten. ``clock`` is asked for the time, in seconds. ``rule`` is the setting ``verify``."""

    drafters: list[Drafter]
    controller: Controller
    vocabulary: int
    memory: Memory | None = None
    clock: Callable[[], float] = time.perf_counter
    rule: str = "coupled"
    spent: float = 0.0  # seconds that all of this has taken so far, whatever came of it
    drafted: bool = False  # whether the step in progress verifies any guess; where not, it is plain but for what drafting takes
    _out: set[tuple[str, int]] = field(default_factory=set)  # drafters that take no part in a sequence: silent or broken ones
    _wishes: dict[int, SpeculationParams] = field(default_factory=dict)
    _seen: dict[tuple[str, int], int] = field(default_factory=dict)  # tokens a paid drafter has read of a sequence
    _rounds: dict[int, Round] = field(default_factory=dict)  # of the step in progress, by sequence id
    _speaking: list[str] = field(default_factory=list)  # who has something to say about one of them; the others need no credit
    _laws: dict[int, DraftLaws] = field(default_factory=dict)  # the same, of those whose drafts may be drawn
    _rest: int = 0  # steps of the present rest: while nobody drafts, most steps are not even looked at
    _rested: int = 0
    _settling: Average = field(default_factory=lambda: Average(0.1))  # seconds that the books of a round take
    _bookkeeping: float = 0.0  # and what was charged for them in the step in progress

    def begun(self, sequence: Sequence) -> bool:
        return sequence.id in self._wishes

    def begin(self, sequence: Sequence, wish: SpeculationParams = AUTO) -> None:
        """A sequence will be decoded; drafters index its text, so this waits until its turn has come."""
        self._wishes[sequence.id] = wish
        self._rest = 0
        if wish.mode == "off":
            return
        for drafter in self.drafters:
            try:
                drafter.begin(sequence)
                if not drafter.serves(sequence):
                    self._out.add((drafter.name, sequence.id))
                if drafter.paid:
                    self._seen[drafter.name, sequence.id] = drafter.recalled(sequence)
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)

    @_counted
    def propose(self, items: list[Scheduled], room: int, running: int = 0) -> None:
        """Give a tree to every item that chooses a token after its first one. ``room`` bounds the nodes of all of them; ``running``
        is the number of sequences that are admitted, items or not."""
        began = self.clock()
        self._rounds.clear()
        self._laws.clear()
        self.drafted = False
        self._bookkeeping = 0.0
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
        self._speaking = [d.name for d in self.drafters if any((d.name, round.sequence) not in self._out for round in rounds)]
        rested, self._rested = self._rested, 0
        pure = _pure(items, len(decoding))
        if not self.controller.open(rounds, rested, max(0, running - len(decoding)), pure) or room <= 0:
            return
        rows, share = sum(item.chain for item in items), room // len(decoding)
        drawer = self._drawer()
        undrawn = rounds
        # Free drafters first: a paid one is worth what it adds to theirs. Who draws comes last.
        for drafter in sorted(self.drafters, key=lambda drafter: (drafter is drawer, drafter.paid)):
            if drafter is drawer:
                undrawn = [round for round in rounds if round.kind == "greedy"]
                self._settle([round for round in rounds if round.kind != "greedy"], rows, self.clock() - began, share)
            able = [at for at, item in enumerate(decoding) if (drafter.name, item.sequence.id) not in self._out]
            if drafter.paid:
                for round in rounds:
                    seen = self._seen.get((drafter.name, round.sequence), 0) if drafter.reads else round.context
                    round.unread[drafter.name] = max(0, round.context - seen)
            wanted = self.controller.ask(drafter.name, drafter.paid, [rounds[at] for at in able]) if able else []
            chosen = [at for at, on in zip(able, wanted, strict=True) if on]
            if chosen:
                sequences = [decoding[at].sequence for at in chosen]
                self._ask(drafter, sequences, [rounds[at] for at in chosen], share, drafter is drawer)
        if not any(round.seconds for round in rounds):
            self._rest = min(LONGEST_REST + len(rounds) // 2, 2 * self._rest + 1)
            return
        self._rest = 0
        if undrawn:
            self.controller.select(undrawn, rows, self.clock() - began, share * len(undrawn), share * len(undrawn))
        for item, round in zip(decoding, rounds, strict=True):
            if round.sequence in self._laws:
                round.keep(set(range(len(round.tree))))
                item.room = self._most_nodes(round, share)
            item.tree = round.verified
        self.drafted = any(len(round.verified) for round in rounds)
        self._bookkeeping = self._settling.value or 0.0
        share_deciding(rounds, self.clock() - began + self._bookkeeping)

    def rule_for(self, wish: SpeculationParams) -> str:
        """The rule for a request; where nothing is ever drafted, text is that of plain decoding under every rule."""
        return "coupled" if not self.drafters or wish.mode == "off" else self.rule

    def laws_of(self, sequence: Sequence) -> DraftLaws:
        """How the tree that the sequence was last given came about."""
        return self._laws.get(sequence.id) or DraftLaws()

    def _drawer(self) -> Drafter | None:
        """Who draws by chance: one at most, for two draws of one node would need the law of both together."""
        return None if self.rule == "coupled" else next((drafter for drafter in self.drafters if drafter.draws), None)

    def _settle(self, rounds: list[Round], rows: int, spent: float, share: int) -> None:
        """Choose among what was proposed without chance, before anything is drawn beside it."""
        if rounds:
            self.controller.select(rounds, rows, spent, share * len(rounds), share)
        for round in rounds:
            round.settle()
            self._laws[round.sequence] = DraftLaws()

    def _ask(self, drafter: Drafter, sequences: list[Sequence], rounds: list[Round], share: int, drawing: bool) -> None:
        """One drafter's bids, merged into the rounds' trees, and what they took."""
        budgets = [
            self._budget(drafter, sequence, round, share, len(rounds)) for sequence, round in zip(sequences, rounds, strict=True)
        ]
        started = self.clock()
        try:
            bids = _bids(drafter, sequences, budgets, drawing)
        except Exception as problem:  # whose fault it is nobody can tell
            for sequence in sequences:
                self._switch_off(drafter, sequence, problem)
            bids = []
        for sequence, round, budget, (bid, laws) in zip(sequences, rounds, budgets, bids, strict=False):
            try:
                self._bid(round, drafter, _sound(bid, budget, self.vocabulary), laws, len(bid))
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)
        self._charge(drafter, sequences, rounds, self.clock() - started)

    def _bid(self, round: Round, drafter: Drafter, tree: DraftTree, laws: DraftLaws, bid: int) -> None:
        if round.sequence in self._laws:
            self._bid_drawn(round, drafter, tree, laws, bid)
        else:
            round.bid(drafter.name, tree)
        if drafter.paid and len(tree):
            round.levels[drafter.name] = max(tree.depths())

    def _bid_drawn(self, round: Round, drafter: Drafter, tree: DraftTree, laws: DraftLaws, bid: int) -> None:
        """Merge a tree of draws. Raises ValueError when it does not fit its laws, or has lost nodes of the ``bid`` it was."""
        laws.check(tree)
        if len(tree) != bid:
            raise ValueError("a tree of draws breaks its budget")
        merge(round.tree, self._laws[round.sequence], tree, laws)
        round.claim(drafter.name)

    def _most_nodes(self, round: Round, share: int) -> int:
        return min(share, self.controller.most_nodes, round.wish.nodes)

    def _budget(self, drafter: Drafter, sequence: Sequence, round: Round, share: int, askers: int) -> DraftBudget:
        depth, floor, entropy = self.controller.limits(drafter.name, drafter.paid, round, askers)
        nodes = self._most_nodes(round, share) - (len(round.tree) if round.sequence in self._laws else 0)
        calibrated = self.controller.calibrated(drafter.name, round.kind)
        floors = [] if drafter.paid else self.controller.floors(round, max(0, nodes))
        ahead = self.controller.costs.ahead(drafter.name, askers) if drafter.paid else []
        return DraftBudget(nodes, min(depth, _depth_left(sequence)), floor, calibrated, entropy, floors, ahead)

    def _charge(self, drafter: Drafter, sequences: list[Sequence], rounds: list[Round], spent: float) -> None:
        """Share out what a drafter took: its levels evenly, with all that one who reads nothing does for them; its reading by how
        much each sequence had grown since."""
        guessing = spent
        unread = [round.to_read(drafter.name) for round in rounds]
        if drafter.paid:
            costs, one = self.controller.costs, drafter.seconds_per_pass
            expected = costs.one_pass(drafter.name, len(rounds)) if one is None else one
            if drafter.reads and expected is not None and any(round.levels.get(drafter.name) for round in rounds):
                guessing = min(spent, drafter.passes * expected)
            costs.charge(drafter.name, one, drafter.foreseen, spent - guessing, sum(unread), len(rounds))
        whole = max(1, sum(unread))
        for sequence, round, tokens in zip(sequences, rounds, unread, strict=True):
            reading = (spent - guessing) * tokens / whole
            round.seconds[drafter.name] = guessing / len(rounds) + reading
            round.catching_up[drafter.name] = reading
            if sequence.id not in drafter.passed_over:
                self._seen[drafter.name, sequence.id] = round.context

    @_counted
    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict, logits: Tensor, states: Tensor | None = None) -> None:
        """After the sequence has grown by the verdict's tokens. ``tree`` is what was verified: what was selected, or nothing where
        blocks ran out; ``logits`` [1 + nodes, vocabulary] and ``states`` [1 + nodes, hidden] are the target's.

        Drafters learn of the first token and of rounds that they were asked in; what that takes is charged to them."""
        if not self.drafters or self._wishes.get(sequence.id, AUTO).mode == "off":
            return
        if states is not None:
            self._follow(sequence, states[1 + verdict.path[-1] if verdict.path else 0])
        round = self._rounds.get(sequence.id)
        if round is None and sequence.output_length > 1:
            return
        if sequence.output_length <= 1:
            self._rest = 0  # whoever rests does so over others
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

    def _follow(self, sequence: Sequence, state: Tensor) -> None:
        for drafter in self.drafters:
            if drafter.follows and (drafter.name, sequence.id) not in self._out:
                try:
                    drafter.follow(sequence, state)
                except Exception as problem:
                    self._switch_off(drafter, sequence, problem)

    def _learns(self, drafter: Drafter, sequence: Sequence, round: Round | None) -> bool:
        asked = drafter.name in round.seconds if round is not None else sequence.output_length <= 1
        return asked and (drafter.name, sequence.id) not in self._out

    def _find_likeliest(self, learning: list[Drafter], verdict: Verdict, logits: Tensor, round: Round | None) -> None:
        wanting = [drafter for drafter in learning if drafter.likeliest_wanted]
        if not wanting:
            return
        started = self.clock()
        verdict.likeliest = likeliest(logits[:, : self.vocabulary], max(drafter.likeliest_wanted for drafter in wanting))
        if round is not None:
            for drafter in wanting:
                round.seconds[drafter.name] += (self.clock() - started) / len(wanting)

    @_counted
    def settle(self, items: list[Scheduled], rows: int, forward: float, whole: float) -> None:
        """A step of these items is over, ``whole`` seconds after it began: learn what it cost and what drafting brought."""
        if not self._rounds:
            return
        began = self.clock()
        rounds = [self._rounds[item.sequence.id] for item in items if item.sequence.id in self._rounds]
        pure = _pure(items, len(rounds))
        # The books are not closed yet when the step is timed, and those who bid are charged for them.
        self.controller.settle(rounds, rows, forward, whole + self._bookkeeping, self._speaking, pure)
        spent = self.clock() - began
        if self._settling.value is None or not interrupted(spent, self._settling.value):
            self._settling.observe(spent)

    def end(self, sequence: Sequence) -> None:
        if not self.begun(sequence):
            return
        complete = sequence.finish_reason in ("stop", "length") and sequence.output_length > 0
        self.controller.finish(sequence.id, sequence.output_length, complete)
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
        """Why each drafter that takes part in a sequence is on or off, one line each; nothing of one that never began. Ask before
        its ``end``."""
        if not self.begun(sequence):
            return {}
        taking_part = [drafter.name for drafter in self.drafters if (drafter.name, sequence.id) not in self._out]
        return {name: self.controller.explain(name, sequence.id) for name in taking_part}

    def statistics(self) -> dict[str, Tally]:
        """What each drafter did since the engine started."""
        return {drafter.name: self.controller.tallies.get(drafter.name, Tally()) for drafter in self.drafters}

    def _switch_off(self, drafter: Drafter, sequence: Sequence, problem: Exception) -> None:
        self._out.add((drafter.name, sequence.id))
        log.warning("Drafter '%s' failed (%r) and is off for request %s.", drafter.name, problem, sequence.request_id)


def _bids(
    drafter: Drafter, sequences: list[Sequence], budgets: list[DraftBudget], drawing: bool
) -> list[tuple[DraftTree, DraftLaws]]:
    """Raises ValueError where there is not one bid a sequence, and what the drafter raises."""
    if drawing:
        bids = [(tree, laws) for tree, laws in drafter.draw(sequences, budgets)]
    else:
        bids = [(tree, DraftLaws()) for tree in drafter.propose(sequences, budgets)]
    if len(bids) != len(sequences):
        raise ValueError(f"{len(bids)} bids for {len(sequences)} sequences")
    return bids


def _pure(items: list[Scheduled], decoding: int) -> bool:
    """Whether a step of these items, so many of which decode, is a decoding step and nothing else. Prompt chunks, and texts that
    are computed again, have other shapes and would distort the curve."""
    return decoding == len(items) and all(item.chain == 1 for item in items)


def _depth_left(sequence: Sequence) -> int:
    """Nodes that can still be accepted: one less than the tokens wanted, for the round always adds one of the target's own."""
    return max(0, sequence.tokens_left - 1)


def _sound(tree: DraftTree, budget: DraftBudget, vocabulary: int) -> DraftTree:
    """The part of a bid that obeys the contract: tokens of the vocabulary, within depth and node count, under sound parents.

    Raises ValueError when the tree is not a tree at all, TypeError for tokens that are no whole numbers.
    """
    count = len(tree.tokens)
    if not count == len(tree.parents) == len(tree.scores) == len(tree.drafters):
        raise ValueError("a draft tree's lists differ in length")
    if count <= budget.nodes and _obeys(tree, budget.depth, vocabulary):
        return tree
    out = DraftTree()
    placed: dict[int, int] = {ROOT: ROOT}
    depths: dict[int, int] = {ROOT: 0}
    for node in range(count):
        parent, token = tree.parents[node], index(tree.tokens[node])
        if not ROOT <= parent < node:
            raise ValueError("a draft node stands before its parent")
        if parent not in placed or depths[parent] >= budget.depth or not 0 <= token < vocabulary or len(out) >= budget.nodes:
            continue
        score = min(1.0, max(0.0, float(tree.scores[node])))
        placed[node] = out.add(placed[parent], token, score, tree.drafters[node])
        depths[node] = depths[parent] + 1
    return out


def _obeys(tree: DraftTree, depth: int, vocabulary: int) -> bool:
    """Whether nothing of a bid must be left out or mended, which is the rule."""
    depths: list[int] = []
    for node, (token, parent, score) in enumerate(zip(tree.tokens, tree.parents, tree.scores, strict=True)):
        if not (type(token) is int and 0 <= token < vocabulary and ROOT <= parent < node):
            return False
        if not (isinstance(score, float) and 0.0 <= score <= 1.0):
            return False
        depths.append(1 if parent == ROOT else depths[parent] + 1)
    return max(depths, default=0) <= depth and len({*zip(tree.parents, tree.tokens, strict=True)}) == len(tree)
