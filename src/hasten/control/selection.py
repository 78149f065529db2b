"""Which nodes of all drafts to verify: the N best by survival, where N makes most tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.control.cost import CostCurve, Line
from hasten.core.types import ROOT, DraftTree


@dataclass(frozen=True, slots=True)
class Offer:
    """Tokens that guesses are expected to bring, and the rows that verifying them takes."""

    tokens: float = 0.0
    rows: int = 0

    def __add__(self, other: Offer) -> Offer:
        return Offer(self.tokens + other.tokens, self.rows + other.rows)


def survivals(tree: DraftTree, conditional: Sequence[float]) -> list[float]:
    """P(accepted) of each node from P(accepted | parent accepted). Siblings exclude each other, so theirs never add up to more
    than their parent's."""
    totals: dict[int, float] = {}
    for parent, value in zip(tree.parents, conditional, strict=True):
        totals[parent] = totals.get(parent, 0.0) + value
    out: list[float] = []
    for parent, value in zip(tree.parents, conditional, strict=True):
        share = value / max(1.0, totals[parent])
        out.append(share if parent == ROOT else share * out[parent])
    return out


def likeliest_first(survivals: Sequence[Sequence[float]], least: float) -> list[tuple[float, int, int]]:
    """(survival, sequence, node) of the nodes of all sequences' trees that survive with at least that chance."""
    found = [(value, index, node) for index, tree in enumerate(survivals) for node, value in enumerate(tree) if value >= least]
    found.sort(key=lambda entry: (-entry[0], entry[2], entry[1]))
    return found


def best_count(
    ranked: Sequence[tuple[float, int, int]],
    contexts: Sequence[int],
    rows: int,
    drafting_seconds: float,
    curve: CostCurve,
    overhead: Line,
) -> int:
    """How many of ``ranked`` (survival, sequence, node; the likeliest first) to verify, 0 included. ``rows`` is what the step
    computes anyway, ``contexts`` the sequences' lengths. All counts are looked at: cost may rise in steps.

    Where the step computes more than these sequences' rows, as while prompts are read, the rest has to be computed anyway, and
    only what is added to it counts: its length would make every guess look cheap, though the next step makes the token for less."""
    nodes, others = [0] * len(contexts), curve.base(rows) + overhead.predict(rows)
    spent = drafting_seconds + sum(curve.attention(1, context) for context in contexts)
    spent += curve.base(len(contexts)) + overhead.predict(len(contexts)) - others
    expected = float(len(contexts))
    best, best_rate = 0, expected / (spent + others)
    for count, (survival, index, _) in enumerate(ranked, start=1):
        expected += survival
        nodes[index] += 1
        if curve.slopes:
            now, context = nodes[index], contexts[index]
            spent += curve.attention(now + 1, context) - curve.attention(now, context)
        rate = expected / (spent + curve.base(rows + count) + overhead.predict(rows + count))
        if rate > best_rate:
            best, best_rate = count, rate
    return best


def offers(ranked: Sequence[tuple[float, int, int]], contexts: Sequence[int], curve: CostCurve, overhead: Line) -> list[Offer]:
    """What each sequence's part of ``ranked`` brings, as far as it would be verified were it all there is."""
    out = [Offer()] * len(contexts)
    for survival, index, _ in ranked[: best_count(ranked, contexts, len(contexts), 0.0, curve, overhead)]:
        out[index] += Offer(survival, 1)
    return out
