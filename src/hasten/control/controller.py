"""How much to draft: spend verify rows where they buy most, down to none.

Free drafters (text matches) are always asked; their nodes cost only rows. A paid drafter (a model) costs seconds a level. It is
asked when, at its recent yield, the round with it is expected to deliver more tokens a second than the round without; when it is
not, it is probed again after growing intervals. Then the nodes of all sequences, sorted by survival, are kept up to the number N
that maximises

    (sequences + sum of survivals of the N best) / (drafting seconds + cost of (rows + N))

N = 0 included (the goodput form of SmartSpec, 2406.14066, section 4, on calibrated survivals).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.control.calibrator import Calibrator
from hasten.control.cost import Average, CostCurve
from hasten.core.types import ROOT, DraftTree, Verdict

FIRST_PROBE = 16
LONGEST_PROBE = 256


@dataclass(slots=True)
class PaidState:
    """What is known of a paid drafter on one sequence: recent yield (accepted nodes a round), and when to try again."""

    accepted: Average = field(default_factory=lambda: Average(0.2))
    levels: Average = field(default_factory=lambda: Average(0.2))
    rounds_off: int = 0
    interval: int = FIRST_PROBE


@dataclass(slots=True)
class Controller:
    """Decides for one engine. ``curve`` is the target's cost; ``overhead`` the seconds of a step outside the forward pass;
    ``level_cost`` those of one level of each paid drafter, by name."""

    curve: CostCurve
    most_nodes: int = 32
    calibrator: Calibrator = field(default_factory=Calibrator)
    overhead: Average = field(default_factory=lambda: Average(0.05, 0.0))
    level_cost: dict[str, Average] = field(default_factory=dict)
    _paid: dict[tuple[str, int], PaidState] = field(default_factory=dict)

    def plain_seconds(self, sequences: int) -> float:
        """Seconds of a plain decoding step of that many sequences now."""
        return self.curve.predict(sequences) + (self.overhead.value or 0.0)

    def survivals(self, tree: DraftTree) -> list[float]:
        """Calibrated P(accepted) of each node. Siblings exclude each other, so theirs never add up to more than their parent's."""
        conditional = [self.calibrator.probability(d, s) for d, s in zip(tree.drafters, tree.scores, strict=True)]
        totals: dict[int, float] = {}
        for parent, value in zip(tree.parents, conditional, strict=True):
            totals[parent] = totals.get(parent, 0.0) + value
        out: list[float] = []
        for parent, value in zip(tree.parents, conditional, strict=True):
            share = value / max(1.0, totals[parent])
            out.append(share if parent == ROOT else share * out[parent])
        return out

    def ask(self, drafter: str, sequence_id: int, free: DraftTree, sequences: int) -> bool:
        """Whether the paid drafter should draft this round, given what the free ones offer."""
        state = self._paid.setdefault((drafter, sequence_id), PaidState())
        level = self.level_cost.get(drafter)
        if level is None or level.value is None or state.accepted.value is None or not self.curve.known:
            return True
        offered = sum(self.survivals(free))
        base = self.plain_seconds(sequences)
        without = (1.0 + offered) / base
        spent = (state.levels.value or 1.0) * level.value
        if (1.0 + max(state.accepted.value, offered)) / (base + spent) > without:
            state.interval = FIRST_PROBE
            return True
        state.rounds_off += 1
        if state.rounds_off < state.interval:
            return False
        state.rounds_off, state.interval = 0, min(state.interval * 2, LONGEST_PROBE)
        return True

    def charge(self, drafter: str, seconds: float) -> None:
        """One level of that paid drafter took that long."""
        self.level_cost.setdefault(drafter, Average(0.2)).observe(seconds)

    def minimum_survival(self, drafter: str, sequences: int) -> float:
        """Below this survival of its frontier another level of a paid drafter costs more than the token it may bring is worth.

        A token is worth the seconds it takes to make one: those of a round over the tokens of a round.
        """
        level = self.level_cost.get(drafter)
        if level is None or level.value is None or not self.curve.known:
            return 0.3
        return min(0.95, level.value * sequences / self.plain_seconds(sequences))

    def select(self, trees: list[DraftTree], rows: int, drafting_seconds: float) -> list[DraftTree]:
        """Keep the nodes worth verifying. ``rows`` is what the step computes anyway."""
        ranked = [(survival, index, node) for index, tree in enumerate(trees) for node, survival in enumerate(self.survivals(tree))]
        ranked.sort(key=lambda entry: (-entry[0], entry[2], entry[1]))
        keep = self._best_count([entry[0] for entry in ranked], len(trees), rows, drafting_seconds)
        kept: list[set[int]] = [set() for _ in trees]
        for _, index, node in ranked[:keep]:
            kept[index].add(node)
        return [tree.keep(nodes) for tree, nodes in zip(trees, kept, strict=True)]

    def _best_count(self, survivals: list[float], sequences: int, rows: int, drafting_seconds: float) -> int:
        if not self.curve.known:
            return min(len(survivals), self.most_nodes * max(1, sequences))
        fixed = drafting_seconds + (self.overhead.value or 0.0)
        expected, best, best_rate = float(sequences), 0, sequences / (fixed + self.curve.predict(rows))
        for count, survival in enumerate(survivals[: self.most_nodes * max(1, sequences)], start=1):
            expected += survival
            rate = expected / (fixed + self.curve.predict(rows + count))
            if rate > best_rate:
                best, best_rate = count, rate
        return best

    def observe(self, sequence_id: int, tree: DraftTree, verdict: Verdict, levels: dict[str, int]) -> None:
        """Learn from one verified tree. ``levels`` says how many levels each paid drafter computed for it."""
        accepted = set(verdict.path)
        for node, parent in enumerate(tree.parents):
            if parent == ROOT or parent in accepted:
                self.calibrator.observe(tree.drafters[node], tree.scores[node], node in accepted)
        for drafter, count in levels.items():
            state = self._paid.setdefault((drafter, sequence_id), PaidState())
            state.accepted.observe(float(len(verdict.path)))
            state.levels.observe(float(count))

    def forget(self, sequence_id: int) -> None:
        for key in [key for key in self._paid if key[1] == sequence_id]:
            del self._paid[key]
