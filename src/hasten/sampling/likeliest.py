"""The target's few likeliest tokens of each row, for drafters that learn from rows whose token was never emitted."""

from __future__ import annotations

import numpy as np
import torch

from hasten.sampling.filters import at_least

_REACHES = (3.0, 6.0, 12.0, 24.0, float("inf"))


def likeliest(logits: torch.Tensor, count: int) -> list[list[int]]:
    """Ids of the ``count`` largest logits of each row of [rows, vocabulary], the largest first, equal ones by id.

    Looks at a narrow band below the maximum first: sorting a whole vocabulary costs far more than finding its head.
    """
    out: list[list[int]] = []
    for row in logits.float().cpu().numpy():
        top = float(row[row.argmax()])
        for reach in _REACHES:
            pool, _ = at_least(row, top - reach)
            if len(pool) >= min(count, len(row)):
                break
        order = np.argsort(-row[pool], kind="stable")[:count]
        out.append([int(token) for token in pool[order]])
    return out
