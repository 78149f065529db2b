"""Which tokens of a row may have the largest value / temperature + noise.

Most of a large vocabulary cannot win: noise is bounded, and a first look at likely tokens sets a score to beat. Tokens are left out
only when no noise, or no noise as small as theirs, could make them win, so the result is that of scoring all. A kernel hashes a row
in a fifth of the time; its logarithms may differ from ``noise``'s in the last places, so that it only says who may win, with room.
"""

from __future__ import annotations

import numpy as np

from hasten.native.drawn import LEAST_TEMPERATURE, may_be_drawn
from hasten.native.loader import load
from hasten.sampling import noise
from hasten.sampling.filters import Logits, at_least, scaled

DIRECT = 2048  # below this many tokens, hashing them all is cheaper than looking for those that matter
_HEAD = 8.0  # depth of the first look, in units of log-probability
_SLACK = 1e-6  # far above the rounding of a score, far below what would let many tokens through


def may_win(values: Logits, ids: noise.IntArray | None, temperature: float, seed: int, position: int) -> noise.IntArray:
    """Places, ascending, of all tokens that may win, and perhaps of others. ``values``: a row that ``filters.adjusted`` has
    returned. ``ids``: distinct ones, one a value; None for 0, 1, 2 ..."""
    if len(values) <= DIRECT:
        return np.arange(len(values))
    side_by_side = values.flags.c_contiguous and (ids is None or ids.flags.c_contiguous)
    library = load() if temperature >= LEAST_TEMPERATURE and values.dtype == np.float32 and side_by_side else None
    if library is not None and (found := may_be_drawn(library, values, ids, temperature, seed, position)) is not None:
        return found
    return _looked_through(values, ids, temperature, seed, position)


def perturbed(
    values: Logits, ids: noise.IntArray | None, places: noise.IntArray, temperature: float, seed: int, position: int
) -> noise.FloatArray:
    """value / temperature + noise at some places, less what the largest value of the row makes."""
    peak = float(values[values.argmax()])
    tokens = places if ids is None else ids[places]
    return scaled(values[places], peak, temperature) + noise.noise_of(seed, position, tokens)


def _looked_through(values: Logits, ids: noise.IntArray | None, temperature: float, seed: int, position: int) -> noise.IntArray:
    """``may_win`` without a kernel."""
    peak = float(values[values.argmax()])
    head, bound = at_least(values, peak - _HEAD * temperature)
    rest_at_most = (bound - peak) / temperature if len(head) <= DIRECT else 0.0
    head = head[:DIRECT]
    to_beat = float(perturbed(values, ids, head, temperature, seed, position).max())
    least_noise = to_beat - rest_at_most
    if least_noise > noise.MAX_NOISE + _SLACK:
        return head
    least_value = peak + temperature * (to_beat - noise.MAX_NOISE - _SLACK)
    rest = _lucky(values, ids, least_value, least_noise, seed, position)
    if len(rest) > DIRECT:
        tokens = rest if ids is None else ids[rest]
        rest = rest[noise.can_reach(seed, position, tokens, to_beat - scaled(values[rest], peak, temperature))]
    return np.union1d(head, rest)


def _lucky(
    values: Logits, ids: noise.IntArray | None, bound: float, least_noise: float, seed: int, position: int
) -> noise.IntArray:
    """Places of all values at or above ``bound`` whose noise is at least ``least_noise``, and perhaps of a few others."""
    pool, _ = at_least(values, bound)
    if 4 * len(pool) > len(values):  # hashing a run of ids costs less per token than gathering them
        return noise.candidates(seed, position, len(values) if ids is None else ids, least_noise)
    return pool[noise.candidates(seed, position, pool if ids is None else ids[pool], least_noise)]
