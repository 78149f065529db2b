"""What a step costs, measured: seconds of a forward pass by its number of rows, at start-up and corrected while running.

The curve's shape comes from the start-up profile; a drift factor follows the live machine (longer contexts, other load), so that
sizes that are not being run stay comparable with those that are.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

DRIFT_WEIGHT = 0.05
OUTLIER = 3.0  # a step this many times its prediction was interrupted by something else and teaches nothing


@dataclass(slots=True)
class CostCurve:
    """Seconds by rows, interpolated between measured points, never falling with more rows; beyond the last point it grows with
    the slope of the last piece."""

    rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    drift: float = 1.0

    @classmethod
    def measured(cls, points: dict[int, float]) -> CostCurve:
        """From {rows: seconds}; a point that came out cheaper than a smaller one is lifted to it."""
        rows = sorted(points)
        seconds: list[float] = []
        for count in rows:
            seconds.append(max(points[count], seconds[-1] if seconds else 0.0))
        return cls(rows, seconds)

    @property
    def known(self) -> bool:
        return bool(self.rows)

    def predict(self, rows: int) -> float:
        """Seconds of a forward pass over ``rows`` rows now. The curve must be known."""
        return self.drift * self._shape(rows)

    def observe(self, rows: int, seconds: float) -> None:
        """A pass of that many rows took that long."""
        if not self.known:
            self.rows, self.seconds = [rows], [seconds]
            return
        ratio = seconds / self._shape(rows)
        if ratio < OUTLIER * self.drift:
            self.drift += DRIFT_WEIGHT * (ratio - self.drift)

    def _shape(self, rows: int) -> float:
        at = bisect.bisect_left(self.rows, rows)
        if at < len(self.rows) and self.rows[at] == rows:
            return self.seconds[at]
        if at == 0:
            return self.seconds[0]
        if at == len(self.rows):
            if len(self.rows) == 1:
                return self.seconds[0]
            at -= 1
        left, right = self.rows[at - 1], self.rows[at]
        slope = (self.seconds[at] - self.seconds[at - 1]) / (right - left)
        return self.seconds[at - 1] + slope * (rows - left)


@dataclass(slots=True)
class Average:
    """An exponential moving average that starts at its first value."""

    weight: float
    value: float | None = None

    def observe(self, value: float) -> None:
        self.value = value if self.value is None else self.value + self.weight * (value - self.value)
