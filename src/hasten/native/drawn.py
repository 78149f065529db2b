"""Which tokens may be drawn from a row of logits in memory (``sampling.contenders``)."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from hasten.native.loader import NativeLibrary, check
from hasten.native.sketch import DrawFields

MOST = 64
LEAST_TEMPERATURE = 1e-3


def may_be_drawn(
    library: NativeLibrary, values: npt.NDArray[np.float32], temperature: float, seed: int, position: int
) -> npt.NDArray[np.int64] | None:
    """Places, ascending, of every value of which value / temperature + ``noise_of(seed, position, place)`` may be the largest, and
    perhaps of a few more; None where that would be more than ``MOST``. ``values`` float32 [n], side by side, none of them NaN or
    +inf; ``temperature`` at least ``LEAST_TEMPERATURE``, ``seed`` below 2^64. Raises ValueError for other rows and temperatures."""
    if values.dtype != np.float32 or values.ndim != 1 or not values.flags.c_contiguous:
        raise ValueError("values must be one row of float32, side by side")
    places, found = (ctypes.c_int64 * MOST)(), ctypes.c_int64()
    draw = DrawFields(temperature, seed, position)
    check(library.call["hst_drawn"](values.ctypes.data, len(values), ctypes.byref(draw), MOST, places, ctypes.byref(found)))
    return None if found.value < 0 else np.array(places[: found.value], np.int64)
