"""Rules for how deep to draft, other papers' and ours, as plain functions, so that a benchmark can compare them.

``auto`` is the controller's own: expected gain at calibrated survival, behind accounts that never let drafting cost more than it
brings. The others decide the depth of one chain and verify all of it: ``fixed(k)``; ``goodput`` (SmartSpec, 2406.14066, section
4); ``threshold`` (SpecDec++, 2405.19715, with calibrated confidences in place of its trained head); ``entropy`` (AdaEDL,
2410.18351). They keep no accounts and can be slower than plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log

from hasten.control.selection import Offer
from hasten.core.config import DEEPEST_CHAIN, GAMMA
from hasten.core.types import ROOT, DraftTree

DEEPEST = DEEPEST_CHAIN  # levels of any draft
MOST_REJECTED = 0.7  # SpecDec++'s h: stop when P(at least one rejected so far) passes it


def expected_tokens(depth: int, acceptance: float) -> float:
    """Accepted drafts of a chain of ``depth`` where each is accepted with ``acceptance`` when its parent was: the sum of its
    powers (Leviathan et al. 2211.17192, equation 1, without the bonus token)."""
    if acceptance >= 1.0:
        return float(depth)
    return acceptance * (1.0 - acceptance**depth) / (1.0 - acceptance)


def best_depth(acceptance: float, seconds: Callable[[int], float], deepest: int = DEEPEST) -> int:
    """The depth, 0 included, that makes most tokens a second. ``seconds(depth)`` is what a round takes for one sequence."""
    return max(range(deepest + 1), key=lambda depth: (1.0 + expected_tokens(depth, acceptance)) / seconds(depth))


def best_group(
    acceptances: Sequence[float],
    offered: Sequence[Offer],
    whole: Offer,
    sequences: int,
    plain: float,
    passes: Callable[[int], tuple[float, float]],
    rows: Callable[[int], float],
    deepest: int = DEEPEST,
    breadth: float = 1.0,
) -> tuple[int, int, float]:
    """How many of the sequences a paid drafter should draft for together, the first ones, how deep, and how many
    times as many tokens a second that makes; (0, 0, 1.0) for none. The product of all sequences' speeds decides
    (``selection.fairest_count``).

    ``acceptances`` stand in falling order, ``offered`` is what each of these sequences has without this drafter. ``whole`` is
    what the step makes without it: tokens of all ``sequences``, those that are not asked about too, and drafted rows. ``plain`` is
    the seconds of a step without any drafts, ``passes(k)`` those of the first level for k sequences and of each one behind it,
    ``rows(n)`` those of n verified rows, of which a level has ``breadth``.
    A draft stands in the place of what its sequence was offered, where it promises more.
    A level is dear for one sequence and cheap for many, so this is decided for all at once."""
    base = plain + rows(whole.rows)
    best, best_score, gain = (0, 0), -sequences * log(base), 1.0
    made, gained = [whole] * (deepest + 1), [0.0] * (deepest + 1)
    rows = cache(rows)
    for members, (acceptance, own) in enumerate(zip(acceptances, offered, strict=True), start=1):
        first, further = passes(members)
        for depth in range(1, deepest + 1):
            expected = expected_tokens(depth, acceptance)
            if expected > own.tokens:
                made[depth] += Offer(expected - own.tokens, round(depth * breadth) - own.rows)
                gained[depth] += log((1.0 + expected) / (1.0 + own.tokens))
            seconds = plain + first + (depth - 1) * further + rows(made[depth].rows)
            score = gained[depth] - sequences * log(seconds)
            if score > best_score:
                best, best_score, gain = (members, depth), score, made[depth].tokens / whole.tokens * base / seconds
    return *best, gain


def entropy_limit(threshold: float) -> float:
    """AdaEDL: nats above which its lower bound 1 - sqrt(gamma H) on acceptance falls below the threshold."""
    return (1.0 - threshold) ** 2 / GAMMA


@dataclass(slots=True)
class EntropyThreshold:
    """AdaEDL's threshold, moved once a round so that the accepted share comes to ``target``."""

    threshold: float = 0.5
    accepted: float = 0.9  # moving average; starts at the target
    target: float = 0.9
    longest: int = DEEPEST

    def observe(self, accepted: int, drafted: int) -> None:
        """One round: of ``drafted`` (at least one) so many were accepted."""
        self.accepted = 0.5 * self.accepted + 0.5 * accepted / drafted
        step = 0.0
        if self.accepted < self.target:
            step = 0.01
        elif accepted != self.longest:
            step = -0.01
        self.threshold = min(0.99, max(0.0, self.threshold + 0.1 * step))


def chain_of(tree: DraftTree, deepest: int) -> set[int]:
    """The nodes of one chain: from the root always the child of the highest score."""
    children: dict[int, int] = {}
    for node, parent in enumerate(tree.parents):
        if parent not in children or tree.scores[node] > tree.scores[children[parent]]:
            children[parent] = node
    chain: set[int] = set()
    at = ROOT
    while len(chain) < deepest and at in children:
        at = children[at]
        chain.add(at)
    return chain
