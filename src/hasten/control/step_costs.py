"""What a step takes now, plain and with drafts: the target's cost curve, the drafts', and what was seen while running."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.control.cost import OUTLIER, Average, CostCurve, Line, Shape, interrupted
from hasten.core.types import BLOCK_SIZE

FIRST_REFERENCE = 4  # rounds until a plain step is measured; doubled each time
RARE_REFERENCE = 192  # at most
REFERENCE_EVERY = 48  # and where drafting gains little
THIN_GAIN = 1.25
REMEMBERED_STEPS = 9
REMEMBERED_LEVELS = 4
FLOORS_FOR = 64  # steps that floors are used before they follow the curve
MOST_AHEAD = 6  # rows that a pass of a draft model may have beside the one that it is for
DOUBT = 0.5  # scores are calibrated later, so a node may be proposed with half of what makes it worth its row


@dataclass(slots=True)
class StepCosts:
    """``curve`` is the target's cost, ``draft_curves`` those of drafters that are models; ``overhead`` the seconds of a step
    outside the forward pass, by rows. All seconds."""

    curve: CostCurve
    draft_curves: dict[str, CostCurve] = field(default_factory=dict)
    overhead: Line = field(default_factory=Line)
    shapes: list[Shape] = field(
        default_factory=list
    )  # of the sequences that decode in this step, without drafts, and of those to come
    joining: list[int] = field(default_factory=list)  # the contexts of these, of which prompts are read
    plain: float = 0.0  # of this step
    unit: float = 0.0  # and of each of its sequences: what a token is worth
    _pass: dict[str, Average] = field(default_factory=dict)
    _missed: dict[str, Average] = field(default_factory=dict)  # share of levels behind which the next one takes a pass of its own
    _reading: dict[str, Average] = field(default_factory=dict)
    _levels: dict[str, deque[float]] = field(default_factory=dict)  # seconds a level of drafters that say nothing of their passes
    _since_plain: int = 0
    _reference: int = FIRST_REFERENCE
    _ratios: deque[float] = field(default_factory=lambda: deque([1.0], REMEMBERED_STEPS))
    _bias: float = 1.0
    _floors: dict[tuple[int, int], tuple[int, list[float]]] = field(default_factory=dict)
    _ahead: dict[tuple[str, int], tuple[int, list[float]]] = field(default_factory=dict)
    _opened: int = 0
    _began: float = 0.0  # what a pass of one row took at the beginning

    def __post_init__(self) -> None:
        self._began = self.curve.predict(1) if self.curve.known else 0.0

    @property
    def pace(self) -> float:
        """How many times as long the target's passes of one row take as at the beginning. Passes of draft models are taken to
        follow it, for they wait for the same memory: asked or not, one is as dear beside a plain step as it was."""
        return self.curve.predict(1) / self._began if self._began else 1.0

    def open(self, contexts: list[int], joining: int = 0) -> None:
        """A step of sequences with these contexts begins, and prompts of ``joining`` others are read. These count as if they
        decoded already: they wait as long for the step, and a token that is not guessed now is made in their company."""
        self._opened += 1
        self.joining = [sum(contexts) // len(contexts)] * joining if contexts else []
        company = [*contexts, *self.joining]
        self.shapes = [(1, context) for context in company]
        if self.curve.known:
            self.plain = self.plain_seconds(company)
            self.unit = self.plain / len(company)

    def reference_due(self, gain: float) -> bool:
        """Whether a plain step should be measured now, where drafting makes steps ``gain`` times as fast; asked once a step."""
        self._since_plain += 1
        return self._since_plain >= min(self._reference, RARE_REFERENCE if gain > THIN_GAIN else REFERENCE_EVERY)

    def plain_seconds(self, sequences: int | Sequence[int]) -> float:
        """Seconds of a plain decoding step of that many sequences now, or of sequences with these contexts."""
        if isinstance(sequences, int):
            return self._bias * (self.curve.predict(sequences) + self.overhead.predict(sequences))
        return self._bias * (self.curve.plain_step(sequences) + self.overhead.predict(len(sequences)))

    def one_pass(self, drafter: str, askers: int) -> float | None:
        """Seconds of one pass of a paid drafter for that many sequences of this step (or more) together, which makes one level at
        least; None where nothing is known. Of one that says nothing of its passes the least that a level has lately taken: more
        was spent on something else, too."""
        told = self._told_pass(drafter, askers)
        seen = self._levels.get(drafter) if told is None else None
        return self.pace * min(seen) if seen else told

    def _told_pass(self, drafter: str, askers: int) -> float | None:
        seen = self._pass.get(drafter)
        curve = self._known_curve(drafter)
        if curve is not None:
            more = curve.base(askers) - curve.base(len(self.shapes)) if askers > len(self.shapes) else 0.0
            return self.pace * (curve.step(self.shapes[:askers]) + more) * (seen.value if seen is not None and seen.value else 1.0)
        return self.pace * seen.value if seen is not None and seen.value is not None else None

    def deeper(self, drafter: str, askers: int) -> float:
        """Seconds of a level behind the first one: of a pass, as often as one of the sequences needs it."""
        missed = self._missed.get(drafter)
        foreseen = 0.0 if missed is None or missed.value is None else 1.0 - missed.value
        return (self.one_pass(drafter, askers) or 0.0) * (1.0 - foreseen**askers)

    def passes(self, drafter: str, askers: int) -> tuple[float, float]:
        """Seconds of the first level for that many sequences, and of each one behind it."""
        return self.one_pass(drafter, askers) or 0.0, self.deeper(drafter, askers)

    def levels(self, drafter: str, askers: int, depth: int) -> float:
        """Seconds of so many levels."""
        first, further = self.passes(drafter, askers)
        return first + (depth - 1) * further

    def share_of_round(self, drafter: str, askers: int, context: int, depth: int) -> float:
        """Seconds of a round with a chain of that depth, for one of the sequences that share it."""
        drafting = self.levels(drafter, askers, depth) / askers if depth else 0.0
        return self.unit + drafting + depth * self.row(context)

    def ahead(self, drafter: str, askers: int) -> list[float]:
        """For each number of rows that a pass of a draft model has beside those it is for: the least chance of saving the next pass
        that one more, of each of so many sequences, is worth; as ``floors``. Empty where nothing is measured."""
        curve = self._known_curve(drafter)
        if curve is None or askers < 1:
            return []
        until, least = self._ahead.get((drafter, askers), (0, []))
        if self._opened >= until:
            base = curve.base(askers)
            added = [curve.base(askers * (1 + more)) - base for more in range(MOST_AHEAD + 1)] if base > 0.0 else []
            least = least_chances([seconds / base for seconds in added])
            self._ahead[drafter, askers] = self._opened + FLOORS_FOR, least
        return least

    def reading(self, drafter: str, tokens: int) -> float:
        """Seconds a paid drafter takes to read that many tokens of text before it can guess."""
        curve = self._known_curve(drafter)
        if tokens <= BLOCK_SIZE:  # read with the first level
            return max(0.0, curve.predict(tokens) - curve.predict(1)) if curve is not None else 0.0
        seen = self._reading.get(drafter)
        if seen is not None and seen.value is not None:
            return self._text(drafter, tokens) * seen.value
        return self._text(drafter, tokens) if curve is not None else 0.0

    def _text(self, drafter: str, tokens: int) -> float:
        """What reading a text is measured by: the seconds that the curve says, where tokens of long ones look back on more; else
        its tokens. How long single rows take says nothing of it: they wait for memory, a text for the processor."""
        curve = self._known_curve(drafter)
        return float(tokens) if curve is None else tokens * curve.step([(BLOCK_SIZE, tokens // 2)]) / BLOCK_SIZE

    def _known_curve(self, drafter: str) -> CostCurve | None:
        curve = self.draft_curves.get(drafter)
        return curve if curve is not None and curve.known else None

    def row(self, context: int, drafted: int = 0) -> float:
        """What one more row costs, on average over the next few, where so many are ``drafted`` already."""
        return self.rows(4, drafted) / 4 + self.curve.attention(2, context) - self.curve.attention(1, context)

    def rows(self, more: int, drafted: int = 0) -> float:
        """What ``more`` rows add to a step in which so many are ``drafted`` already, but for reading context."""
        first = len(self.shapes) + drafted
        added = self.curve.base(first + more) - self.curve.base(first)
        return max(0.0, added + self.overhead.predict(first + more) - self.overhead.predict(first))

    def floors(self, most: int) -> list[float]:
        """For each number of nodes below ``most``: the least chance that the next one must have to be worth proposing, and all that
        may come behind it, none likelier: ``DOUBT`` times the slopes of the lower hull of cost by rows, in tokens."""
        sequences = len(self.shapes)
        until, floors = self._floors.get((sequences, most), (0, []))
        if self._opened >= until and self.unit > 0.0:
            floors = least_chances([DOUBT * self.rows(count) / self.unit for count in range(most + 1)])
            self._floors[sequences, most] = self._opened + FLOORS_FOR, floors
        return floors

    def charge(
        self, drafter: str, one_pass: float | None, foreseen: float | None, reading: float, tokens: int, askers: int
    ) -> None:
        """A paid drafter took ``one_pass`` seconds a pass for ``askers`` sequences, and ``reading`` to read ``tokens``; behind the
        share ``foreseen`` of its levels another one takes no pass of its own."""
        if one_pass is not None:
            curve = self._known_curve(drafter)
            scale = curve.step(self.shapes[:askers]) if curve is not None and self.shapes else 1.0
            expected = self._told_pass(drafter, askers)
            if expected is None or not interrupted(one_pass, expected):
                self._pass.setdefault(drafter, Average(0.2)).observe(one_pass / (scale * self.pace))
        if foreseen is not None:
            self._missed.setdefault(drafter, Average(0.1, 1.0)).observe(1.0 - foreseen)
        if tokens > BLOCK_SIZE and not ((due := self.reading(drafter, tokens)) and interrupted(reading, due)):
            self._reading.setdefault(drafter, Average(0.3)).observe(reading / self._text(drafter, tokens))

    def spent(self, drafter: str, seconds: float, levels: int) -> None:
        """A paid drafter that says nothing of its passes took so long for so many levels, or, at 0, to find nothing to guess."""
        self._levels.setdefault(drafter, deque(maxlen=REMEMBERED_LEVELS)).append(seconds / max(1, levels) / self.pace)

    def learn(self, shapes: list[Shape], rows: int, forward: float, whole: float) -> None:
        """A step of these sequences and nothing else took ``whole`` seconds without drafting, ``forward`` of them in its pass."""
        self.curve.learn(shapes, forward)
        self.overhead.observe(rows, max(0.0, whole - forward))

    def refer(self, whole: float) -> None:
        """A plain step took that long; the median of a few is believed, so that an interruption is not."""
        if self._since_plain >= self._reference:
            self._reference = min(2 * self._reference, RARE_REFERENCE)
        ratio = whole * self._bias / self.plain
        if self._since_plain >= FIRST_REFERENCE:  # the older ones are of another time; one step may have been interrupted
            self._ratios.clear()
            self._ratios.append(min(ratio, self._bias))
        self._since_plain = 0
        self._ratios.append(ratio)
        self._bias = sorted(self._ratios)[(len(self._ratios) - 1) // 2]

    def verifying(self, shapes: list[Shape], rows: int, nodes: int, measured: float | None) -> float:
        """What ``nodes`` drafted rows added to a plain step; ``measured`` is what it took, None where more was computed."""
        if not nodes:
            return 0.0
        plain = self.curve.plain_step([context for _, context in shapes]) + self.overhead.predict(rows - nodes)
        with_nodes = self.curve.step(shapes) + self.overhead.predict(rows)
        if measured is not None and measured < OUTLIER * with_nodes:
            return max(0.0, measured - self.plain)
        return max(0.0, with_nodes - plain)


def least_chances(costs: list[float]) -> list[float]:
    """For each number of things that cost ``costs[number]`` together, but the last: the least chance that one more must have, and
    all that may come behind it, none likelier, to be worth what they cost: the slopes of the lower hull."""
    ends = range(1, len(costs))
    return [min((costs[end] - costs[begin]) / (end - begin) for end in ends[begin:]) for begin in range(len(costs) - 1)]
