"""Choosing a token: equal to an obvious oracle, pruned or not, in any company, at extremes, and on broken logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import HastenError, ModelError
from hasten.core.types import SamplingParams
from hasten.sampling import contenders, noise
from hasten.sampling.choose import _perturbed_argmax, choose_row, token_logprob
from hasten.sampling.filters import History
from sampling_oracles import oracle_choose, random_params, random_row


@pytest.fixture(params=["kernel", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may win is told by a kernel, where there is one, or without."""
    if request.param == "numpy":
        monkeypatch.setattr(contenders, "load", lambda: None)


@pytest.mark.usefixtures("either")
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


@pytest.mark.usefixtures("either")
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
    monkeypatch.setattr(contenders, "load", lambda: None)  # kernels have noise of their own
    random = np.random.default_rng(4)
    size, winners = 6000, set()
    for trial in range(400):
        table = random.integers(0, 2**64, size, dtype=np.uint64)
        table[random.integers(0, size, 40)] = np.uint64(2**64 - 1) - (random.integers(0, 4, 40, dtype=np.uint64) << np.uint64(12))
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


def test_pruning_of_a_part_of_the_vocabulary() -> None:
    """What filters leave is scored by token id, not by place."""
    random = np.random.default_rng(5)
    for trial in range(150):
        ids = np.sort(random.choice(40_000, 9000, replace=False))
        values = random_row(random, 9000)
        if trial % 2:
            values = (random.normal(size=9000) * 2 + 25 * (random.random(9000) < 0.15) * random.choice([0.0, 1.0])).astype(
                np.float32
            )
        scores = (values.astype(np.float64) - np.float64(values.max())) / 0.9 + noise.noise_of(trial, 3, ids)
        assert _perturbed_argmax(values, ids, 0.9, trial, 3) == scores.argmax()
    layered = np.concatenate([np.full(4000, -7.5), [0.0], np.full(25_999, -8.2)])  # a first look sees little of the mass
    few = np.concatenate([[0.0], np.full(23_999, -70.0), np.full(6000, -8.5)])  # a small part within reach, and heavy
    ids = np.arange(0, 90_000, 3)
    for trial in range(60):
        for values in (layered, few):
            scores = values - values.max() + noise.noise_of(trial, 4, ids)
            assert _perturbed_argmax(values, ids, 1.0, trial, 4) == scores.argmax()


def test_perturbed_ties_go_to_the_lowest_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "load", lambda: None)
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
        row[17] = float(bad)
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
                token = choose_row(row, SamplingParams(temperature=temperature, **extra), 5, 6)
                assert row[token] >= row.max() - 1e4


@settings(deadline=None)
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
