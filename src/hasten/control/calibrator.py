"""From a drafter's raw score to P(accepted | parent accepted), learned while running.

Each drafter's scores fall into bins; a bin counts accepted and rejected nodes with forgetting, on top of a prior that believes the
score itself. Only nodes whose parent was accepted are counted: of the others nothing was learnt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BINS = 12
PRIOR_STRENGTH = 6.0
FORGETTING = 0.995  # a bin's evidence halves in about 140 observations of that bin


@dataclass(slots=True)
class Calibrator:
    """``survival(drafter, score)`` is the calibrated probability; ``observe`` teaches it one outcome."""

    _accepted: dict[tuple[str, int], float] = field(default_factory=dict)
    _seen: dict[tuple[str, int], float] = field(default_factory=dict)

    def probability(self, drafter: str, score: float) -> float:
        key = (drafter, _bin(score))
        seen, accepted = self._seen.get(key, 0.0), self._accepted.get(key, 0.0)
        return (accepted + PRIOR_STRENGTH * score) / (seen + PRIOR_STRENGTH)

    def observe(self, drafter: str, score: float, accepted: bool) -> None:
        key = (drafter, _bin(score))
        self._accepted[key] = self._accepted.get(key, 0.0) * FORGETTING + accepted
        self._seen[key] = self._seen.get(key, 0.0) * FORGETTING + 1.0


def _bin(score: float) -> int:
    return min(int(score * BINS), BINS - 1)
