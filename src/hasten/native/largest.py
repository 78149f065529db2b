"""The largest values of rows that are in memory already; of a layer's outputs see ``kernels``."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hasten.native.loader import NativeLibrary, check

MOST = 16


def largest(library: NativeLibrary, rows: Tensor, count: int) -> list[list[int]]:
    """Places of the ``count`` (1 to 16) largest values of each row, descending, equal ones by place. ``rows`` float32 [rows, width]
    in memory, at least ``count`` values side by side. Where fewer lie above -infinity, places are -1 behind them; NaN is passed
    over. Raises ValueError for other rows and counts."""
    number, width = rows.shape
    stride, step = rows.stride()
    if rows.dtype is not torch.float32 or rows.is_cuda or (step != 1 and width > 1):
        raise ValueError("rows must be float32 in memory, their values side by side")
    if not 1 <= count <= min(MOST, width):
        raise ValueError(f"count must be from 1 to {min(MOST, width)}, not {count}")
    # A few hundred bytes a step: plain arrays cost less than tensors.
    places, values = (ctypes.c_int64 * (number * count))(), (ctypes.c_float * (number * count))()
    check(library.call["hst_largest"](rows.data_ptr(), max(stride, width), number, width, count, places, values))
    return [places[at : at + count] for at in range(0, number * count, count)]


def largest_and_mass(
    library: NativeLibrary, row: npt.NDArray[np.float32], count: int, reach: float
) -> tuple[list[int], list[float], float]:
    """As ``largest`` of one row of values side by side; with them the values, and the sum of e^(value - the largest) over all that
    are less than ``reach`` below it."""
    places, values, mass = (ctypes.c_int64 * count)(), (ctypes.c_float * count)(), ctypes.c_double()
    check(library.call["hst_largest_and_mass"](row.ctypes.data, len(row), count, reach, places, values, ctypes.byref(mass)))
    return places[:], values[:], mass.value
