"""The noise that carries exactness: a Gumbel variable for every (seed, position, token), from a counter and nothing else.

``argmax(log p + Gumbel)`` is an exact sample of p (Gumbel-max), and because the noise has no state, whoever asks for the
noise of a token at a position gets the same number: the target in plain decoding, the target in a tree, a draft model.

The generator is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; output
mixer: David Stafford's variant 13), used as a counter generator: seed and position are mixed to a 64-bit key, and the
noise of token t comes from output t of the stream that starts at the key. The logarithm is evaluated here, from IEEE
additions, multiplications and divisions only, not by libm: the noise is the same to the last bit on every machine.

It is not a cryptographic generator.
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BitArray = npt.NDArray[np.uint64]

_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: SplitMix64's increment
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_NOISE_DOMAIN = 0x6E6F697365  # keeps the keys of noise and of derived seeds apart
_SEED_DOMAIN = 0x73656564

_DROPPED_BITS = 12  # 52 bits remain: (2 k + 1) / 2^53 is then exact in float64 and never 0 or 1
_GRID = 2**52
_CHUNK = 16384

_SQRT_HALF = 0.7071067811865476
_LN2_HIGH = float.fromhex("0x1.62e42fefap-1")  # short enough that exponent * _LN2_HIGH is exact
_LN2_LOW = float.fromhex("0x1.cf79abc9e3b39803p-40")
_ODD_RECIPROCALS = tuple(1.0 / odd for odd in range(23, 0, -2))  # the series of atanh; its next term is below 2^-60


def noise_of(seed: int, position: int, tokens: IntArray) -> FloatArray:
    """Standard Gumbel noise of each token id at a position: float64 within [-3.61, ``MAX_NOISE``].

    ``tokens``: int64, one-dimensional, ids of at least 0. ``position`` is the absolute position of the token that is being chosen.
    """
    return from_bits(token_bits(seed, position, tokens))


def nearly(seed: int, position: int, tokens: IntArray) -> FloatArray:
    """``noise_of`` but for the last places, which are those of the platform's logarithm, in a third of the time: for guesses."""
    return -np.log(-np.log(_uniform(token_bits(seed, position, tokens))))


def token_bits(seed: int, position: int, tokens: IntArray) -> BitArray:
    """64 random bits for each token id at a position."""
    bits = tokens.astype(np.uint64)
    scratch = np.empty_like(bits)
    bits *= np.uint64(_STEP)
    bits += np.uint64(_key(seed, position))
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        np.right_shift(bits, np.uint64(shift), out=scratch)
        bits ^= scratch
        bits *= np.uint64(factor)
    np.right_shift(bits, np.uint64(31), out=scratch)
    bits ^= scratch
    return bits


def from_bits(bits: BitArray) -> FloatArray:
    """Gumbel noise of random bits: -log(-log(u)), where u is the middle of one of 2^52 equal cells of (0, 1).

    It rises with the bits. The grid is too coarse for a token less likely than about 2^-52, and for nothing else.
    """
    return -_log(-_log(_uniform(bits)))


def _uniform(bits: BitArray) -> FloatArray:
    return ((bits >> np.uint64(_DROPPED_BITS)) * np.uint64(2) + np.uint64(1)).astype(np.float64) * 2.0**-53


def candidates(seed: int, position: int, tokens: IntArray | int, least: float) -> IntArray:
    """Indices into ``tokens`` (an array of ids, or their number when they are 0, 1, 2 ...), ascending, of all tokens whose
    noise is at least ``least``, and perhaps of a few whose noise is smaller by less than 1e-6.

    Needs no logarithm for the others, so it is several times faster than ``noise_of``.
    """
    bound = np.uint64(_least_bits(least))
    total = tokens if isinstance(tokens, int) else len(tokens)
    found = []
    for start in range(0, total, _CHUNK):
        stop = min(start + _CHUNK, total)
        chunk = np.arange(start, stop) if isinstance(tokens, int) else tokens[start:stop]
        found.append(np.flatnonzero(token_bits(seed, position, chunk) >= bound) + start)
    return np.concatenate(found) if found else np.empty(0, np.int64)


def can_reach(seed: int, position: int, tokens: IntArray, least: FloatArray) -> npt.NDArray[np.bool_]:
    """False only for tokens whose noise is certainly below ``least``, which has one entry a token; needs no logarithm.

    Noise of at least g means -log(u) <= exp(-g), and 1 - u is never more than -log(u), nor much less where noise is large.
    """
    above = (~token_bits(seed, position, tokens) >> np.uint64(_DROPPED_BITS)).astype(np.float64) * (1.0 / _GRID)
    reach: npt.NDArray[np.bool_] = above <= np.exp(np.minimum(5e-7 - least, 1.0))
    return reach


def derive_seed(seed: int, index: int) -> int:
    """Seed of the ``index``-th of several answers, in [0, 2^64): the seed itself for index 0, then unrelated ones."""
    if index == 0:
        return seed
    return _mix(_mix(seed ^ _SEED_DOMAIN) + index * _STEP)


def fresh_seed() -> int:
    """A seed from the operating system's entropy, in [0, 2^53), so that it survives a trip through JSON numbers."""
    return int.from_bytes(os.urandom(8), "little") >> 11


def _key(seed: int, position: int) -> int:
    return _mix(_mix(seed ^ _NOISE_DOMAIN) + position * _STEP)


def _mix(value: int) -> int:
    """One SplitMix64 output for a 64-bit state, in Python integers."""
    value = (value + _STEP) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _least_bits(least: float) -> int:
    """The smallest bits whose noise may reach ``least`` (a little too small, never too large)."""
    share = -math.expm1(-math.exp(min(5e-7 - least, 700.0)))  # P(noise >= least - 5e-7)
    cell = _GRID - 2 - int(share * _GRID)
    return max(cell, 0) << _DROPPED_BITS


def _log(value: FloatArray) -> FloatArray:
    """Natural logarithm of positive normal numbers, within 2 units in the last place, the same on every IEEE machine."""
    mantissa, exponent = np.frexp(value)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, 2.0 * mantissa, mantissa)
    power = (exponent - small).astype(np.float64)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = np.full_like(square, _ODD_RECIPROCALS[0])
    for reciprocal in _ODD_RECIPROCALS[1:]:
        series *= square
        series += reciprocal
    return power * _LN2_HIGH + (power * _LN2_LOW + 2.0 * ratio * series)


MAX_NOISE = float(from_bits(np.array([_MASK], np.uint64))[0])
"""The largest noise there is, -log(-log(1 - 2^-53)) = 36.7368...: what lies further below the best never wins."""
