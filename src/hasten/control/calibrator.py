"""From a drafter's raw score to P(accepted | parent accepted), learned while running.

Each drafter's scores fall into bins; a bin counts accepted and rejected nodes with forgetting, on top of a prior that believes the
score itself. A kind of sampling (greedy, warm, hot) has counts of its own on top of the drafter's. The estimates are made to rise
with the score (pooling adjacent violators, weighted by evidence) and joined by straight lines between the bins' mean scores.
Only nodes whose parent was accepted are counted: of the others nothing was learnt.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field
from typing import Any

from hasten.control import store
from hasten.core.types import ROOT, DraftTree

EDGES = (0.0, 0.04, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98, 1.0)  # finer where the levels of a chain multiply
CENTRES = tuple((low + high) / 2 for low, high in itertools.pairwise(EDGES))
BELIEVED = (list(CENTRES), list(CENTRES))
PRIOR_STRENGTH = 6.0
SETTLED = 32.0  # observations of a drafter that one more hardly moves: curves then wait for two, three ... more
MOST_WAITING = 8
OWN_STRENGTH = 8.0  # observations of the drafter as a whole that one kind of sampling's own outweigh
FORGETTING = 0.995  # a bin's evidence halves in about 140 observations of that bin
MOST = 0.995
ALL = "all"  # counts over all kinds of sampling

Key = tuple[str, str]  # drafter, kind of sampling


@dataclass(slots=True)
class Counts:
    """Accepted and seen nodes and the sum of their scores by score bin; and the curve made of them (mean scores and estimates),
    kept until enough more is known."""

    accepted: list[float] = field(default_factory=lambda: [0.0] * len(CENTRES))
    seen: list[float] = field(default_factory=lambda: [0.0] * len(CENTRES))
    scores: list[float] = field(default_factory=lambda: [0.0] * len(CENTRES))
    curve: tuple[list[float], list[float]] | None = None


@dataclass(slots=True)
class Calibrator:
    """``probability(drafter, score, kind)`` is the calibrated one; ``observe`` teaches it one outcome, which shows in the estimates
    at once or, where much is known, a few outcomes later: curves are dear to make."""

    _counts: dict[Key, Counts] = field(default_factory=dict)
    _waiting: dict[str, int] = field(default_factory=dict)  # observations that a drafter's curves do not show yet

    def probability(self, drafter: str, score: float, kind: str = ALL) -> float:
        """Rises with the score. A drafter never seen is believed."""
        places, values = self._curve(drafter, kind)
        at = bisect.bisect_left(places, score)
        if at == 0:
            return values[0] * max(0.0, score) / places[0]
        left, low = places[at - 1], values[at - 1]
        if at == len(places):
            right, high = 1.0, max(low, min(MOST, low + 1.0 - left))
        else:
            right, high = places[at], values[at]
        return low + (high - low) * (min(score, 1.0) - left) / max(right - left, 1e-9)

    def observe_tree(self, tree: DraftTree, accepted: set[int], kind: str = ALL) -> None:
        """What became of the nodes of a tree that was verified."""
        for node, parent in enumerate(tree.parents):
            if parent == ROOT or parent in accepted:
                self.observe(tree.drafters[node], tree.scores[node], node in accepted, kind)

    def observe(self, drafter: str, score: float, accepted: bool, kind: str = ALL) -> None:
        place = min(bisect.bisect_right(EDGES, score), len(CENTRES)) - 1
        for key in {(drafter, kind), (drafter, ALL)}:
            counts = self._counts.setdefault(key, Counts())
            counts.accepted[place] = counts.accepted[place] * FORGETTING + accepted
            counts.seen[place] = counts.seen[place] * FORGETTING + 1.0
            counts.scores[place] = counts.scores[place] * FORGETTING + score
        self._waiting[drafter] = self._waiting.get(drafter, 0) + 1
        if self._waiting[drafter] < MOST_WAITING and self._waiting[drafter] <= sum(self._counts[drafter, ALL].seen) / SETTLED:
            return
        self._waiting[drafter] = 0
        for (name, _), counts in self._counts.items():
            if name == drafter:
                counts.curve = None  # the kinds stand on the drafter's own counts

    def to_json(self) -> dict[str, Any]:
        return {f"{drafter}/{kind}": [c.accepted, c.seen, c.scores] for (drafter, kind), c in self._counts.items()}

    @classmethod
    def from_json(cls, content: object) -> Calibrator:
        """Raises ValueError when the content is not what ``to_json`` gives."""
        out = cls()
        for name, lists in store.table(content).items():
            drafter, _, kind = name.rpartition("/")
            if not drafter or not isinstance(lists, list) or len(lists) != 3:
                raise ValueError(f"{name[:40]!r} holds no counts")
            accepted, seen, scores = (store.numbers(values, 0.0, 1e9) for values in lists)
            if not len(accepted) == len(seen) == len(scores) == len(CENTRES) or not _fit(accepted, seen, scores):
                raise ValueError(f"the counts of {name[:40]!r} do not fit")
            out._counts[drafter, kind] = Counts(accepted, seen, scores)
        return out

    def _curve(self, drafter: str, kind: str) -> tuple[list[float], list[float]]:
        counts = self._counts.get((drafter, kind))
        if counts is None:
            return BELIEVED if kind == ALL else self._curve(drafter, ALL)
        if counts.curve is None:
            (places, prior), strength = (BELIEVED, PRIOR_STRENGTH) if kind == ALL else (self._curve(drafter, ALL), OWN_STRENGTH)
            weights = [seen + strength for seen in counts.seen]
            means = [(x + strength * p) / w for x, p, w in zip(counts.scores, places, weights, strict=True)]
            raw = [(a + strength * p) / w for a, p, w in zip(counts.accepted, prior, weights, strict=True)]
            counts.curve = means, rising(raw, weights)
        return counts.curve


def _fit(accepted: list[float], seen: list[float], scores: list[float]) -> bool:
    """Whether no bin has more accepted than seen, or scores from outside it."""
    slack = 1e-6
    return all(
        a <= s + slack and low * s - slack <= x <= high * s + slack
        for a, s, x, (low, high) in zip(accepted, seen, scores, itertools.pairwise(EDGES), strict=True)
    )


def rising(values: list[float], weights: list[float]) -> list[float]:
    """The nearest sequence, by weighted squares, that never falls: neighbours that do are pooled."""
    pools: list[tuple[float, float, int]] = []  # value, weight, members
    for value, weight in zip(values, weights, strict=True):
        members = 1
        while pools and pools[-1][0] > value:
            above, heavy, more = pools.pop()
            value = (value * weight + above * heavy) / (weight + heavy)
            weight, members = weight + heavy, members + more
        pools.append((value, weight, members))
    return [value for value, _, members in pools for _ in range(members)]
