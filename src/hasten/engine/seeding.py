"""A start for token recycling: the target's likeliest tokens after single tokens, asked before the first request."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.progress import Progress
from hasten.core.types import BLOCK_SIZE, ROOT, Batch, DraftTree, Segment
from hasten.draft.recycled_rows import WIDTH
from hasten.model.executor import Executor
from hasten.sampling.likeliest import likeliest

TOGETHER = 256  # tokens of a pass


def successors(
    executor: Executor, vocabulary: int, lead: list[int], tokens: Sequence[int], progress: Progress
) -> dict[int, list[int]]:
    """The target's ``WIDTH`` likeliest tokens after each of ``tokens``, each of which follows ``lead`` (at least one token: a first
    position is seldom like others). All are siblings in a tree, so that each takes a row of a pass."""
    most = min(TOGETHER, executor.pool.num_blocks * BLOCK_SIZE - len(lead))
    out: dict[int, list[int]] = {}
    for start in range(0, len(tokens), most):
        some = list(tokens[start : start + most])
        tree = DraftTree(some, [ROOT] * len(some), [0.0] * len(some), [""] * len(some))
        blocks = list(range(-(-(len(lead) + len(some)) // BLOCK_SIZE)))
        logits = executor.forward(Batch([Segment(blocks, 0, lead, tree, first_logit=len(lead))]))
        out.update(zip(some, likeliest(logits[:, :vocabulary], WIDTH), strict=True))
        progress("asking what follows single tokens", len(out), len(tokens))
    return out
