"""Rules of other papers for the one chain that a sequence gets: how deep models draft it, and where it ends among guesses that
nobody paid for. ``rules`` has the arithmetic.

A model asks its rule before it drafts a level. Guesses that cost no level come in a chain as long as there is anything to guess, so
the same rules are put to them afterwards, on calibrated survivals: ``goodput`` takes of all sequences' chains as much as makes most
tokens a second (SmartSpec, 2406.14066, equation 4), ``threshold`` ends one behind the guess at which it has probably failed
(SpecDec++, 2405.19715). Levels that were paid for are verified. ``entropy`` (AdaEDL) asks for a law of the next token, which only
models have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hasten.control import rules
from hasten.control.rounds import Round
from hasten.core.types import DraftTree

Best = Callable[[Sequence[tuple[float, int, int]]], int]
"""How many of (survival, sequence, node), the likeliest first, are worth their rows."""


def limits(rule: str, best_depth: int, threshold: float) -> tuple[int, float, float]:
    """Of a model under ``rule``: most levels, least survival of a chain that is drafted further, and most entropy (nats) of a
    level. ``best_depth`` is SmartSpec's, ``threshold`` AdaEDL's."""
    if rule == "goodput":
        return best_depth, 0.0, float("inf")
    if rule == "threshold":
        return rules.DEEPEST, 1.0 - rules.MOST_REJECTED, float("inf")
    return rules.DEEPEST, 0.0, rules.entropy_limit(threshold)


def keep_chains(
    rule: str, rounds: Sequence[Round], deepest: int, survivals: Callable[[DraftTree, str], list[float]], best: Best | None
) -> list[DraftTree]:
    """Choose one chain a round, at most ``deepest`` nodes of each. ``survivals`` are those of a tree's nodes under a kind of
    sampling; without ``best`` nothing is known of what rows cost."""
    chains = [sorted(rules.chain_of(round.tree, min(deepest, round.wish.nodes))) for round in rounds]
    ends = list(map(len, chains))
    if rule == "threshold":
        ends = [until_rejected(chain, survivals(round.tree, round.kind)) for round, chain in zip(rounds, chains, strict=True)]
    elif rule == "goodput" and best is not None:
        ends = most_goodput(chains, [survivals(round.tree, round.kind) for round in rounds], best)
    for round, chain, end in zip(rounds, chains, ends, strict=True):
        round.keep(set(chain if round.wish.mode == "on" else chain[: max(end, paid_for(chain, round))]))
    return [round.verified for round in rounds]


def most_goodput(chains: Sequence[Sequence[int]], survivals: Sequence[Sequence[float]], best: Best) -> list[int]:
    """How much of each chain makes most tokens a second together."""
    ranked = [(survivals[at][node], at, node) for at, chain in enumerate(chains) for node in chain]
    ranked.sort(key=lambda entry: (-entry[0], entry[2], entry[1]))
    ends = [0] * len(chains)
    for _, at, _ in ranked[: best(ranked)]:
        ends[at] += 1
    return ends


def until_rejected(chain: Sequence[int], survivals: Sequence[float]) -> int:
    """How much of the chain is verified where nothing is drafted behind a guess that has, with all above it, failed with a chance
    of more than ``MOST_REJECTED``."""
    likely = [survivals[node] >= 1.0 - rules.MOST_REJECTED for node in chain]
    return 1 + likely.index(False) if False in likely else len(chain)


def paid_for(chain: Sequence[int], round: Round) -> int:
    """How much of the chain reaches down to the last guess that cost a level."""
    return max((place for place, node in enumerate(chain, start=1) if round.tree.drafters[node] in round.levels), default=0)
