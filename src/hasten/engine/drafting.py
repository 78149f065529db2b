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
from typing import Concatenate, ParamSpec

from torch import Tensor

from hasten.control.accounts import Tally
from hasten.control.controller import Controller
from hasten.control.cost import Average, interrupted
from hasten.control.memory import Memory
from hasten.control.rounds import Round, share_deciding
from hasten.core.config import SpeculationParams
from hasten.core.registry import brief
from hasten.core.types import DraftTree, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter, held
from hasten.engine.bids import bids_of, check_names, fault_of, sound
from hasten.engine.flat_laws import FlatLaws
from hasten.engine.likeliest_rows import LikeliestRows
from hasten.engine.scheduler import Scheduled
from hasten.engine.views import Views
from hasten.sampling.laws import DraftLaws, merge

log = logging.getLogger(__name__)
LONGEST_REST = 8  # steps of a sequence alone; looking takes longer where there are more
AUTO = SpeculationParams()
SILENT = "it has nothing to guess for this text"
LET_GO = "getting ready for texts and following them has taken more than its guesses brought"
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
    _out: dict[tuple[str, int], str] = field(default_factory=dict)  # who takes no part in a sequence, and why
    _absent: set[tuple[str, int]] = field(default_factory=set)  # those of them who never began with it
    _views: Views = field(default_factory=Views)
    _told: set[str] = field(default_factory=set)  # drafters of whose faulty guesses a warning has told
    _wishes: dict[int, SpeculationParams] = field(default_factory=dict)
    _seen: dict[tuple[str, int], int] = field(default_factory=dict)  # tokens a paid drafter has read of a sequence
    _rounds: dict[int, Round] = field(default_factory=dict)  # of the step in progress, by sequence id
    _speaking: list[str] = field(default_factory=list)  # who has something to say about one of them; the others need no credit
    _laws: dict[int, DraftLaws] = field(default_factory=dict)  # the same, of those whose drafts may be drawn
    _likeliest: LikeliestRows = field(default_factory=LikeliestRows)
    _flat: FlatLaws = field(default_factory=FlatLaws)
    _rest: int = 0  # steps of the present rest: while nobody drafts, most steps are not even looked at
    _rested: int = 0
    _settling: Average = field(default_factory=lambda: Average(0.1))  # seconds that the books of a round take
    _bookkeeping: float = 0.0  # and what was charged for them in the step in progress

    def begun(self, sequence: Sequence) -> bool:
        return sequence.id in self._wishes

    @_counted
    def begin(self, sequence: Sequence, wish: SpeculationParams = AUTO) -> None:
        """A sequence will be decoded; drafters index its text, so this waits until its turn has come."""
        self._wishes[sequence.id] = wish
        self._rest = 0
        if wish.mode == "off":
            return
        for drafter in self.drafters:
            if not self.controller.keeps(drafter.name, wish):
                self._out[drafter.name, sequence.id] = LET_GO
                self._absent.add((drafter.name, sequence.id))
                continue
            started, view = self.clock(), self._views.of(sequence)
            try:
                drafter.begin(view)
                if not drafter.serves(view):
                    self._out[drafter.name, sequence.id] = SILENT
                if drafter.paid:
                    self._seen[drafter.name, sequence.id] = drafter.recalled(view)
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)
            self.controller.keep_up(drafter.name, sequence.id, wish, "begin", self.clock() - started)

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
        rounds = [Round.of(item.sequence, wish, item.sequence in self._flat) for item, wish in zip(decoding, wishes, strict=True)]
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
            else:
                round.line_up()
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
            bids = bids_of(drafter, [self._views.of(sequence) for sequence in sequences], budgets, drawing)
        except Exception as problem:  # whose fault it is nobody can tell
            for sequence in sequences:
                self._switch_off(drafter, sequence, problem)
            bids = []
        for sequence, round, budget, (bid, laws) in zip(sequences, rounds, budgets, bids, strict=False):
            try:
                if self._views.changed(sequence):
                    raise ValueError("it changes the text that it is to guess from")
                tree = sound(bid, budget, self.vocabulary)
                check_names(tree, drafter.name)
                if tree is not bid and drafter.name not in self._told and (fault := fault_of(bid, budget, self.vocabulary)):
                    self._told.add(drafter.name)  # in every round it would drown everything else
                    log.warning("Drafter '%s' proposes %s; this is said once.", drafter.name, fault)
                self._bid(round, drafter, tree, laws, len(bid))
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
        depth = min(depth, max(0, sequence.tokens_left - 1))  # the round adds a token of the target's own to what is accepted
        return DraftBudget(nodes, depth, floor, calibrated, entropy, floors, ahead)

    def _charge(self, drafter: Drafter, sequences: list[Sequence], rounds: list[Round], spent: float) -> None:
        """Share out what a drafter took: its levels evenly, with all that one who reads nothing does for them; its reading by how
        much each sequence had grown since."""
        guessing = spent
        unread = [round.to_read(drafter.name) for round in rounds]
        if drafter.paid:
            costs, one = self.controller.costs, drafter.seconds_per_pass
            levels = max((round.levels.get(drafter.name, 0) for round in rounds), default=0)
            if one is None:
                costs.spent(drafter.name, spent, levels)
            elif drafter.reads and levels:
                guessing = min(spent, drafter.passes * one)
            costs.charge(drafter.name, one, drafter.foreseen, spent - guessing, sum(unread), len(rounds))
        whole = max(1, sum(unread))
        for sequence, round, tokens in zip(sequences, rounds, unread, strict=True):
            reading = (spent - guessing) * tokens / whole
            round.seconds[drafter.name] = guessing / len(rounds) + reading
            round.catching_up[drafter.name] = reading
            if sequence.id not in drafter.passed_over:
                self._seen[drafter.name, sequence.id] = round.context

    @property
    def likeliest_wanted(self) -> int:
        """How many of the target's likeliest tokens of each row of this step some drafter may want to know."""
        return max((drafter.likeliest_wanted for drafter in self.drafters), default=0) if self._rounds else 0

    def show(self, logits: Tensor, likeliest: Tensor | None = None) -> None:
        """All rows of the step, [rows, vocabulary], before the first is verified; with them their ``likeliest`` tokens, [rows,
        ``likeliest_wanted``], where these are known already."""
        if likeliest is not None:
            self._likeliest.know(logits, likeliest)
        elif len(self._rounds) > 1:
            asked = [
                (round, [d for d in self.drafters if d.name in round.seconds and (d.name, round.sequence) not in self._out])
                for round in self._rounds.values()
            ]
            self._likeliest.look(logits[:, : self.vocabulary], asked, self.clock)

    @_counted
    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict, logits: Tensor, states: Tensor | None = None) -> None:
        """After the sequence has grown by the verdict's tokens. ``tree`` is what was verified: what was selected, or nothing where
        blocks ran out; ``logits`` [1 + nodes, vocabulary] and ``states`` [1 + nodes, hidden] are the target's.

        Drafters learn of the first token and of rounds that they were asked in; what that takes is charged to them."""
        if not self.drafters or self._wishes.get(sequence.id, AUTO).mode == "off":
            return
        last = 1 + verdict.path[-1] if verdict.path else 0
        if states is not None and self._rested >= self._rest:  # nobody is asked before another step gives its states
            self._follow(sequence, states[last])
        round = self._rounds.get(sequence.id)
        if round is None and sequence.output_length > 1:
            return
        if sequence.output_length <= 1:
            self._rest = 0  # whoever rests does so over others
        if round is not None:
            if len(tree) != len(round.verified):
                round.keep(set())
            self.controller.observe(round, verdict.path)
        self._flat.look(sequence, logits[:, : self.vocabulary], last, round, self.clock)
        learning = [drafter for drafter in self.drafters if self._learns(drafter, sequence, round)]
        verdict.likeliest = self._likeliest.find(logits[:, : self.vocabulary], learning, round, self.clock)
        for drafter in learning:
            started = self.clock()
            try:
                drafter.observe(self._views.of(sequence), tree, verdict)
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)
            if round is not None:
                round.seconds[drafter.name] += self.clock() - started

    def _follow(self, sequence: Sequence, state: Tensor) -> None:
        wish = self._wishes.get(sequence.id, AUTO)
        for drafter in self.drafters:
            if not drafter.follows or (drafter.name, sequence.id) in self._out:
                continue
            if not self.controller.keeps(drafter.name, wish):
                self._out[drafter.name, sequence.id] = LET_GO
                continue
            started = self.clock()
            try:
                drafter.follow(self._views.of(sequence), state)
            except Exception as problem:
                self._switch_off(drafter, sequence, problem)
            self.controller.keep_up(drafter.name, sequence.id, wish, "follow", self.clock() - started)

    def _learns(self, drafter: Drafter, sequence: Sequence, round: Round | None) -> bool:
        asked = drafter.name in round.seconds if round is not None else sequence.output_length <= 1
        return asked and (drafter.name, sequence.id) not in self._out

    @_counted
    def settle(self, items: list[Scheduled], rows: int, forward: float, whole: float) -> None:
        """A step of these items is over, ``whole`` seconds after it began: learn what it cost and what drafting brought."""
        self._likeliest.forget()
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

    @_counted
    def end(self, sequence: Sequence) -> None:
        if not self.begun(sequence):
            return
        wish = self._wishes.pop(sequence.id)
        for drafter in self.drafters if wish.mode != "off" else ():
            key = drafter.name, sequence.id
            self._out.pop(key, None)
            self._seen.pop(key, None)
            if key in self._absent:
                self._absent.discard(key)
                continue
            started = self.clock()
            try:
                drafter.end(self._views.of(sequence))
            except Exception as problem:
                log.warning("Drafter '%s' failed to clean up (%r).", drafter.name, problem)
            self.controller.keep_up(drafter.name, sequence.id, wish, "end", self.clock() - started)
        self._views.forget(sequence)
        self._flat.forget(sequence)
        complete = sequence.finish_reason in ("stop", "length") and sequence.output_length > 0
        self.controller.finish(sequence.id, sequence.output_length, complete)
        if self.memory is not None:
            self.memory.save_sometimes(self.controller)

    def decisions(self, sequence: Sequence) -> dict[str, str]:
        """Why each drafter is on or off for a sequence, one line each; nothing of one that never began. Ask before its ``end``."""
        if not self.begun(sequence):
            return {}
        out = {name: f"{name}: off, {why}" for (name, number), why in self._out.items() if number == sequence.id}
        return {
            drafter.name: (out.get(drafter.name) or self.controller.explain(drafter.name, sequence.id)) + held(drafter.bytes)
            for drafter in self.drafters
        }

    def statistics(self) -> dict[str, Tally]:
        """What each drafter did since the engine started."""
        return {drafter.name: self.controller.tallies.get(drafter.name, Tally()) for drafter in self.drafters}

    def _switch_off(self, drafter: Drafter, sequence: Sequence, problem: Exception) -> None:
        self._out[drafter.name, sequence.id] = f"it failed ({brief(problem)})"
        log.warning("Drafter '%s' failed (%r) and is off for request %s.", drafter.name, problem, sequence.request_id)


def _pure(items: list[Scheduled], decoding: int) -> bool:
    """Whether a step of these items, so many of which decode, is a decoding step and nothing else. Prompt chunks, and texts that
    are computed again, have other shapes and would distort the curve."""
    return decoding == len(items) and all(item.chain == 1 for item in items)
