"""The target's few likeliest tokens of each row, for drafters that learn from rows whose token was never emitted."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from hasten.native.largest import MOST, largest, largest_and_mass
from hasten.native.largest import Largest as Largest
from hasten.native.loader import load
from hasten.sampling.filters import Logits

COLUMNS = 1024


def likeliest(logits: torch.Tensor, count: int) -> list[list[int]]:
    """Ids of the ``count`` largest logits of each row of [rows, vocabulary], the largest first, equal ones by id. NaN counts as the
    least: rows behind the end of an answer may hold it."""
    library = load()
    in_memory = logits.dtype is torch.float32 and not logits.is_cuda and logits.stride(1) == 1
    if library is not None and in_memory and 1 <= count <= min(MOST, logits.shape[1]):
        found = largest(library, logits, count)
        if all(ids[-1] >= 0 for ids in found):
            return found
    return [_sorted(row, count) for row in logits.detach().float().cpu().numpy()]


def likeliest_and_mass(row: Logits, count: int, reach: float) -> Largest:
    """Ids of the ``count`` largest logits of a row [vocabulary] as ``likeliest``, these logits, and how likely all are together
    that are less than ``reach`` below the largest one: in multiples of it. Behind those above -inf ids may be -1."""
    rows = torch.from_numpy(row)[None]
    if (found := likeliest_and_masses(rows, count, reach, len(row), None)) is not None:
        return found[0]
    ids = likeliest(rows, count)[0]
    near = row[row > row[ids[0]] - reach].astype(np.float64)
    return Largest(ids, [float(row[place]) for place in ids], float(np.exp(near - row[ids[0]]).sum()))


def likeliest_and_masses(
    rows: torch.Tensor, count: int, reach: float, width: int, more: Sequence[array[int]] | None
) -> list[Largest] | None:
    """``likeliest_and_mass`` of each row [n, logits], in one call: of its first ``width`` logits and those behind them that
    ``more`` names for it, ``array("q")``. None where no kernel does that."""
    library = load()
    in_memory = rows.dtype is torch.float32 and not rows.is_cuda and rows.stride(1) == 1
    if library is None or not in_memory or not 1 <= count <= min(MOST, width):
        return None
    return largest_and_mass(library, rows, count, reach, width, more)


def _sorted(row: npt.NDArray[np.float32], count: int) -> list[int]:
    """With the row laid out in lines of ``COLUMNS``, each column's maximum is a logit of its own, so ``count`` logits reach the
    ``count``-th largest of these maxima: only what reaches that bound needs sorting."""
    least = -np.inf
    if len(row) >= COLUMNS > count:
        lines = row[: len(row) // COLUMNS * COLUMNS].reshape(-1, COLUMNS)
        least = np.partition(lines.max(axis=0), -count)[-count]
    pool = np.flatnonzero(row >= least)
    if len(pool) < min(count, len(row)):  # no comparison with NaN holds
        return _sorted(np.where(np.isnan(row), np.float32(-np.inf), row), count)
    order = np.argsort(-row[pool], kind="stable")[:count]
    return [int(token) for token in pool[order]]
