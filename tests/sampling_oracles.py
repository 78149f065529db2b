"""Slow and obvious definitions of penalties, filters and choice, and random cases to hold against them."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np

from hasten.core.types import SamplingParams
from hasten.sampling import noise


def oracle_filter(values: list[float], params: SamplingParams) -> list[int]:
    """The definition, token by token: which ids may be drawn."""
    order = sorted((i for i, v in enumerate(values) if v > -math.inf), key=lambda i: (-values[i], i))
    if 0 < params.top_k < len(values):
        order = order[: params.top_k]
    weight = {i: math.exp((values[i] - values[order[0]]) / params.temperature) for i in order}
    if params.top_p < 1.0:
        whole, mass, size = math.fsum(weight.values()), Fraction(0), 0
        while size < len(order) and mass < Fraction(params.top_p * whole):
            mass += Fraction(weight[order[size]])
            size += 1
        order = order[: max(size, 1)]
    if params.min_p > 0.0:
        order = [i for i in order if weight[i] >= params.min_p * weight[order[0]]]
    return sorted(order)


def oracle_adjust(values: list[float], params: SamplingParams, prompt: list[int], output: list[int]) -> list[float]:
    """The definition of penalties and bias, token by token."""
    out = list(values)
    counts = Counter(output)
    for token in set(prompt) | set(output):
        if 0 <= token < len(out):
            value = out[token]
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
            value -= (params.presence_penalty if counts[token] else 0.0) + 0.0
            out[token] = value - params.frequency_penalty * counts[token]
    for token, bias in params.logit_bias.items():
        if token < len(out):
            out[token] += bias
    return out


def oracle_choose(values: list[float], params: SamplingParams, seed: int, position: int) -> int:
    """Every token scored; the first of the best."""
    best = max(v for v in values)
    if params.greedy:
        return values.index(best)
    ids = oracle_filter(values, params)
    perturbation = noise.noise_of(seed, position, np.array(ids)).tolist()
    scores = [(values[i] - best) / params.temperature + g for i, g in zip(ids, perturbation, strict=True)]
    return ids[scores.index(max(scores))]


def random_row(random: np.random.Generator, size: int) -> np.ndarray:
    kind = random.integers(0, 7)
    row = random.normal(size=size) * random.choice([0.1, 1.0, 3.0, 10.0])
    if kind == 1:
        row = np.round(row)  # many ties
    elif kind == 2:
        row = np.zeros(size)
    elif kind == 3:
        row = np.round(row * 2) / 2
        row[random.random(size) < 0.5] = -np.inf
        row[random.integers(0, size)] = 1.0
    elif kind == 4:
        row = row * 1e4
    elif kind == 5:
        row[random.integers(0, size)] += 30.0
    elif kind == 6:
        row = -np.abs(row) - 1e6
    return row.astype(np.float32)


def random_params(random: np.random.Generator, size: int) -> SamplingParams:
    chosen: dict[str, Any] = {"temperature": float(random.choice([1e-3, 0.3, 0.8, 1.0, 2.0, 100.0]))}
    if random.random() < 0.5:
        chosen["top_k"] = int(random.integers(1, size + 3))
    if random.random() < 0.5:
        chosen["top_p"] = float(random.choice([0.0, 1e-9, 0.1, 0.5, 0.9, 0.99, 1 - random.random()]))
    if random.random() < 0.5:
        chosen["min_p"] = float(random.choice([1e-12, 0.01, 0.2, 0.5, 1.0]))
    return SamplingParams(**chosen)
