"""The target's few likeliest tokens of each row, for drafters that learn from rows whose token was never emitted."""

from __future__ import annotations

import numpy as np
import torch

COLUMNS = 1024


def likeliest(logits: torch.Tensor, count: int) -> list[list[int]]:
    """Ids of the ``count`` largest logits of each row of [rows, vocabulary], the largest first, equal ones by id.

    With the row laid out in lines of ``COLUMNS``, each column's maximum is a logit of its own, so ``count`` logits reach the
    ``count``-th largest of these maxima: only what reaches that bound needs sorting.
    """
    out: list[list[int]] = []
    for row in logits.float().cpu().numpy():
        least = -np.inf
        if len(row) >= COLUMNS > count:
            lines = row[: len(row) // COLUMNS * COLUMNS].reshape(-1, COLUMNS)
            least = np.partition(lines.max(axis=0), -count)[-count]
        pool = np.flatnonzero(row >= least)
        order = np.argsort(-row[pool], kind="stable")[:count]
        out.append([int(token) for token in pool[order]])
    return out
