"""What happens to a row of logits before a token is drawn from it: penalties, bias and mask, then top-k, top-p and min-p.

Everything here is a function of one row alone. Comparisons between logits are exact in their own precision; masses are summed
in float64 by NumPy, in an order that depends on the row only, so neither other rows nor the number of threads play a part.
(Only ``exp`` comes from the platform: a token that lies on the border of top-p or min-p to the last bit may fall on either
side on another machine.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hasten.core.errors import HastenError, ModelError
from hasten.core.types import SamplingParams
from hasten.sampling.noise import FloatArray, IntArray

_PIECE = 8192  # values that are weighed together
Logits = npt.NDArray[np.floating[Any]]
"""One row in NumPy: float32 or float64, shape [vocabulary]."""


class _Counts:
    """Distinct tokens in order of first sight, and how often each stands in the output. Grows in place."""

    def __init__(self) -> None:
        self.size = 0
        self.tokens: IntArray = np.empty(64, np.int64)
        self.output: IntArray = np.empty(64, np.int64)
        self.place: dict[int, int] = {}

    def add(self, token: int, times: int) -> None:
        at = self.place.get(token)
        if at is None:
            if self.size == len(self.tokens):
                self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
                self.output = np.concatenate([self.output, np.empty_like(self.output)])
            at = self.place[token] = self.size
            self.tokens[at], self.output[at] = token, 0
            self.size += 1
        self.output[at] += times


class History:
    """The tokens before a choice, counted for the penalties: repetition looks at prompt and output, presence and frequency at
    the output only.

    A sequence keeps one and calls ``extend`` with what it commits. ``with_path`` gives a view for a tree node, which shares
    the counts and changes nothing; a view is good until the next ``extend``.
    """

    __slots__ = ("_counts", "_path")

    def __init__(self, prompt: Iterable[int] = (), output: Iterable[int] = ()) -> None:
        self._counts = _Counts()
        self._path: tuple[int, ...] = ()
        for token in prompt:
            self._counts.add(token, 0)
        self.extend(output)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append committed output tokens. Not for views."""
        assert not self._path, "a view of a history cannot be extended"
        for token in tokens:
            self._counts.add(token, 1)

    def with_path(self, tokens: Sequence[int]) -> History:
        """This history and then ``tokens``, as a view."""
        view = History.__new__(History)
        view._counts, view._path = self._counts, (*self._path, *tokens)
        return view

    def counts(self) -> tuple[IntArray, IntArray]:
        """Distinct token ids, in no order that matters, and the number of times each stands in the output. Read only."""
        base = self._counts
        tokens, output = base.tokens[: base.size], base.output[: base.size]
        if not self._path:
            return tokens, output
        output, fresh = output.copy(), dict[int, int]()
        for token in self._path:
            at = base.place.get(token)
            if at is None:
                fresh[token] = fresh.get(token, 0) + 1
            else:
                output[at] += 1
        new_tokens, new_counts = np.array([*fresh], np.int64), np.array([*fresh.values()], np.int64)
        return np.concatenate([tokens, new_tokens]), np.concatenate([output, new_counts])


def adjusted(
    logits: torch.Tensor,
    params: SamplingParams,
    position: int,
    history: History | None = None,
    allowed: torch.Tensor | None = None,
    vocabulary_size: int | None = None,
) -> Logits:
    """The row that a token is chosen from: cut to the vocabulary, penalised, biased, masked; not yet divided by temperature.

    ``logits``: [V], any float dtype and device; half precision is widened to float32. Ids from ``vocabulary_size`` on
    (padding of the model's vocabulary) do not exist in the result. ``allowed``: bool, one entry a token, or fewer: tokens
    beyond its end are not allowed; the others become -inf. Where there is nothing to adjust the result shares memory with
    ``logits``: do not write to it.

    Penalties, on float64 copies: a logit of a token seen in prompt or output is divided by ``repetition_penalty`` where
    positive and multiplied where negative (Keskar et al., CTRL, 1909.05858, section 4.1, in the sign-aware form that is
    common today); then presence_penalty and frequency_penalty x count are subtracted for tokens of the output (the OpenAI
    interface's definition). Then logit_bias is added. Bias and history of ids outside the vocabulary have no effect.

    Raises ModelError when a logit is NaN or +inf, or all are -inf; HastenError when ``allowed`` leaves nothing.
    """
    return adjusted_with_top(logits, params, position, history, allowed, vocabulary_size)[0]


def adjusted_with_top(
    logits: torch.Tensor,
    params: SamplingParams,
    position: int,
    history: History | None = None,
    allowed: torch.Tensor | None = None,
    vocabulary_size: int | None = None,
) -> tuple[Logits, int]:
    """``adjusted``, and the place of its largest value, the first of equal ones: a greedy choice, found by checking anyway."""
    assert logits.ndim == 1, "one row at a time"
    row = logits.detach()
    if row.dtype not in (torch.float32, torch.float64):
        row = row.to(torch.float32)
    values: Logits = row.cpu().numpy()[:vocabulary_size]
    top = _finite_top(values, position)
    if params.needs_history or params.logit_bias:
        values = values.astype(np.float64)
        if params.needs_history:
            assert history is not None, "penalties need the history"
            _penalise(values, params, history)
        for token, bias in params.logit_bias.items():
            if token < len(values):
                values[token] += bias
        top = _finite_top(values, position)
    if allowed is not None:
        values, top = _masked(values, allowed.detach().cpu().numpy(), position)
    return values, top


def _finite_top(values: Logits, position: int) -> int:
    top = int(values.argmax()) if len(values) else 0  # NumPy finds NaN before anything else, and promises the first of equal maxima
    if len(values) == 0 or not np.isfinite(values[top]):
        raise ModelError(
            f"No token can be chosen at position {position}: the model's logits hold NaN or +inf, or nothing but -inf; its "
            "weights are damaged or overflow in this precision, so fetch the model again or use precision fp32."
        )
    return top


def _penalise(values: Logits, params: SamplingParams, history: History) -> None:
    tokens, counts = history.counts()
    inside = (tokens >= 0) & (tokens < len(values))
    tokens, counts = tokens[inside], counts[inside]
    seen = values[tokens]
    if params.repetition_penalty != 1.0:
        with np.errstate(over="ignore"):  # +inf is met by the next check
            seen = np.where(seen > 0.0, seen / params.repetition_penalty, seen * params.repetition_penalty)
    seen = seen - (counts > 0) * params.presence_penalty - counts * params.frequency_penalty
    values[tokens] = seen


def _masked(values: Logits, allowed: npt.NDArray[np.bool_], position: int) -> tuple[Logits, int]:
    allowed = allowed[: len(values)]
    masked = np.full_like(values, -np.inf)
    np.copyto(masked[: len(allowed)], values[: len(allowed)], where=allowed)
    top = int(masked.argmax())
    if masked[top] == -np.inf:
        raise HastenError(
            f"No token can be chosen at position {position}: every token that the model deems possible is forbidden there; "
            "loosen the constraint on the output."
        )
    return masked, top


def kept(values: Logits, params: SamplingParams) -> IntArray | None:
    """Ids, ascending, of the tokens that top-k, top-p and min-p leave, in this order; None when all three are off.

    top-k keeps exactly k tokens (all, if fewer are possible), the lowest ids of those that tie at the border. top-p ranks
    what is left by logit, then id, and keeps the shortest beginning whose mass is at least p of the mass of *what is left*:
    the token that crosses p is in. min-p keeps tokens at least ``min_p`` times as likely as the most likely one. Likelihoods
    are at ``params.temperature``. The most likely token always stays; top-p 0 leaves it alone, the lowest id of those that tie.
    """
    ids: IntArray | None = None
    if 0 < params.top_k < len(values):
        ids = largest(values, params.top_k)
        values = values[ids]
    if params.top_p < 1.0:
        ids, values = _narrow(ids, values, _nucleus(values, params.temperature, params.top_p))
    if params.min_p > 0.0:
        ids, values = _narrow(ids, values, _likely(values, params.temperature, params.min_p))
    return ids


def weights(values: Logits, temperature: float) -> FloatArray:
    """exp((value - largest) / temperature) in float64: probabilities up to a common factor, the largest being exactly 1."""
    return np.exp(scaled(values, values[values.argmax()], temperature))


def scaled(values: Logits, largest_value: float | np.floating[Any], temperature: float) -> FloatArray:
    """(values - largest_value) / temperature in float64; subtracting first keeps tiny temperatures from overflowing."""
    out = values.astype(np.float64)
    with np.errstate(over="ignore"):
        out -= np.float64(largest_value)
        out /= temperature
    return out


def largest(values: Logits, count: int) -> IntArray:
    """Indices, ascending, of the ``count`` largest values; of those equal at the border, the lowest indices. -inf is never
    in, so fewer come back when fewer are finite."""
    pool = _upper_part(values, count)
    inside = values[pool]
    if len(pool) <= count:
        return pool
    border = np.partition(inside, len(pool) - count)[len(pool) - count]
    above: npt.NDArray[np.bool_] = inside > border
    above[np.flatnonzero(inside == border)[: count - int(above.sum())]] = True
    return pool[above]


def ranked(values: Logits) -> IntArray:
    """All indices by descending value, equal ones by ascending index."""
    return np.argsort(-values, kind="stable")


def at_least(values: Logits, bound: float) -> tuple[IntArray, float]:
    """Indices, ascending, of all values at or above ``bound`` rounded to the row's own precision, and that rounded bound.

    No value at or above ``bound`` itself is missed, because rounding keeps the order.
    """
    rounded = values.dtype.type(bound)
    return np.flatnonzero(values >= rounded), float(rounded)


def _upper_part(values: Logits, count: int) -> IntArray:
    """At least ``count`` of the largest values with everything that ties with them; all finite ones when there are fewer."""
    top = float(values[values.argmax()])
    for reach in (4.0, 8.0, 16.0, 32.0):
        pool, _ = at_least(values, top - reach)
        if len(pool) >= count:
            return pool
    return np.flatnonzero(values > -np.inf)


def _nucleus(values: Logits, temperature: float, top_p: float) -> IntArray:
    top = float(values[values.argmax()])
    needed = top_p * mass(values, top, temperature)
    for reach in (10.0, 20.0, np.inf):
        # Ranking costs far more than finding, and finding among all more than among a few: only a head that holds enough is ranked.
        pool = at_least(values, top - reach * temperature)[0] if reach < np.inf else np.arange(len(values))
        inside = values[pool]
        heavy = np.exp(scaled(inside, top, temperature))
        if reach < np.inf and float(heavy.sum()) < needed:
            continue
        for part in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0):
            some = at_least(inside, top - part * reach * temperature)[0] if part < 1.0 else np.arange(len(pool))
            if part < 1.0 and float(heavy[some].sum()) < needed:
                continue
            order = some[ranked(inside[some])]
            sums = np.cumsum(heavy[order])
            if sums[-1] >= needed or len(some) == len(values):
                size = int(np.searchsorted(sums, needed, side="left")) + 1
                return np.sort(pool[order[:size]])
    raise AssertionError("the whole row holds all of its mass")


def mass(values: Logits, top: float, temperature: float) -> float:
    """The sum of ``weights``, ``top`` being the largest value; a piece at a time, for memory that holds them all is fetched anew
    each time and takes three times as long as they do."""
    pieces = (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))
    return float(sum(np.exp(scaled(piece, top, temperature)).sum() for piece in pieces))


def _likely(values: Logits, temperature: float, min_p: float) -> IntArray:
    """Places of values that are at least ``min_p`` times as likely as the largest one."""
    top = float(values[values.argmax()])
    pool, _ = at_least(values, top + temperature * (math.log(min_p) - 1e-6))  # exponentials of a few are enough
    return pool[weights(values[pool], temperature) >= min_p]


def _narrow(ids: IntArray | None, values: Logits, places: IntArray) -> tuple[IntArray, Logits]:
    return (places if ids is None else ids[places]), values[places]
