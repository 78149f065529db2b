"""The rules by which drafts are verified, by the names of the setting ``verify``.

"coupled": sample and match under one noise; the text is that of plain decoding, token for token (``verify``). "rejection": token
by token, recursively without replacement on trees; "block": whole paths from their ends, which is block verification on a chain
and traversal verification on a tree. These two (``rejection``) accept more, and are exact in law: the text is a sample from the
same distribution, and another one than plain decoding draws from that seed.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from hasten.core.types import DraftTree, SamplingParams, Verdict
from hasten.sampling.draws import lone_seed
from hasten.sampling.filters import History
from hasten.sampling.laws import DraftLaws
from hasten.sampling.rejection import Rule, verify_rejection
from hasten.sampling.verify import AllowedAfter, verify_tree

BY_REJECTION: dict[str, Rule] = {"rejection": "tokenwise", "block": "traversal"}


def rule_for(rule: str, params: SamplingParams) -> str:
    """The rule that decides about a request: where it is greedy there is nothing to reject by chance, and all are "coupled"."""
    return "coupled" if params.greedy else rule


def verify(
    rule: str,
    tree: DraftTree,
    laws: DraftLaws,
    logits: torch.Tensor,
    params: SamplingParams,
    seed: int,
    position: int,
    *,
    history: History | None,
    limit: int,
    stop_tokens: Collection[int],
    vocabulary_size: int,
    allowed_after: AllowedAfter | None = None,
) -> Verdict:
    """Verify one round by the named rule; see ``verify.verify_tree`` and ``rejection.verify_rejection`` for the arguments.

    A request keeps to one rule. A round without drafts is a plain choice under all of them, for as little as that takes; under a
    rule by rejection its noise is not that of plain decoding (``draws.lone_seed``).
    """
    coupled = rule_for(rule, params) == "coupled"
    if coupled or not len(tree):
        return verify_tree(
            tree,
            logits,
            params,
            seed if coupled else lone_seed(seed),
            position,
            history=history,
            limit=limit,
            stop_tokens=stop_tokens,
            allowed_after=allowed_after,
            vocabulary_size=vocabulary_size,
        )
    return verify_rejection(
        tree,
        laws,
        logits,
        params,
        seed,
        position,
        rule=BY_REJECTION[rule],
        history=history,
        limit=limit,
        stop_tokens=stop_tokens,
        allowed_after=allowed_after,
        vocabulary_size=vocabulary_size,
    )
