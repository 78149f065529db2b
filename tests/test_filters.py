"""Penalties, bias and filters, against slow and obvious oracles and against masses that are exact."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.types import SamplingParams
from hasten.sampling.choose import choose_row
from hasten.sampling.filters import History, adjusted, at_least, kept, largest, ranked
from sampling_oracles import oracle_adjust, oracle_choose, oracle_filter, random_params, random_row


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 7, 40, 300]))
@settings(max_examples=400, deadline=None)
def test_filters_and_choice_equal_the_oracle(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    row, params = random_row(random, size), random_params(random, size)
    ids = kept(row, params)
    finite = np.flatnonzero(row > -np.inf).tolist()
    got = finite if ids is None else [i for i in ids.tolist() if row[i] > -np.inf]
    assert got == oracle_filter(row.tolist(), params)
    assert choose_row(torch.from_numpy(row), params, seed, 5) == oracle_choose(row.tolist(), params, seed, 5)


EXACT = [  # probabilities in eighths, so every mass is exact
    ([4, 2, 1, 1], {"top_p": 0.5}, [0]),
    ([4, 2, 1, 1], {"top_p": 0.5000001}, [0, 1]),
    ([4, 2, 1, 1], {"top_p": 0.75}, [0, 1]),
    ([4, 2, 1, 1], {"top_p": 0.8}, [0, 1, 2]),
    ([1, 1, 2, 4], {"top_p": 0.8}, [0, 2, 3]),
    ([1, 4, 1, 2], {"top_p": 0.9999999}, [0, 1, 2, 3]),
    ([2, 2, 2, 2], {"top_p": 0.5}, [0, 1]),
    ([2, 2, 2, 2], {"top_p": 1e-300}, [0]),
    ([2, 2, 2, 2], {"top_p": 0}, [0]),
    ([1, 1, 2, 4], {"top_p": 0.0, "min_p": 0.1}, [3]),
    ([1, 4, 4, 1], {"top_k": 3, "top_p": 0.0}, [1]),
    ([2, 2, 2, 2], {"top_k": 3}, [0, 1, 2]),
    ([1, 2, 1, 4], {"top_k": 3}, [0, 1, 3]),
    ([4, 2, 1, 1], {"top_k": 1}, [0]),
    ([4, 2, 1, 1], {"top_k": 4}, None),
    ([4, 2, 1, 1], {"min_p": 0.5}, [0, 1]),
    ([4, 2, 1, 1], {"min_p": 0.25}, [0, 1, 2, 3]),
    ([4, 2, 1, 1], {"min_p": 1.0}, [0]),
    ([4, 4, 1, 1], {"min_p": 1.0}, [0, 1]),
    ([4, 2, 1, 1], {"top_k": 2, "top_p": 0.6}, [0]),  # of what top-k leaves, 2/3 is the first token's
    ([4, 2, 1, 1], {"min_p": 0.5, "top_p": 0.7}, [0, 1]),  # of the whole, not of what min-p would leave (there 2/3 < 0.7)
    ([5, 1, 1, 1], {"min_p": 0.3, "top_p": 0.7}, [0]),
    ([4, 2, 1, 1], {"top_k": 3, "top_p": 0.86, "min_p": 0.3}, [0, 1]),
]


@pytest.mark.parametrize(("eighths", "given_params", "expected"), EXACT)
def test_exact_filters(eighths: list[int], given_params: dict[str, Any], expected: list[int] | None) -> None:
    row = np.log(np.array(eighths, np.float64))
    ids = kept(row, SamplingParams(temperature=1.0, **given_params))
    assert (None if ids is None else ids.tolist()) == expected


def test_order_of_filters_matters_and_is_kept() -> None:
    """top-p before top-k, or min-p before top-p, would keep other tokens here."""
    row = np.log(np.array([0.35, 0.25, 0.2, 0.1, 0.1]))
    assert kept(row, SamplingParams(temperature=1.0, top_k=3, top_p=0.7)).tolist() == [0, 1]  # type: ignore[union-attr]
    assert kept(row, SamplingParams(temperature=1.0, top_p=0.7)).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    row = np.log(np.array([0.4, 0.3, 0.1, 0.1, 0.1]))
    assert kept(row, SamplingParams(temperature=1.0, top_p=0.5, min_p=0.5)).tolist() == [0, 1]  # type: ignore[union-attr]
    assert kept(row, SamplingParams(temperature=1.0, top_p=0.65, min_p=0.9)).tolist() == [0]  # type: ignore[union-attr]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 420))
def test_largest_equals_sorting(seed: int, size: int, count: int) -> None:
    row = random_row(np.random.default_rng(seed), size)
    order = sorted(range(size), key=lambda i: (-row[i], i))
    assert ranked(row).tolist() == order
    assert largest(row, count).tolist() == sorted(i for i in order[:count] if row[i] > -np.inf)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_at_least_misses_nothing(seed: int, dtype: type) -> None:
    random = np.random.default_rng(seed)
    row = (random.normal(size=50) * 10.0 ** random.integers(-3, 30)).astype(dtype)
    bound = float(row[0]) + random.choice([0.0, 1e-9, -1e-9])
    found, used = at_least(row, bound)
    assert used == pytest.approx(bound, rel=1e-6)
    assert np.isin(np.flatnonzero(row.astype(np.float64) >= bound), found).all()
    assert np.array_equal(found, np.flatnonzero(row.astype(np.float64) >= used))


@given(
    st.integers(0, 2**32),
    st.lists(st.integers(-2, 12), max_size=12),
    st.lists(st.integers(0, 12), max_size=12),
    st.lists(st.integers(0, 12), max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_penalties_and_bias_equal_the_oracle(seed: int, prompt: list[int], output: list[int], path: list[int]) -> None:
    random = np.random.default_rng(seed)
    row = random_row(random, 10)
    params = SamplingParams(
        temperature=float(random.choice([0.0, 0.9])),
        repetition_penalty=float(random.choice([1.0, 1.3, 0.7])),
        presence_penalty=float(random.choice([0.0, 0.5, -1.0])),
        frequency_penalty=float(random.choice([0.0, 0.25, -0.5])),
        logit_bias={int(i): float(random.normal() * 5) for i in random.integers(0, 14, random.integers(0, 3))},
    )
    history = History(prompt, output[:4])
    history.extend(output[4:])
    view = history.with_path(path[:2]).with_path(path[2:])
    before = [part.copy() for part in history.counts()]
    expected = oracle_adjust(row.tolist(), params, prompt, output + path)
    values = adjusted(torch.from_numpy(row), params, 0, view)
    assert values.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert choose_row(torch.from_numpy(row), params, 1, 2, view) == oracle_choose(values.tolist(), params, 1, 2)
    assert all(np.array_equal(a, b) for a, b in zip(before, history.counts(), strict=True))  # views change nothing
    assert np.array_equal(row, random_row(np.random.default_rng(seed), 10))  # nor does choosing change the logits


def test_history_grows_and_counts_like_a_counter() -> None:
    random = np.random.default_rng(6)
    prompt, output = random.integers(0, 500, 1000).tolist(), random.integers(0, 700, 1500).tolist()
    history = History(prompt, output[:100])
    for token in output[100:]:
        history.extend([token])
    path = [3, 3, 9999, 9999, 9999]
    tokens, counts = history.with_path(path).counts()
    assert len(set(tokens.tolist())) == len(tokens)
    assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == {
        token: Counter(output + path)[token] for token in {*prompt, *output, *path}
    }
    with pytest.raises(AssertionError):
        history.with_path([1]).extend([2])


def test_penalties_do_not_depend_on_the_order_of_history() -> None:
    random = np.random.default_rng(7)
    row = torch.from_numpy(random.normal(size=200).astype(np.float32))
    params = SamplingParams(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.1)
    prompt, output = random.integers(0, 200, 50).tolist(), random.integers(0, 200, 50).tolist()
    for position in range(50):
        whole = History(prompt, output)
        split = History(prompt[::-1], output[:30][::-1]).with_path(output[30:])
        assert choose_row(row, params, 1, position, whole) == choose_row(row, params, 1, position, split)
