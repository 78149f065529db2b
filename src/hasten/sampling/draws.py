"""Draws by counter: the coins of the rejection rules, and the children that a draft model draws without replacement.

Everything is a function of a seed, the position of the round (that of the first token it may emit; rounds emit at least one
token, so no two rounds of a sequence share it) and an index within the round. Coins, drafts and the noise of ``choose`` are
independent of one another. Keys by round, not by depth: a rule may look at nodes deeper than what it emits, and a later round
must not meet the same chance again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hasten.core.types import ROOT
from hasten.sampling import noise
from hasten.sampling.filters import largest, ranked
from hasten.sampling.laws import Law, Masses
from hasten.sampling.noise import FloatArray, IntArray

_DOMAIN = 0x636F696E << 32  # far from the indices that number a request's answers
_ACCEPT, _EMIT, _DRAFT, _LONE = _DOMAIN + 1, _DOMAIN + 2, _DOMAIN + 3, _DOMAIN + 4

_DIRECT = 2048  # below this many tokens, hashing them all is cheaper than looking for those that matter
_HEADS = (8.0, 4.0, 2.0, 1.0)  # depths of a first look, in units of log-probability
_SLACK = 1e-6  # far above the rounding of a score


def lone_seed(seed: int) -> int:
    """Of the noise by which a sequence whose drafts are verified by rejection chooses where there are none: proposals have met the
    noise of plain decoding already, and "block" lets these have a say in where rounds begin."""
    return noise.derive_seed(seed, _LONE)


class Coins(Protocol):
    """The chance of one round. Each node's coin is tossed at most once, and one token is picked."""

    def below(self, node: int, mass: Any, of: Any) -> bool:
        """True with probability min(1, mass / of): whether u * of < mass, with the node's own u from (0, 1)."""

    def pick(self, masses: Masses) -> int:
        """An index, with probability proportional to its mass."""


@dataclass(frozen=True, slots=True)
class RoundCoins:
    """The coins of the round at ``position`` of the sequence with ``seed``."""

    seed: int
    position: int

    def below(self, node: int, mass: Any, of: Any) -> bool:
        return bool(self._uniform(_ACCEPT, node) * of < mass)

    def pick(self, masses: Masses) -> int:
        total = np.cumsum(masses)
        at = int(np.searchsorted(total, self._uniform(_EMIT, 0) * total[-1], side="right"))
        return at if at < len(masses) else int(np.flatnonzero(masses)[-1])  # the product may round up to the sum

    def _uniform(self, purpose: int, index: int) -> float:
        """The middle of one of 2^52 equal cells of (0, 1)."""
        bits = noise.token_bits(noise.derive_seed(self.seed, purpose), self.position, np.array([index]))
        return (2 * (int(bits[0]) >> 12) + 1) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token in order of its arrival. ``score`` is log-probability plus Gumbel noise; the larger came earlier."""

    token: int
    log_probability: float
    score: float


@dataclass(frozen=True, slots=True)
class Beam:
    """A node of the frontier of a stochastic beam search, with the log-probability of its path and its perturbed score. The
    search starts from ``Beam()``, the root."""

    node: int = ROOT
    log_probability: float = 0.0
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A child that stays in a stochastic beam search: of ``beams[parent]``."""

    parent: int
    token: int
    log_probability: float  # of the path
    score: float


def draw_without_replacement(law: Law, count: int, seed: int, position: int, node: int) -> list[Drawn]:
    """Up to ``count`` different tokens in the order in which they are drawn from ``law``: Gumbel top-k (RSD-C, 2402.14160).

    ``position`` is the round's and ``node`` the tree's index of the parent; both choose the noise, so ask once for each
    parent. Add the tokens to the tree in this order: it is part of their law. Fewer come back when fewer are possible.
    """
    places, scores = _perturbed_top(law, count, seed, position, node)
    logs = np.log(law.masses[places])
    return [Drawn(int(law.ids[at]), float(log), float(score)) for at, log, score in zip(places, logs, scores, strict=True)]


def extend_beams(beams: Sequence[Beam], laws: Sequence[Law], width: int, seed: int, position: int) -> list[Candidate]:
    """One level of stochastic beam search (Kool et al. 2019; RSD-S, 2402.14160): the ``width`` best children of all beams.

    ``laws[i]`` is the law after ``beams[i]``. The scores of a beam's children are conditioned on their maximum being the beam's
    own score, so the leaves of the last level are a sample of paths without replacement. In the order of falling scores, so
    siblings added to the tree in this order stand in the order of their draws.
    """
    drawn = [draw_without_replacement(law, width, seed, position, beam.node) for beam, law in zip(beams, laws, strict=True)]
    return keep_best(beams, drawn, width)


def keep_best(beams: Sequence[Beam], drawn: Sequence[Sequence[Drawn]], width: int) -> list[Candidate]:
    """``extend_beams`` where the children of each beam are drawn already, each beam's in the order of falling scores."""
    found: list[Candidate] = []
    for parent, (beam, children) in enumerate(zip(beams, drawn, strict=True)):
        free = np.array([beam.log_probability + child.score for child in children])
        for child, score in zip(children, _below(beam.score, free), strict=True):
            found.append(Candidate(parent, child.token, beam.log_probability + child.log_probability, float(score)))
    return sorted(found, key=lambda candidate: -candidate.score)[:width]


def _below(top: float, scores: FloatArray) -> FloatArray:
    """Gumbel scores, falling, given that their maximum is ``top`` (Kool et al. 2019, appendix B.3)."""
    out = np.full(len(scores), top)
    rest = scores[1:]
    with np.errstate(divide="ignore"):  # a child that ties with the first has the first's score
        gap = top - rest + np.log(-np.expm1(rest - scores[0]))
    out[1:] = top - np.maximum(gap, 0.0) - np.log1p(np.exp(-np.abs(gap)))
    return out


def _perturbed_top(law: Law, count: int, seed: int, position: int, node: int) -> tuple[IntArray, FloatArray]:
    """Places of the ``count`` largest log-masses plus noise, best first, and these scores. In a large law most tokens are left
    out, and only those that no noise there is, or none as small as theirs, could bring among the best."""
    stream = noise.derive_seed(noise.derive_seed(seed, _DRAFT), position + 1)

    def scores(places: IntArray) -> FloatArray:
        perturbed: FloatArray = np.log(law.masses[places]) + noise.noise_of(stream, node + 1, law.ids[places])
        return perturbed

    places = np.flatnonzero(law.masses)
    for depth in _HEADS if len(places) > _DIRECT else ():
        border = float(law.masses.max()) * float(np.exp(-depth))
        head = np.flatnonzero(law.masses >= border)
        if count <= len(head) <= _DIRECT:
            least = float(np.partition(scores(head), len(head) - count)[len(head) - count])
            rest = np.flatnonzero((law.masses > 0) & (law.masses < border))
            reach = noise.candidates(stream, node + 1, law.ids[rest], least - float(np.log(border)) - _SLACK)
            places = np.union1d(head, rest[reach])
            break
    perturbed = scores(places)
    best = largest(perturbed, count)
    best = best[ranked(perturbed[best])]
    return places[best], perturbed[best]
