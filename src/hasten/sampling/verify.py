"""Coupled verification: walk down a draft tree by choosing from the target's logits, until a choice leaves the tree.

The emitted tokens are those of plain decoding with the same seed, one by one, whatever the tree: a draft never decides
anything, it only says which rows of logits are at hand. Exact for any drafter, any shape and any stopping rule.
(Sample-and-match with a noise field keyed by position and token: Daliri et al. 2025; the reference's sections 1.2 and 1.6.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from hasten.core.types import ROOT, DraftTree, SamplingParams, Verdict
from hasten.sampling.choose import choose_adjusted, token_logprob
from hasten.sampling.filters import History, Logits, adjusted_with_top

AllowedAfter = Callable[[Sequence[int]], torch.Tensor | None]
"""The allowed-token mask after the tokens of a path below the root (see ``filters.adjusted``); None: no limit."""


def verify_tree(
    tree: DraftTree,
    logits: torch.Tensor | Callable[[int], torch.Tensor],
    params: SamplingParams,
    seed: int,
    position: int,
    *,
    history: History | None = None,
    limit: int | None = None,
    stop_tokens: Collection[int] = (),
    allowed_after: AllowedAfter | None = None,
    vocabulary_size: int | None = None,
) -> Verdict:
    """The target's own tokens after the root, as many as the tree holds and one more.

    ``logits``: [1 + nodes, V], row 0 of the root and row i + 1 of node i, or a function from such an index to a row [V]; only
    rows of accepted nodes and the root's are read. ``position``: of the first token to be emitted; depth d below it is at
    position + d. ``history``: everything up to and including the root (its view of each path is made here); needed where
    ``params.needs_history``. At most ``limit`` tokens are emitted (at least 1), and none after one of ``stop_tokens``; the
    last token emitted is never part of ``path``, even if a node carries it. An empty tree is plain decoding of one token.

    Draft tokens are compared and never used as an index: ids out of range match nothing.

    Errors of the root's row (see ``filters.adjusted``) are raised. The row of an accepted node that cannot be used ends the round
    before it: an answer may end there by a stop string, and if it goes on, the error is that of the next round.
    """
    assert limit is None or limit >= 1, "a round emits at least one token"
    verdict = Verdict(path=[], tokens=[])
    node = ROOT
    while True:
        before = tuple(verdict.tokens)
        row = row_after(node, before, logits, params, position, history, allowed_after, vocabulary_size)
        if row is None:
            verdict.path.pop()
            return verdict
        values, top = row
        token = top if params.greedy else choose_adjusted(values, params, seed, position + len(before))
        verdict.tokens.append(token)
        if params.logprobs is not None:
            verdict.logprobs.append(token_logprob(values, token, params.logprobs))
        child = tree.child(node, token)
        if child is None or token in stop_tokens or len(verdict.tokens) == limit:
            return verdict
        verdict.path.append(child)
        node = child


def row_after(
    node: int,
    before: Sequence[int],
    logits: torch.Tensor | Callable[[int], torch.Tensor],
    params: SamplingParams,
    position: int,
    history: History | None,
    allowed_after: AllowedAfter | None,
    vocabulary_size: int | None,
) -> tuple[Logits, int] | None:
    """The adjusted row behind ``node``, which the tokens ``before`` lead to from the root, and the place of its largest value; the
    other arguments are those of ``verify_tree``. None for a node whose row cannot be used; errors of the root's row are raised."""
    try:
        return adjusted_with_top(
            logits(node + 1) if callable(logits) else logits[node + 1],
            params,
            position + len(before),
            history.with_path(before) if history is not None and params.needs_history else None,
            allowed_after(before) if allowed_after is not None else None,
            vocabulary_size,
        )
    except Exception:
        if node == ROOT:
            raise
        return None
