"""What a step costs, measured: seconds of a forward pass by rows and context, at start-up and corrected while running.

    seconds = drift x (base(rows of all sequences) + sum over sequences of context x slope(rows of that sequence))

``base`` and ``slope`` are interpolated between measured row counts. A drift factor follows the live machine, and each measured
point has a slow correction of its own, so that a wrong shape is found out by running (reference: a cost table with moving
averages and monotone repair, step edges kept; the linear form in the context is SmartSpec's, 2406.14066).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

DRIFT_WEIGHT = 0.05
POINT_WEIGHT = 0.02
START_WEIGHT = 3.0  # steps that a point's start-up measurement is worth
MOST_CORRECTION = 3.0
OUTLIER = 3.0  # a step this many times its prediction was interrupted by something else and teaches nothing
HELD_UP, HELD_UP_SECONDS = 20.0, 0.25  # drafting that took so many times its mean, and so long at least, was interrupted
PATIENCE = 8  # outliers of as many rows, in a row, after which they are believed
LINE_FORGETTING = 0.98

Shape = tuple[int, int]  # rows and context of one sequence in a step


@dataclass(slots=True)
class CostCurve:
    """Seconds by rows at context ``reference``; ``slopes`` the seconds each position of context adds at as many rows (empty: not
    measured). Never falls with more rows; beyond the last point it grows with the slope of the last piece."""

    rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    drift: float = 1.0
    slopes: list[float] = field(default_factory=list)
    reference: int = 0
    _corrections: list[float] = field(default_factory=list)
    _base: list[float] = field(default_factory=list)
    _evidence: list[float] = field(default_factory=list)  # steps that each point has learnt from
    _outliers: dict[int, list[float]] = field(default_factory=dict)  # ratios to the prediction, by rows
    _since_fit: int = PATIENCE  # steps since one, of whatever rows, took what was predicted

    def __post_init__(self) -> None:
        self._corrections = [1.0] * len(self.rows)
        self._evidence = [START_WEIGHT] * len(self.rows)
        self._repair()

    @classmethod
    def measured(cls, points: dict[int, float], slopes: dict[int, float] | None = None, reference: int = 0) -> CostCurve:
        """From {rows: seconds at ``reference``} and {rows: seconds a position of context}; noise only
        ever adds, so a point that came out dearer than a larger one is lowered to it."""
        rows = sorted(points)
        known = sorted(slopes) if slopes else []
        lowered = _lowered([max(0.0, slopes[count]) for count in known]) if slopes else []
        steep = [_between(known, lowered, count) for count in rows] if lowered else []
        return cls(rows, _lowered([points[count] for count in rows]), slopes=steep, reference=reference)

    @property
    def known(self) -> bool:
        return bool(self.rows)

    def predict(self, rows: int) -> float:
        """Seconds of a pass over ``rows`` rows of one sequence at the reference context. The curve must be known."""
        return self.drift * (_between(self.rows, self._base, rows) + self.reference * self._slope(rows))

    def base(self, rows: int) -> float:
        """The part of a pass that depends on its rows alone."""
        return self.drift * _between(self.rows, self._base, rows)

    def attention(self, rows: int, context: int) -> float:
        """What reading ``context`` positions for ``rows`` rows of one sequence adds."""
        return self.drift * context * self._slope(rows) if self.slopes else 0.0

    def step(self, shapes: Sequence[Shape]) -> float:
        """Seconds of a pass over several sequences."""
        total = sum(rows for rows, _ in shapes)
        return self.base(total) + sum(self.attention(rows, context) for rows, context in shapes)

    def plain_step(self, contexts: Sequence[int]) -> float:
        """``step`` of one row for each of sequences with these contexts."""
        return self.drift * (_between(self.rows, self._base, len(contexts)) + sum(contexts) * self._slope(1))

    def learn(self, shapes: Sequence[Shape], seconds: float) -> None:
        """A pass over these sequences took that long."""
        rows = sum(rows for rows, _ in shapes)
        self.observe(rows, seconds * self.predict(rows) / self.step(shapes) if self.known else seconds)

    def observe(self, rows: int, seconds: float) -> None:
        """A pass of that many rows at the reference context took that long."""
        if not self.known:
            self.rows, self.seconds, self._corrections, self._evidence = [rows], [seconds], [1.0], [START_WEIGHT]
            self._repair()
            return
        ratio = seconds / max(self.predict(rows), 1e-12)
        if 1 / OUTLIER < ratio < OUTLIER:
            self._outliers.pop(rows, None)
            self._since_fit = 0
            self.drift *= 1.0 + DRIFT_WEIGHT * (ratio - 1.0)
            self._correct(rows, ratio)
            return
        self._since_fit += 1
        seen = self._outliers.setdefault(rows, [])
        seen.append(ratio)
        if len(seen) == PATIENCE:
            self._believe(rows, sorted(seen)[PATIENCE // 2])

    def _believe(self, rows: int, ratio: float) -> None:
        """Passes of that many rows keep taking ``ratio`` times what is predicted: where others take what they should, the shape is
        wrong there; where none does, the machine has changed."""
        self._outliers.clear()
        if self._since_fit >= PATIENCE:
            self.drift *= ratio
            return
        seconds, slope = ratio * self.predict(rows) / self.drift, self._slope(rows)
        at = bisect.bisect_left(self.rows, rows)
        if at == len(self.rows) or self.rows[at] != rows:
            self.rows.insert(at, rows)
            self.seconds.insert(at, seconds)
            self._corrections.insert(at, 1.0)
            self._evidence.insert(at, START_WEIGHT)
            if self.slopes:
                self.slopes.insert(at, slope)
        self.seconds[at], self._corrections[at], self._evidence[at] = seconds, 1.0, START_WEIGHT
        self._repair()

    def shape_at(self, rows: int, context: int) -> float:
        """Seconds of one sequence's pass, without drift: what was measured, for tables and pictures."""
        return self.step([(rows, context)]) / self.drift

    def _correct(self, rows: int, ratio: float) -> None:
        """Move the measured points around ``rows`` towards what was seen; points further off learn only by drift."""
        right = min(bisect.bisect_left(self.rows, rows), len(self.rows) - 1)
        left = max(0, right - 1) if self.rows[right] > rows else right
        span = self.rows[right] - self.rows[left]
        share = (rows - self.rows[left]) / span if span else 1.0
        for at, weight in {left: 1.0 - share, right: share}.items():
            self._evidence[at] += weight
            moved = self._corrections[at] * (1.0 + max(POINT_WEIGHT, 1.0 / self._evidence[at]) * weight * (ratio - 1.0))
            self._corrections[at] = min(MOST_CORRECTION, max(1.0 / MOST_CORRECTION, moved))
        self._repair()

    def _repair(self) -> None:
        whole = [value * factor for value, factor in zip(self.seconds, self._corrections, strict=True)]
        if self.slopes:
            whole = [value - self.reference * slope for value, slope in zip(whole, self.slopes, strict=True)]
        self._base = _rising([max(value, 0.0) for value in whole])

    def _slope(self, rows: int) -> float:
        return _between(self.rows, self.slopes, rows) if self.slopes else 0.0


def _rising(values: Sequence[float]) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(max(value, out[-1] if out else value))
    return out


def _lowered(values: Sequence[float]) -> list[float]:
    out: list[float] = []
    for value in reversed(values):
        out.append(min(value, out[-1] if out else value))
    return out[::-1]


def _between(places: list[int], values: list[float], place: int) -> float:
    """Linear between the places, constant before the first, with the last piece's slope after the last."""
    at = bisect.bisect_left(places, place)
    if at < len(places) and places[at] == place:
        return values[at]
    if at == 0 or len(places) == 1:
        return values[0]
    at = min(at, len(places) - 1)
    left, right = places[at - 1], places[at]
    return values[at - 1] + (values[at] - values[at - 1]) * (place - left) / (right - left)


@dataclass(slots=True)
class Average:
    """An exponential moving average that starts at its first value."""

    weight: float
    value: float | None = None

    def observe(self, value: float) -> None:
        self.value = value if self.value is None else self.value + self.weight * (value - self.value)


def interrupted(seconds: float, expected: float) -> bool:
    """Whether something that takes ``expected`` seconds on the mean and took so many was held up by something else."""
    return seconds > HELD_UP_SECONDS and seconds > HELD_UP * expected


@dataclass(slots=True)
class Line:
    """Least squares with forgetting of y = level + slope x, neither of them negative; a flat line until x has varied."""

    _weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def observe(self, x: float, y: float) -> None:
        keep = LINE_FORGETTING
        self._weight = keep * self._weight + 1.0
        self._x, self._y = keep * self._x + x, keep * self._y + y
        self._xx, self._xy = keep * self._xx + x * x, keep * self._xy + x * y

    def predict(self, x: float) -> float:
        if not self._weight:
            return 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        if variance < 1e-6 * (1.0 + mean_x * mean_x):
            return mean_y
        slope = max(0.0, (self._xy / self._weight - mean_x * mean_y) / variance)
        return max(0.0, mean_y + slope * (x - mean_x))
