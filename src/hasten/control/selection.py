"""Which nodes of all drafts to verify: the N likeliest, where N makes all sequences fastest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, log, log1p

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


Ranked = Sequence[tuple[float, int, int]]  # (survival, sequence, node) of nodes, the likeliest first


def fairest_count(ranked: Ranked, sequences: int, seconds: Iterable[float]) -> int:
    """How many of ``ranked`` to verify, 0 included, for the largest product of all sequences' speeds (proportional fairness, Kelly
    1997). ``seconds`` is what the step takes by how many it verifies (``seconds_by_count``). All counts are looked at: cost may
    rise in steps.

    Of one sequence that is what makes most tokens a second. Where many share a step, guesses for a few may make more tokens in all
    and delay everybody else; whoever has none would be slower than plainly."""
    tokens, total = [1.0] * sequences, 0.0
    best, best_score = 0, -inf
    for count, spent in enumerate(seconds):
        if count:
            survival, index, _ = ranked[count - 1]
            total += log1p(survival / tokens[index])
            tokens[index] += survival
        score = total - sequences * log(spent)
        if score > best_score:
            best, best_score = count, score
    return best


def best_count(ranked: Ranked, sequences: int, seconds: Iterable[float]) -> int:
    """The same for most tokens a second of all sequences together (SmartSpec's goodput, 2406.14066, section 4)."""
    expected, best, best_rate = float(sequences), 0, 0.0
    for count, spent in enumerate(seconds):
        if count:
            expected += ranked[count - 1][0]
        if expected / spent > best_rate:
            best, best_rate = count, expected / spent
    return best


def seconds_by_count(
    ranked: Ranked, contexts: Sequence[int], rows: int, drafting_seconds: float, curve: CostCurve, overhead: Line
) -> Iterator[float]:
    """What a step of sequences with these ``contexts`` takes by how many of ``ranked`` it verifies: 0, 1, and so on. ``rows`` is
    what it computes anyway.

    Where the step computes more than these sequences' rows, as while prompts are read, the rest has to be computed anyway, and
    only what is added to it counts: its length would make every guess look cheap, though the next step makes the token for less."""
    nodes, others = [0] * len(contexts), curve.base(rows) + overhead.predict(rows)
    spent = drafting_seconds + sum(curve.attention(1, context) for context in contexts)
    spent += curve.base(len(contexts)) + overhead.predict(len(contexts)) - others
    yield spent + others
    for count, (_, index, _) in enumerate(ranked, start=1):
        nodes[index] += 1
        if curve.slopes:
            now, context = nodes[index], contexts[index]
            spent += curve.attention(now + 1, context) - curve.attention(now, context)
        yield spent + curve.base(rows + count) + overhead.predict(rows + count)


def offers(ranked: Ranked, contexts: Sequence[int], curve: CostCurve, overhead: Line) -> list[Offer]:
    """What each sequence's part of ``ranked`` brings, as far as it would be verified were it all there is."""
    out = [Offer()] * len(contexts)
    seconds = seconds_by_count(ranked, contexts, len(contexts), 0.0, curve, overhead)
    for survival, index, _ in ranked[: fairest_count(ranked, len(contexts), seconds)]:
        out[index] += Offer(survival, 1)
    return out
