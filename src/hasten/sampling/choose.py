"""Choosing a token from a row of logits: a pure function of (logits, parameters, seed, position, history).

Plain decoding, verification and draft models all call ``choose_row``; that they call the same function with the same seed and
position is what makes speculation invisible in the output (reference: Gumbel-coupled verification, Daliri et al. 2025).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from hasten.core.types import Draw, SamplingParams, TokenLogprob
from hasten.sampling import noise
from hasten.sampling.contenders import may_win, perturbed
from hasten.sampling.draws import lone_seed
from hasten.sampling.filters import History, Logits, adjusted, kept, largest, mass, ranked, scaled

_LEAST_TEMPERATURE = 1e-6  # below, a logit divided by it leaves no room for noise in a number


def choose_row(
    logits: torch.Tensor,
    params: SamplingParams,
    seed: int,
    position: int,
    history: History | None = None,
    allowed: torch.Tensor | None = None,
    vocabulary_size: int | None = None,
) -> int:
    """The token that follows, where ``position`` is the absolute position the chosen token will have.

    ``logits``: [V], any float dtype. Temperature 0 or top-p 0: the largest logit after penalties, bias and mask. Otherwise these,
    then temperature, top-k, top-p, min-p, and the largest log-probability plus Gumbel noise. The lowest id wins a tie. See
    ``filters.adjusted`` for ``history``, ``allowed`` and ``vocabulary_size``, and for the errors.
    """
    return choose_adjusted(adjusted(logits, params, position, history, allowed, vocabulary_size), params, seed, position)


def choose_adjusted(values: Logits, params: SamplingParams, seed: int, position: int) -> int:
    """``choose_row`` for a row that ``filters.adjusted`` has returned."""
    return choose_place(values, None, params, seed, position)


def choose_place(values: Logits, tokens: noise.IntArray | None, params: SamplingParams, seed: int, position: int) -> int:
    """``choose_adjusted`` for a row of some tokens only: the place in it of the choice. ``tokens``: distinct ids, one a value; None
    for 0, 1, 2 ... The lowest place wins a tie."""
    if params.greedy:
        return int(values.argmax())  # NumPy promises the first of equal maxima; torch.argmax does not
    places = kept(values, params)
    if places is None:
        return _perturbed_argmax(values, tokens, params.temperature, seed, position)
    some = places if tokens is None else tokens[places]
    return int(places[_perturbed_argmax(values[places], some, params.temperature, seed, position)])


def leaders_needed(params: SamplingParams, seed: int, rule: str, constrained: bool) -> tuple[int, Draw | None]:
    """How many of a row's largest logits decide which token is chosen from it, whatever lies below them; 0 where any logit may
    have a say. With a ``Draw`` they decide together with the logit of the token that it draws (the largest one is what scores are
    measured from). ``rule``: that of verification, in a round without drafts; ``constrained``: tokens may be forbidden."""
    if constrained or params.needs_history or params.logit_bias or params.logprobs is not None:
        return 0, None
    if params.greedy or params.top_k:
        return 1 if params.greedy else params.top_k, None
    unfiltered = params.top_p >= 1.0 and params.min_p <= 0.0 and params.temperature >= _LEAST_TEMPERATURE
    return (1, Draw(params.temperature, seed if rule == "coupled" else lone_seed(seed))) if unfiltered else (0, None)


def token_logprob(values: Logits, token: int, top: int) -> TokenLogprob:
    """Natural log-probability of ``token`` and of the ``top`` most likely tokens, at temperature 1 and without filters.

    ``values``: a row that ``filters.adjusted`` has returned. Equally likely tokens are listed by id; fewer than ``top`` come
    back where fewer are possible.
    """
    peak = float(values[values.argmax()])
    best = largest(values, top) if top else np.empty(0, np.int64)
    best = best[ranked(values[best])]
    asked = np.array([token, *best], np.int64)
    logprobs = (scaled(values[asked], peak, 1.0) - math.log(mass(values, peak, 1.0))).tolist()
    return TokenLogprob(token, logprobs[0], tuple(zip(asked[1:].tolist(), logprobs[1:], strict=True)))


def _perturbed_argmax(values: Logits, ids: noise.IntArray | None, temperature: float, seed: int, position: int) -> int:
    """Place of the largest value / temperature + noise, the lowest one on ties. ``ids``: one a value; None for 0, 1, 2 ..."""
    places = may_win(values, ids, temperature, seed, position)
    if len(places) == 1:
        return int(places[0])
    return int(places[perturbed(values, ids, places, temperature, seed, position).argmax()])
