"""Choosing a token, against slow and obvious oracles: filters, penalties, ties, extremes, pruning, independence of company."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import HastenError, ModelError
from hasten.core.types import SamplingParams
from hasten.sampling import noise
from hasten.sampling.choose import choose_row, choose_with_probability, token_logprob
from hasten.sampling.filters import History, adjusted, at_least, kept, largest, ranked


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
        chosen["top_p"] = float(random.choice([1e-9, 0.1, 0.5, 0.9, 0.99, random.random() + 1e-6]))
    if random.random() < 0.5:
        chosen["min_p"] = float(random.choice([1e-12, 0.01, 0.2, 0.5, 1.0]))
    return SamplingParams(**chosen)


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


@pytest.mark.parametrize("size", [2049, 5000, 40_000])
def test_large_rows_equal_the_oracle(size: int) -> None:
    random = np.random.default_rng(size)
    for trial in range(30 if size < 40_000 else 8):
        row, params = random_row(random, size), random_params(random, size)
        assert choose_row(torch.from_numpy(row), params, trial, 9) == oracle_choose(row.tolist(), params, trial, 9), params


def full(values: np.ndarray, temperature: float, seed: int, position: int) -> int:
    with np.errstate(over="ignore"):
        scores = (values.astype(np.float64) - np.float64(values.max())) / temperature
    return int((scores + noise.noise_of(seed, position, np.arange(len(values)))).argmax())


def test_pruning_changes_nothing() -> None:
    random = np.random.default_rng(3)
    rows = [random_row(random, 12_000) for _ in range(25)]
    rows += [random.normal(size=12_000).astype(np.float32) * 2.5 + 11 * (np.arange(12_000) == 7) for _ in range(10)]
    rows += [random.gumbel(size=151_936) * 3, random.normal(size=151_936) * 2.5, np.zeros(151_936, np.float32)]
    for row in rows:
        for temperature in (5e-324, 1e-30, 0.05, 0.8, 1.3, 20.0):
            for position in range(3):
                got = choose_row(torch.from_numpy(row), SamplingParams(temperature=temperature), 17, position)
                assert got == full(row, temperature, 17, position)


def test_pruning_survives_adversarial_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlikely tokens with the largest noise there is, likely ones with the smallest, gaps around the bound of the noise."""
    random = np.random.default_rng(4)
    size, winners = 6000, set()
    for trial in range(400):
        table = random.integers(0, 2**64, size, dtype=np.uint64)
        table[random.integers(0, size, 40)] = np.uint64(2**64 - 1) - (
            random.integers(0, 4, 40, dtype=np.uint64) << np.uint64(12)
        )
        table[random.integers(0, size, 40)] = random.integers(0, 2**14, 40, dtype=np.uint64)
        monkeypatch.setattr(noise, "token_bits", lambda seed, position, tokens, table=table: table[tokens])
        gap = noise.MAX_NOISE + random.choice([-3.0, -1e-7, 0.0, 1e-7, 1.0, 3.7])
        row = (random.normal(size=size) * random.choice([0.0, 1e-7, 0.3, 4.0]) - gap * random.choice([0.0, 1.0, 0.5])).astype(
            np.float32
        )
        row[random.integers(0, size, random.integers(1, 4000))] = 0.0
        temperature = float(random.choice([0.25, 1.0, 4.0]))
        row *= np.float32(temperature)
        got = choose_row(torch.from_numpy(row), SamplingParams(temperature=temperature), trial, 0)
        assert got == full(row, temperature, trial, 0)
        winners.add(bool(row[got] < -10))
    assert winners == {True, False}  # pruned-looking tokens did win some of the time


def test_perturbed_ties_go_to_the_lowest_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "token_bits", lambda seed, position, tokens: np.full(len(tokens), 2**63, np.uint64))
    for size in (5, 2048, 2049, 30_000):
        row = torch.zeros(size)
        assert choose_row(row, SamplingParams(temperature=1.0), 0, 0) == 0
        row[:3] = -50.0
        assert choose_row(row, SamplingParams(temperature=1.0), 0, 0) == 3
        assert choose_row(row, SamplingParams(temperature=1.0, top_k=size - 1), 0, 0) == 3
        row[4] = 1e-3
        assert choose_row(row, SamplingParams(temperature=1.0), 0, 0) == 4


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    random = np.random.default_rng(5)
    for size in (1, 3, 64, 1000, 151_936):
        for _ in range(20):
            row = torch.from_numpy(np.round(random.normal(size=size)).astype(np.float32))
            assert choose_row(row, SamplingParams(), 0, 0) == int((row == row.max()).nonzero()[0])
    assert choose_row(torch.tensor([-0.0, 0.0, 0.0]), SamplingParams(), 0, 0) == 0


EXACT = [  # probabilities in eighths, so every mass is exact
    ([4, 2, 1, 1], {"top_p": 0.5}, [0]),
    ([4, 2, 1, 1], {"top_p": 0.5000001}, [0, 1]),
    ([4, 2, 1, 1], {"top_p": 0.75}, [0, 1]),
    ([4, 2, 1, 1], {"top_p": 0.8}, [0, 1, 2]),
    ([1, 1, 2, 4], {"top_p": 0.8}, [0, 2, 3]),
    ([1, 4, 1, 2], {"top_p": 0.9999999}, [0, 1, 2, 3]),
    ([2, 2, 2, 2], {"top_p": 0.5}, [0, 1]),
    ([2, 2, 2, 2], {"top_p": 1e-300}, [0]),
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


@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 420))
def test_largest_equals_sorting(seed: int, size: int, count: int) -> None:
    row = random_row(np.random.default_rng(seed), size)
    order = sorted(range(size), key=lambda i: (-row[i], i))
    assert ranked(row).tolist() == order
    assert largest(row, count).tolist() == sorted(i for i in order[:count] if row[i] > -np.inf)


@given(st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_at_least_misses_nothing(seed: int, dtype: type) -> None:
    random = np.random.default_rng(seed)
    row = (random.normal(size=50) * 10.0 ** random.integers(-3, 30)).astype(dtype)
    bound = float(row[0]) + random.choice([0.0, 1e-9, -1e-9])
    found, used = at_least(row, bound)
    assert used < bound or used == pytest.approx(bound, rel=1e-6)
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


ALL_PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=0.8, top_p=0.9),
    SamplingParams(temperature=1.1, top_k=40, top_p=0.95, min_p=0.02),
    SamplingParams(temperature=0.8, min_p=0.1, logit_bias={3: 2.0}),
]


def test_a_row_is_chosen_alone() -> None:
    """The same in any batch, memory layout, precision of storage and number of threads."""
    random = np.random.default_rng(8)
    batch = torch.from_numpy((random.normal(size=(12, 5003)) * 3).astype(np.float32))
    threads = torch.get_num_threads()
    try:
        for params in ALL_PARAMS:
            alone = [choose_row(row.clone(), params, 9, 100 + i) for i, row in enumerate(batch)]
            assert alone == [choose_row(row, params, 9, 100 + i) for i, row in enumerate(batch)]
            assert alone == [choose_row(row.double(), params, 9, 100 + i) for i, row in enumerate(batch)]
            strided = batch.t().contiguous().t()
            assert alone == [choose_row(strided[i], params, 9, 100 + i) for i in range(12)]
            reverse = [choose_row(batch[i], params, 9, 100 + i) for i in reversed(range(12))]
            assert alone == reverse[::-1]
            for offset in range(1, 5):  # other alignments of the same values
                room = torch.empty(5003 + offset)
                room[offset:] = batch[0]
                assert choose_row(room[offset:], params, 9, 100) == alone[0]
            for count in (1, 2):
                torch.set_num_threads(count)
                assert alone == [choose_row(row, params, 9, 100 + i) for i, row in enumerate(batch)]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    row = (torch.randn(300, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    for params in ALL_PARAMS:
        for position in range(20):
            assert choose_row(row, params, 1, position) == choose_row(row.float(), params, 1, position)


def test_seed_and_position_decide() -> None:
    row = torch.zeros(1000)
    params = SamplingParams(temperature=1.0)
    first = [choose_row(row, params, 3, position) for position in range(50)]
    assert first == [choose_row(row, params, 3, position) for position in range(50)]
    assert len(set(first)) > 40
    assert sum(a == b for a, b in zip(first, [choose_row(row, params, 4, p) for p in range(50)], strict=True)) < 5


def test_padding_of_the_vocabulary_is_never_chosen() -> None:
    row = torch.randn(100, generator=torch.Generator().manual_seed(1))
    row[90:] = 1000.0
    row[95], row[96] = math.nan, math.inf
    for params in ALL_PARAMS:
        for position in range(30):
            cut = choose_row(row, params, 1, position, vocabulary_size=90)
            assert cut == choose_row(row[:90], params, 1, position)
            assert cut < 90


def test_a_mask_equals_minus_infinity() -> None:
    random = np.random.default_rng(10)
    for _ in range(100):
        row = torch.from_numpy(random.normal(size=60).astype(np.float32))
        allowed = torch.from_numpy(random.random(60) < 0.3)
        allowed[int(random.integers(0, 60))] = True
        masked = row.masked_fill(~allowed, -math.inf)
        for params in ALL_PARAMS:
            token = choose_row(row, params, 1, 2, allowed=allowed)
            assert token == choose_row(masked, params, 1, 2)
            assert allowed[token]
    short = torch.zeros(10, dtype=torch.bool)
    short[4] = True
    assert choose_row(torch.arange(50.0), SamplingParams(temperature=9.0), 0, 0, allowed=short) == 4


@pytest.mark.parametrize("params", ALL_PARAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, "all", "empty"])
def test_broken_logits_are_an_error(params: SamplingParams, dtype: torch.dtype, bad: float | str) -> None:
    row = torch.randn(50, generator=torch.Generator().manual_seed(2)).to(dtype)
    if bad == "all":
        row[:] = -math.inf
    elif bad == "empty":
        row = row[:0]
    else:
        row[17] = bad
    with pytest.raises(ModelError, match="position 31") as caught:
        choose_row(row, params, 0, 31)
    assert "fp32" in str(caught.value)


def test_other_errors() -> None:
    with pytest.raises(HastenError, match="forbidden"):
        choose_row(torch.zeros(5), SamplingParams(), 0, 0, allowed=torch.zeros(5, dtype=torch.bool))
    possible = torch.tensor([0.0, -math.inf])
    with pytest.raises(HastenError, match="forbidden"):
        choose_row(possible, SamplingParams(temperature=1.0), 0, 0, allowed=torch.tensor([False, True]))
    huge = torch.tensor([1.7e308, 0.0], dtype=torch.float64)
    with pytest.raises(ModelError, match="position 4"):  # a penalty may overflow what the model gave
        choose_row(huge, SamplingParams(repetition_penalty=0.01), 0, 4, History([0]))
    with pytest.raises(AssertionError):
        choose_row(torch.zeros(5), SamplingParams(presence_penalty=1.0), 0, 0)


def test_extreme_values_do_not_warn_or_fail() -> None:
    rows = [
        torch.tensor([3e38, -3e38, 0.0, -math.inf]),
        torch.tensor([-3.4e38, -3.4e38]),
        torch.tensor([1.7e308, -1.7e308], dtype=torch.float64),
        torch.tensor([1e-45, 0.0]),
    ]
    big = torch.full((4000,), -3.4e38)
    for row in [*rows, big, torch.cat([rows[0], big])]:
        for temperature in (5e-324, 1e-300, 1e-9, 1.0, 100.0):
            for extra in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 2, "top_p": 1e-320, "min_p": 1.0}):
                token = choose_row(row, SamplingParams(temperature=temperature, **extra), 5, 6)  # type: ignore[arg-type]
                assert row[token] >= row.max() - 1e4


@given(st.integers(0, 2**32), st.sampled_from([3, 40, 3000]))
@settings(deadline=None)
def test_probability_is_that_of_the_law(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    row, params = random_row(random, size), random_params(random, size)
    token, probability = choose_with_probability(torch.from_numpy(row), params, seed, 8)
    assert token == choose_row(torch.from_numpy(row), params, seed, 8)
    ids = oracle_filter(row.tolist(), params)
    weight = np.exp((row[ids].astype(np.float64) - row.max()) / params.temperature)
    assert probability == pytest.approx(weight[ids.index(token)] / weight.sum(), rel=1e-9)
    token, probability = choose_with_probability(torch.from_numpy(row), SamplingParams(), seed, 8)
    assert token == int(row.argmax())
    assert probability == pytest.approx(float(torch.softmax(torch.from_numpy(row).double(), 0)[token]), rel=1e-9)


@given(st.integers(0, 2**32), st.integers(0, 20))
def test_logprobs_are_log_softmax(seed: int, top: int) -> None:
    row = random_row(np.random.default_rng(seed), 30)
    reference = torch.log_softmax(torch.from_numpy(row).double(), 0)
    order = [i for i in sorted(range(30), key=lambda i: (-row[i], i)) if row[i] > -np.inf]
    token = order[seed % len(order)]
    entry = token_logprob(row, token, top)
    assert entry.token == token
    assert entry.logprob == pytest.approx(float(reference[token]), rel=1e-9, abs=1e-12)
    assert [other for other, _ in entry.top] == order[:top]
    assert [value for _, value in entry.top] == pytest.approx([float(reference[i]) for i in order[:top]], rel=1e-9, abs=1e-12)
