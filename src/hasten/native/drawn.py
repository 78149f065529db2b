"""Which tokens may be drawn from a row of logits in memory (``sampling.contenders``)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.native.loader import NativeLibrary, check
from hasten.native.sketch import DrawFields

MOST = 64
LEAST_TEMPERATURE = 1e-3


def may_be_drawn(
    library: NativeLibrary,
    values: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64] | None,
    temperature: float,
    seed: int,
    position: int,
) -> npt.NDArray[np.int64] | None:
    """Places, ascending, of every value of which value / temperature + ``noise_of(seed, position, id)`` may be the largest, and
    perhaps of a few more; None where that would be more than ``MOST``. ``values`` float32 [n] and ``ids`` int64 [n] (None: 0, 1, 2
    ...), side by side, no value NaN or +inf; ``temperature`` at least ``LEAST_TEMPERATURE``, ``seed`` below 2^64. Raises
    ValueError for other arrays and temperatures."""
    if not (_fits(values, np.float32, len(values)) and (ids is None or _fits(ids, np.int64, len(values)))):
        raise ValueError("values must be one row of float32, and ids as many int64, side by side")
    places, found = (ctypes.c_int64 * MOST)(), ctypes.c_int64()
    draw, named = DrawFields(temperature, seed, position), None if ids is None else ids.ctypes.data
    call = library.call["hst_drawn"]
    check(call(values.ctypes.data, named, len(values), ctypes.byref(draw), MOST, places, ctypes.byref(found)))
    return None if found.value < 0 else np.array(places[: found.value], np.int64)


def _fits(array: npt.NDArray[Any], dtype: type, length: int) -> bool:
    return array.dtype == dtype and array.shape == (length,) and array.flags.c_contiguous
