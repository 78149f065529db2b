"""Medians, ratios and their uncertainty: bootstrap over prompts, for prompts differ more than repetitions do. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 4000
LEVEL = 0.95

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of ``count`` prompts, with the ends of its 95 % interval. With one prompt the ends are the value itself,
    which says nothing: it is not to be shown as an interval."""

    value: float
    low: float
    high: float
    count: int


def median(values: Sequence[float]) -> Estimate:
    """Median and percentile bootstrap interval (Efron 1979). Raises ValueError when there is nothing."""
    return _bootstrap(values, lambda drawn: np.median(drawn, axis=-1))


def geometric_mean(ratios: Sequence[float]) -> Estimate:
    """For ratios: twice as fast once and half as fast once is no change. Raises ValueError when there is nothing."""
    found = _bootstrap(np.log(np.asarray(ratios, dtype=np.float64)), lambda drawn: drawn.mean(axis=-1))
    return Estimate(float(np.exp(found.value)), float(np.exp(found.low)), float(np.exp(found.high)), found.count)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of them do not exceed, interpolated."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share))


def _bootstrap(values: Sequence[float] | Values, statistic: Callable[[Values], Values]) -> Estimate:
    given = np.asarray(values, dtype=np.float64)
    if given.size == 0:
        raise ValueError("there is nothing to estimate from")
    generator = np.random.default_rng(20230)  # the same interval from the same numbers
    drawn = statistic(given[generator.integers(0, given.size, size=(DRAWS, given.size))])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(statistic(given[None, :])[0]), float(low), float(high), int(given.size))
