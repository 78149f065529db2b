"""The largest values of rows that are in memory already; of a layer's outputs see ``kernels``."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.native.loader import NativeLibrary, check

MOST = 16


def largest(library: NativeLibrary, rows: Tensor, count: int) -> list[list[int]]:
    """Places of the ``count`` (1 to 16) largest values of each row, descending, equal ones by place. ``rows`` float32 [rows, width]
    in memory, at least ``count`` values side by side. Where fewer lie above -infinity, places are -1 behind them; NaN is passed
    over. Raises ValueError for other rows and counts."""
    number, width = rows.shape
    stride = _stride(rows, count)
    # A few hundred bytes a step: plain arrays cost less than tensors.
    places, values = (ctypes.c_int64 * (number * count))(), (ctypes.c_float * (number * count))()
    check(library.call["hst_largest"](rows.data_ptr(), stride, number, width, count, places, values))
    return [places[at : at + count] for at in range(0, number * count, count)]


@dataclass(frozen=True, slots=True)
class Largest:
    """Of one row: ``places`` of its largest values, these, and the sum of e^(value - the largest) over all that are near."""

    places: list[int]
    values: list[float]
    mass: float


def largest_and_mass(
    library: NativeLibrary,
    rows: Tensor,
    count: int,
    reach: float,
    width: int | None = None,
    more: Sequence[array[int]] | None = None,
) -> list[Largest]:
    """As ``largest``, of the first ``width`` values of each row (None: of all), and with ``more`` of those behind them that it
    names for the row, ``array("q")``, each once. Near is what is less than ``reach`` below the largest."""
    number = rows.shape[0]
    width = rows.shape[1] if width is None else width
    stride = _stride(rows[:, :width], count)
    named = [(None, 0)] * number if more is None else [each.buffer_info() for each in more]
    starts = (ctypes.c_void_p * number)(*(start for start, _ in named))
    lengths = (ctypes.c_int64 * number)(*(length for _, length in named))
    places, values = (ctypes.c_int64 * (number * count))(), (ctypes.c_float * (number * count))()
    masses = (ctypes.c_double * number)()
    run = library.call["hst_largest_and_mass"]
    check(run(rows.data_ptr(), stride, number, width, starts, lengths, count, reach, places, values, masses))
    return [
        Largest(places[at * count : (at + 1) * count], values[at * count : (at + 1) * count], masses[at]) for at in range(number)
    ]


def _stride(rows: Tensor, count: int) -> int:
    """How far rows lie apart, if they are what the kernels take."""
    width = rows.shape[1]
    stride, step = rows.stride()
    if rows.dtype is not torch.float32 or rows.is_cuda or (step != 1 and width > 1):
        raise ValueError("rows must be float32 in memory, their values side by side")
    if not 1 <= count <= min(MOST, width):
        raise ValueError(f"count must be from 1 to {min(MOST, width)}, not {count}")
    return max(stride, width)
