"""How much to draft: spend verify rows and draft passes where they buy most, down to none.

Every round, drafters are asked if they may (accounts, see ``accounts``) and, where each level costs a model's pass, if at their
recent acceptance the best depth makes more tokens a second than not drafting. Then the nodes of all sequences, sorted by
calibrated survival, are kept up to the number N that maximises

    (sequences + sum of survivals of the N best) / (drafting seconds + cost of (rows + N))

N = 0 included (the goodput form of SmartSpec, 2406.14066, section 4, on calibrated survivals).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from hasten.control import rules
from hasten.control.accounts import EXPLORATION, OWN_FORGETTING, STANDING_FORGETTING, Own, Standing, Tally
from hasten.control.calibrator import ALL, Calibrator
from hasten.control.cost import OUTLIER, Average, CostCurve, Line, Shape
from hasten.control.rounds import Round
from hasten.control.selection import best_count, survivals
from hasten.core.types import BLOCK_SIZE, ROOT, DraftTree

LEAST_SURVIVAL = 0.01  # less likely nodes are not worth a row anywhere
FIRST_LENGTH = 128.0  # tokens of an answer before any has ended
PROBE_DEPTH = 2
FIRST_REFERENCE = 4  # rounds until a plain step is measured; doubled each time
REFERENCE_EVERY = 48  # at most, where drafting gains little
RARE_REFERENCE = 192  # at most, where it gains much
THIN_GAIN = 1.25
REMEMBERED_STEPS = 9
DEEPEST_ASKED = 12  # levels considered when it is decided whether a model should draft at all


@dataclass(slots=True)
class Controller:
    """Decides for one engine. ``curve`` is the target's cost, ``draft_curves`` those of drafters that are models; ``overhead`` the
    seconds of a step outside the forward pass, by rows; ``rule`` and ``depth`` the setting ``control``."""

    curve: CostCurve
    most_nodes: int = 32
    draft_curves: dict[str, CostCurve] = field(default_factory=dict)
    rule: str = "auto"
    depth: int = 0
    calibrator: Calibrator = field(default_factory=Calibrator)
    overhead: Line = field(default_factory=Line)
    standings: dict[tuple[str, str], Standing] = field(default_factory=dict)
    answer_length: Average = field(default_factory=lambda: Average(0.05, FIRST_LENGTH))
    tallies: dict[str, Tally] = field(default_factory=dict)
    level_cost: dict[str, Average] = field(default_factory=dict)
    reading_cost: dict[str, Average] = field(default_factory=dict)
    entropy: rules.EntropyThreshold = field(default_factory=rules.EntropyThreshold)
    _own: dict[tuple[str, int], Own] = field(default_factory=dict)
    _askers: dict[str, int] = field(default_factory=dict)  # sequences that shared a drafter's passes when it was last asked
    _gain: Average = field(default_factory=lambda: Average(0.1))
    _steps: int = 1  # since the last one that was looked at
    _since_plain: int = 0
    _reference: int = FIRST_REFERENCE
    _plain_ratios: deque[float] = field(default_factory=lambda: deque([1.0], REMEMBERED_STEPS))
    _bias: float = 1.0
    _plain: float = 0.0
    _unit: float = 0.0
    _shapes: list[Shape] = field(default_factory=list)

    # Costs

    def plain_seconds(self, sequences: int | Sequence[int]) -> float:
        """Seconds of a plain decoding step of that many sequences now, or of sequences with these contexts."""
        if isinstance(sequences, int):
            return self._bias * (self.curve.predict(sequences) + self.overhead.predict(sequences))
        return self._bias * (self.curve.step([(1, context) for context in sequences]) + self.overhead.predict(len(sequences)))

    def open(self, rounds: Sequence[Round], rested: int = 0) -> bool:
        """A step begins, after ``rested`` plain ones that were not looked at. False when it should be plain: what plain decoding
        costs must be known from steps, not only from the curve, and the more often the less drafting gains."""
        self._steps = 1 + rested
        self._shapes = [(1, round.context) for round in rounds]
        if not self.curve.known:
            return True
        self._plain = self.plain_seconds([context for _, context in self._shapes])
        self._unit = self._plain / len(rounds)
        if self.rule != "auto" or any(round.wish.mode == "on" for round in rounds):
            return True
        self._since_plain += 1
        most = RARE_REFERENCE if (self._gain.value or 1.0) > THIN_GAIN else REFERENCE_EVERY
        return self._since_plain < min(self._reference, most)

    def level_seconds(self, drafter: str, askers: int) -> float | None:
        """Seconds of one level of a paid drafter for one of that many sequences of this step; None where nothing is known."""
        seen = self.level_cost.get(drafter)
        curve = self.draft_curves.get(drafter)
        if curve is not None and curve.known:
            return curve.step(self._shapes[:askers]) * (seen.value if seen is not None and seen.value else 1.0) / askers
        return seen.value / askers if seen is not None and seen.value is not None else None

    def reading_seconds(self, drafter: str, tokens: int) -> float:
        """Seconds a paid drafter takes to read that many tokens of text before it can guess."""
        if tokens <= BLOCK_SIZE:
            return 0.0
        seen = self.reading_cost.get(drafter)
        if seen is not None and seen.value is not None:
            return tokens * seen.value
        curve = self.draft_curves.get(drafter)
        return tokens * curve.predict(BLOCK_SIZE) / BLOCK_SIZE if curve is not None and curve.known else 0.0

    def charge(self, drafter: str, level: float | None, reading: float, tokens: int, askers: int) -> None:
        """A paid drafter took ``level`` seconds a level for ``askers`` sequences, and ``reading`` to read ``tokens``."""
        self._askers[drafter] = askers
        if level is not None:
            curve = self.draft_curves.get(drafter)
            scale = curve.step(self._shapes[:askers]) if curve is not None and curve.known and self._shapes else 1.0
            self.level_cost.setdefault(drafter, Average(0.2)).observe(level / scale)
        if tokens > BLOCK_SIZE:
            self.reading_cost.setdefault(drafter, Average(0.3)).observe(reading / tokens)

    # Whom to ask

    def ask(self, drafter: str, paid: bool, round: Round) -> bool:
        """Whether the drafter should draft this round, given what is in the round's tree already."""
        own = self._own.setdefault((drafter, round.sequence), Own())
        own.rounds += 1
        own.on, own.why = self._decide(drafter, paid, round, own)
        own.asked += own.on
        tally = self.tallies.setdefault(drafter, Tally())
        tally.state, tally.reason = ("on" if own.on else "off"), own.why
        tally.rounds += own.on
        return own.on

    def _decide(self, drafter: str, paid: bool, round: Round, own: Own) -> tuple[bool, str]:
        if round.wish.mode == "off" or round.wish.nodes == 0:
            return False, "the request asks for no drafts"
        if round.wish.mode == "on":
            return True, "the request asks for drafts"
        if self.rule != "auto":
            return self._decide_by_rule(drafter, paid, round, own)
        level = self.level_seconds(drafter, self._expected_askers(drafter)) if paid else 0.0
        if not self.curve.known or level is None:
            return True, "nothing is measured yet"
        standing = self.standing(drafter, round.kind)
        if standing.balance is None:
            standing.book(0.0, self._plain)
        depth, rate = self._best_depth(round, own.acceptance(standing), level) if paid else (1, 1.0)
        if not own.begun:
            return self._begin(drafter, round, own, standing, paid, rate)
        if own.balance <= 0.0:
            return self._probe(own, standing, "it has cost more than it brought here")
        if depth == 0:
            return self._probe(own, standing, f"at {own.acceptance(standing):.2f} accepted a level does not pay")
        return True, f"{own.acceptance(standing):.2f} of its guesses are accepted" + (f", best {depth} deep" if paid else "")

    def _begin(self, drafter: str, round: Round, own: Own, standing: Standing, paid: bool, rate: float) -> tuple[bool, str]:
        """Whether a drafter may start with a request: it must be in credit, and what it reads first must come back."""
        left = min(round.tokens_left, self.answer_length.value or FIRST_LENGTH)
        reading = self.reading_seconds(drafter, round.context) / len(self._shapes) if paid else 0.0
        allowance = self._unit * min(4.0, max(0.5, (0.03 if standing.proven else 0.015) * left))
        if standing.free <= 0.0 or standing.free < allowance / 4:
            return False, "it has lately cost more than it brought; it earns another try while decoding is plain"
        if paid:
            saved = left * (self._unit - 1.0 / rate)
            if saved <= reading:
                return False, f"reading {round.context} tokens takes {reading:.2f} s and would save {saved:.2f} s"
        own.begun, own.balance, own.allowance = True, allowance, allowance
        own.reserved = reading + allowance
        standing.reserved += own.reserved
        return True, "it begins"

    def _probe(self, own: Own, standing: Standing, why: str) -> tuple[bool, str]:
        if standing.free > 0.0 and own.probe_due(self._steps):
            own.probing, own.reserved = True, self._unit
            standing.reserved += self._unit
            return True, f"{why}; it is tried again"
        return False, f"{why}; it is tried again in {max(1, own.interval - own.off)} rounds"

    def _decide_by_rule(self, drafter: str, paid: bool, round: Round, own: Own) -> tuple[bool, str]:
        level = self.level_seconds(drafter, self._expected_askers(drafter))
        if self.rule == "goodput" and paid and level is not None and self.curve.known:
            depth, _ = self._best_depth(round, self.standing(drafter, round.kind).acceptance, level)
            return depth > 0, f"goodput is best {depth} deep"
        return True, f"the setting {self.rule} always drafts"

    def _best_depth(self, round: Round, acceptance: float, level: float) -> tuple[int, float]:
        """Levels that make most tokens a second of this sequence's share of the step, and that rate."""
        row = self._row_seconds(round.context)
        offered = sum(self.survivals(round.tree, round.kind)) if len(round.tree) else 0.0
        seconds = lambda depth: self._unit + depth * (level + row)  # noqa: E731
        return rules.best_depth(acceptance, seconds, offered, min(DEEPEST_ASKED, max(1, round.tokens_left)))

    def _row_seconds(self, context: int) -> float:
        """What one more row costs, on average over the next few."""
        rows = len(self._shapes)
        more = self.curve.base(rows + 4) - self.curve.base(rows) + self.overhead.predict(rows + 4) - self.overhead.predict(rows)
        return max(0.0, more) / 4 + self.curve.attention(2, context) - self.curve.attention(1, context)

    def _expected_askers(self, drafter: str) -> int:
        sequences = max(1, len(self._shapes))
        return min(self._askers.get(drafter, sequences), sequences)

    # How deep

    def limits(self, drafter: str, paid: bool, round: Round, askers: int) -> tuple[int, float, float]:
        """Most levels, least survival of a chain that is drafted further, and most entropy (nats) of a level. ``askers`` sequences
        share the drafter's passes."""
        free = float("inf")
        if self.rule == "fixed":
            return self.depth, 0.0, free
        if not paid:
            return rules.DEEPEST, 0.0, free
        level = self.level_seconds(drafter, askers)
        if self.rule == "goodput":
            known = level is not None and self.curve.known
            acceptance = self.standing(drafter, round.kind).acceptance
            return (self._best_depth(round, acceptance, level or 0.0)[0] if known else 1), 0.0, free
        if self.rule == "threshold":
            return rules.DEEPEST, 1.0 - rules.MOST_REJECTED, free
        if self.rule == "entropy":
            return rules.DEEPEST, 0.0, rules.entropy_limit(self.entropy.threshold)
        probing = self._own.setdefault((drafter, round.sequence), Own()).probing
        deepest = PROBE_DEPTH if probing else rules.DEEPEST
        if level is None or not self.curve.known:
            return (PROBE_DEPTH if self.curve.known else deepest), 0.3, free
        # A token is worth what it takes to make one: the step's seconds over its tokens at the present gain.
        worth = self._unit / max(1.0, self._gain.value or 1.0)
        return deepest, min(0.95, (level + self._row_seconds(round.context)) / worth), free

    def calibrated(self, drafter: str, kind: str) -> Callable[[float], float]:
        """P(accepted | parent accepted) by raw score, for drafters that stop by it."""
        return partial(self._calibrated, drafter, kind)

    def _calibrated(self, drafter: str, kind: str, score: float) -> float:
        return self.calibrator.probability(drafter, score, kind)

    # Which nodes

    def survivals(self, tree: DraftTree, kind: str = ALL) -> list[float]:
        """Calibrated P(accepted) of each node. Siblings exclude each other, so theirs never add up to more than their parent's."""
        conditional = [self.calibrator.probability(d, s, kind) for d, s in zip(tree.drafters, tree.scores, strict=True)]
        return survivals(tree, conditional)

    def select(self, rounds: Sequence[Round], rows: int, drafting_seconds: float) -> list[DraftTree]:
        """Keep the nodes worth verifying. ``rows`` is what the step computes anyway."""
        if self.rule != "auto":
            depth = self.depth or rules.DEEPEST
            return [round.keep(rules.chain_of(round.tree, min(depth, round.wish.nodes))) for round in rounds]
        ranked = [
            (survival, index, node)
            for index, round in enumerate(rounds)
            for node, survival in enumerate(self.survivals(round.tree, round.kind))
            if survival >= LEAST_SURVIVAL or not self.curve.known
        ]
        ranked.sort(key=lambda entry: (-entry[0], entry[2], entry[1]))
        most = self.most_nodes * max(1, len(rounds))
        contexts = [round.context for round in rounds]
        keep = min(len(ranked), most)
        if self.curve.known:
            keep = best_count(ranked[:most], contexts, rows, drafting_seconds, self.curve, self.overhead)
        kept: list[set[int]] = [set() for _ in rounds]
        for place, (_, index, node) in enumerate(ranked):
            if (place < keep or rounds[index].wish.mode == "on") and len(kept[index]) < rounds[index].wish.nodes:
                kept[index].add(node)
        return [round.keep(nodes) for round, nodes in zip(rounds, kept, strict=True)]

    # What became of it

    def observe(self, round: Round, accepted: list[int]) -> None:
        """Learn which verified nodes were accepted."""
        round.accepted = accepted
        tree, chosen = round.verified, set(accepted)
        for node, parent in enumerate(tree.parents):
            if parent == ROOT or parent in chosen:
                self.calibrator.observe(tree.drafters[node], tree.scores[node], node in chosen, round.kind)
        brought = round.brought()
        for drafter, levels in round.levels.items():
            verified = self._verified_levels(round, drafter, levels)
            if verified:
                standing = self.standing(drafter, round.kind)
                standing.evidence.observe(len(accepted), verified, STANDING_FORGETTING)
                own = self._own.setdefault((drafter, round.sequence), Own())
                own.evidence.observe(len(accepted), verified, OWN_FORGETTING)
                if self.rule == "entropy":
                    self.entropy.observe(min(len(accepted), verified), verified)
        for drafter in {*round.origins}:
            tally = self.tallies.setdefault(drafter, Tally())
            tally.proposed += round.origins.count(drafter)
            tally.verified += round.verified_origins.count(drafter)
            tally.accepted += brought.get(drafter, 0)

    @staticmethod
    def _verified_levels(round: Round, drafter: str, levels: int) -> int:
        depths = [depth for depth, name in zip(round.verified.depths(), round.verified.drafters, strict=True) if name == drafter]
        return min(levels, max(depths, default=0))

    def settle(self, rounds: Sequence[Round], rows: int, forward: float, whole: float, drafters: Iterable[str], pure: bool) -> None:
        """A step is over: it took ``whole`` seconds, ``forward`` of them in the pass over ``rows`` rows. Teach the cost curve and
        book gains and losses. ``pure``: nothing but the rounds' sequences was computed."""
        asked = sum(sum(round.seconds.values()) for round in rounds)
        shapes = [(1 + len(round.verified), round.context) for round in rounds]
        if pure and shapes:
            self.curve.learn(shapes, forward)
            self.overhead.observe(rows, max(0.0, whole - asked - forward))
        if not self.curve.known or not rounds or self._plain <= 0.0:
            return
        nodes = sum(len(round.verified) for round in rounds)
        extra = self._verifying_seconds(shapes, rows, nodes, whole - asked if pure else None)
        names = list(drafters)
        earned = EXPLORATION / max(1, len(names)) * self._unit
        for round in rounds:
            share = extra / nodes if nodes else 0.0
            self._book(round, share, names, earned)
        brought = sum(len(round.accepted) for round in rounds)
        if nodes or asked:
            self._gain.observe((len(rounds) + brought) * self._unit / (self._plain + asked + extra))
        else:
            self._gain.observe(1.0)
            if pure:
                self._refer(whole)

    def _refer(self, whole: float) -> None:
        """A plain step took that long; the median of a few is believed, so that an interruption is not."""
        if self._since_plain >= self._reference:
            self._reference = min(2 * self._reference, RARE_REFERENCE)
        ratio = whole * self._bias / self._plain
        if self._since_plain >= FIRST_REFERENCE:  # the older ones are of another time; one step may have been interrupted
            self._plain_ratios.clear()
            self._plain_ratios.append(min(ratio, self._bias))
        self._since_plain = 0
        self._plain_ratios.append(ratio)
        self._bias = sorted(self._plain_ratios)[(len(self._plain_ratios) - 1) // 2]

    def _verifying_seconds(self, shapes: list[Shape], rows: int, nodes: int, measured: float | None) -> float:
        """What the drafted rows added to a plain step."""
        if not nodes:
            return 0.0
        plain = self.curve.step([(1, context) for _, context in shapes]) + self.overhead.predict(rows - nodes)
        with_nodes = self.curve.step(shapes) + self.overhead.predict(rows)
        if measured is not None and measured < OUTLIER * with_nodes:
            return max(0.0, measured - self._plain)
        return max(0.0, with_nodes - plain)

    def _book(self, round: Round, row_seconds: float, drafters: list[str], earned: float) -> None:
        brought = round.brought()
        for drafter in drafters:
            own = self._own.get((drafter, round.sequence))
            took = round.seconds.get(drafter)
            standing = self.standing(drafter, round.kind)
            if took is None:
                standing.book(self._steps * earned, self._plain)
                if own is not None and own.begun:
                    own.balance = min(own.balance + self._steps * earned, own.allowance)
                continue
            rows = round.verified_origins.count(drafter)
            net = brought.get(drafter, 0) * self._unit - took - rows * row_seconds
            standing.book(net + earned, self._plain)
            tally = self.tallies.setdefault(drafter, Tally())
            tally.seconds += took
            tally.saved += net
            if own is not None:
                standing.reserved -= own.reserved
                own.reserved = 0.0
                own.settle(net + round.catching_up.get(drafter, 0.0))

    # Requests

    def standing(self, drafter: str, kind: str) -> Standing:
        return self.standings.setdefault((drafter, kind), Standing())

    def own(self, drafter: str, sequence: int) -> Own | None:
        """The account of a drafter on a sequence, None where it was never asked for."""
        return self._own.get((drafter, sequence))

    def finish(self, sequence: int, kind: str, length: int, complete: bool) -> None:
        """A sequence is over after ``length`` tokens; an answer that was cut short says nothing about how long answers are."""
        if complete:
            self.answer_length.observe(float(length))
        for key in [key for key in self._own if key[1] == sequence]:
            self.standing(key[0], kind).reserved -= self._own.pop(key).reserved

    def explain(self, drafter: str, sequence: int | None = None) -> str:
        """One line: whether the drafter is on, why, and what it has brought; of one request, or of the engine so far."""
        own = None if sequence is None else self._own.get((drafter, sequence))
        if own is not None:
            state = "on" if own.on else "off"
            return f"{drafter}: {state}, {own.why}; asked in {own.asked} of {own.rounds} rounds, {own.saved:+.2f} s saved"
        tally = self.tallies.get(drafter, Tally())
        counts = f"{tally.accepted} of {tally.verified} verified guesses accepted, {tally.saved:+.2f} s saved"
        return f"{drafter}: {tally.state}, {tally.reason}; {counts}"
