"""The target's few likeliest tokens of each row, for drafters that learn from rows whose token was never emitted."""

from __future__ import annotations

import torch


def likeliest(logits: torch.Tensor, count: int) -> list[list[int]]:
    """Ids of the ``count`` largest logits of each row of [rows, vocabulary], the largest first, equal ones by id."""
    vocabulary = logits.shape[1]
    kept = min(count, vocabulary)
    values, ids = torch.topk(logits, min(kept + 1, vocabulary))
    tied = values[:, 1:] == values[:, :-1]
    out: list[list[int]] = ids[:, :kept].tolist()
    # Which of equal ones come out, and in which order, is open.
    for row in torch.nonzero(tied.any(dim=1)).flatten().tolist():
        out[row] = torch.sort(logits[row], descending=True, stable=True).indices[:kept].tolist()
    return out
