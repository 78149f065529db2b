"""What a draft model proposes: its own choice under the target's noise, the runners-up, and how sure it is of each; or, for
verification by rejection, the law that its proposals are drawn from."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hasten.core.types import SamplingParams
from hasten.sampling import noise
from hasten.sampling.choose import choose_place
from hasten.sampling.draws import Drawn
from hasten.sampling.filters import History, Logits, adjusted, at_least, kept, largest, ranked, scaled
from hasten.sampling.laws import Law, likeliest, warped_law
from hasten.sampling.likeliest import Largest, likeliest_and_mass, likeliest_and_masses

_REACH = 10.0  # likelihood ratios beyond e^-10 cannot matter for a guess
MOST_DRAWN = 2048  # tokens that a draft is drawn from: what lies beyond is hardly ever drawn and makes every law dearer


@dataclass(frozen=True, slots=True)
class Guess(Drawn):
    """A token that a draft model proposes. ``score`` is its log-probability and, where there is noise, the noise it was ranked by;
    ``confidence`` estimates P(accepted | parent accepted)."""

    confidence: float


def guesses(
    logits: torch.Tensor,
    params: SamplingParams,
    seed: int,
    position: int,
    count: int,
    *,
    history: History | None = None,
    vocabulary_size: int | None = None,
    ids: noise.IntArray | None = None,
    noisy: bool = True,
) -> list[Guess]:
    """Up to ``count`` guesses, the best first: ``choose_row`` of the draft's logits, then the tokens whose perturbed score comes
    next. Not ``noisy``: the likeliest tokens, whatever the temperature.

    Confidence is the softmax of the perturbed scores (without noise: of the logits), so a choice that wins by a wide margin
    once the shared noise is added counts as sure: it is the margin that the target has to overturn. Guesses need no exactness:
    tokens less than e^-10 times as likely as the best are not looked at, but for the first choice itself.

    ``ids``: distinct token ids, one a logit, where the draft has logits of a part of the vocabulary only; all others are taken
    as impossible. Noise, penalties and bias are those of the ids, as everywhere.
    """
    values, names = _places(logits, params, position, history, vocabulary_size, ids)
    if params.greedy:
        return _greedy_guesses(values, names, count)
    first = choose_place(values, names, params, seed, position) if noisy else int(values.argmax())
    temperature = params.temperature
    peak = float(values[values.argmax()])
    pool, _ = at_least(values, peak - _REACH * temperature)
    allowed = kept(values, params)
    if allowed is not None:
        pool = np.intersect1d(pool, allowed, assume_unique=True)
    if first not in pool:
        pool = np.append(pool, first)
    plain = scaled(values[pool], peak, temperature)
    logs = plain - np.log(np.exp(plain).sum())
    tokens = pool if names is None else names[pool]
    scores = logs + noise.nearly(seed, position, tokens) if noisy else logs
    weight = np.exp(scores - scores.max())
    weight /= weight.sum()
    best = largest(scores, count + 1)
    order = [at for at in best[ranked(scores[best])] if pool[at] != first][: count - 1]
    chosen = int(np.flatnonzero(pool == first)[0])
    return [Guess(int(tokens[at]), float(logs[at]), float(scores[at]), float(weight[at])) for at in [chosen, *order]]


def likeliest_guesses(
    rows: torch.Tensor, count: int, ids: noise.IntArray, fixed: int, more: Sequence[array[int]]
) -> list[list[Guess]] | None:
    """``guesses`` of many rows at once for texts that are chosen greedily from what the model says: each from the first ``fixed``
    columns and those that ``more`` names for it, ``array("q")``; ``ids`` are those of all columns. None where no kernel does that,
    or a row has nothing to choose from."""
    found = likeliest_and_masses(rows, min(count, fixed), _REACH, fixed, more) if fixed else None
    if found is None or not all(math.isfinite(each.values[0]) for each in found):
        return None
    return [_sure_by(each, ids) for each in found]


def _greedy_guesses(values: Logits, names: noise.IntArray | None, count: int) -> list[Guess]:
    """``guesses`` where there is no noise. Few calls: each costs microseconds where a step has swept the caches."""
    return _sure_by(likeliest_and_mass(values, min(count, len(values)), _REACH), names)


def _sure_by(found: Largest, names: noise.IntArray | None) -> list[Guess]:
    peak, out, total = found.values[0], [], math.log(found.mass)
    for place, value in zip(found.places, found.values, strict=True):
        if place >= 0 and value >= peak - _REACH:
            log = value - peak - total
            out.append(Guess(place if names is None else int(names[place]), log, log, math.exp(log)))
    return out


def draft_law(
    logits: torch.Tensor,
    params: SamplingParams,
    position: int,
    *,
    history: History | None = None,
    vocabulary_size: int | None = None,
    ids: noise.IntArray | None = None,
) -> Law:
    """The law that a draft model draws from: after penalties, bias and filters as the target's, and only its ``MOST_DRAWN``
    likeliest tokens. Arguments as in ``guesses``."""
    return likeliest(warped_law(_adjusted(logits, params, position, history, vocabulary_size, ids), params), MOST_DRAWN)


def _places(
    logits: torch.Tensor,
    params: SamplingParams,
    position: int,
    history: History | None,
    vocabulary_size: int | None,
    ids: noise.IntArray | None,
) -> tuple[Logits, noise.IntArray | None]:
    """A row that tokens are chosen from, and their ids; None: 0, 1, 2 ... Part of a vocabulary stays one, but where penalties or
    bias are told by id."""
    if ids is None or params.needs_history or params.logit_bias:
        return _adjusted(logits, params, position, history, vocabulary_size, ids), None
    logits, ids = _within(logits, ids, vocabulary_size)
    return adjusted(logits, params, position), ids


def _within(logits: torch.Tensor, ids: noise.IntArray, size: int | None) -> tuple[torch.Tensor, noise.IntArray]:
    """The part of a row whose ids are below ``size``, on the row's device."""
    if size is None or int(ids.max()) < size:
        return logits, ids
    inside = ids < size
    return logits[torch.from_numpy(inside).to(logits.device)], ids[inside]


def _adjusted(
    logits: torch.Tensor,
    params: SamplingParams,
    position: int,
    history: History | None,
    vocabulary_size: int | None,
    ids: noise.IntArray | None,
) -> Logits:
    if ids is not None:
        logits = _spread(logits, ids, vocabulary_size)
    return adjusted(logits, params, position, history, None, vocabulary_size)


def _spread(logits: torch.Tensor, ids: noise.IntArray, vocabulary_size: int | None) -> torch.Tensor:
    """The row of the whole vocabulary, float32 or float64 on the CPU; ids beyond it are left out.

    Filling it costs a few hundredths of a millisecond, and keeps one meaning of bias, history and noise.
    """
    row = logits.detach().to("cpu")
    if row.dtype is not torch.float64:
        row = row.to(torch.float32)
    size = int(ids.max()) + 1 if vocabulary_size is None else vocabulary_size
    row, ids = _within(row, ids, size)
    out = torch.full((size,), -torch.inf, dtype=row.dtype)
    out[torch.from_numpy(ids)] = row
    return out
