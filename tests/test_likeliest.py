"""``likeliest`` against a full sort, by the kernel where there is one and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.sampling.likeliest import likeliest, likeliest_and_mass


@pytest.fixture(autouse=True, params=["auto", "off"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_NATIVE", request.param)


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("size", [1, 5, 1000, 1024, 3000])
@pytest.mark.parametrize("count", [1, 4, 8, 17])
def test_equals_a_full_sort(spread: float, size: int, count: int) -> None:
    rows = (torch.randn(7, size, generator=torch.Generator().manual_seed(size + count)) * spread).round(decimals=2)
    expected = [np.argsort(-row, kind="stable")[:count].tolist() for row in rows.numpy()]
    assert likeliest(rows, count) == expected


def test_forbidden_tokens_come_last() -> None:
    row = torch.full((1, 6), -torch.inf)
    row[0, 4] = 1.0
    assert likeliest(row, 3)[0][0] == 4


@pytest.mark.parametrize("size", [61, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_counts_as_the_least(size: int, dtype: torch.dtype) -> None:
    rows = torch.randn(3, size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rows[1], rows[2, 7], rows[2, 9] = torch.nan, torch.nan, torch.nan
    expected = [np.argsort(-np.nan_to_num(row, nan=-np.inf), kind="stable")[:4].tolist() for row in rows.float().numpy()]
    assert likeliest(rows, 4) == expected
    assert expected[1] == [0, 1, 2, 3]


def test_a_part_of_each_row_and_half_precision() -> None:
    rows = torch.randn(5, 4096, generator=torch.Generator().manual_seed(3))
    for given in (rows[:, :1500], rows[::2], rows.half(), rows.T):
        expected = [np.argsort(-row, kind="stable")[:8].tolist() for row in given.float().numpy()]
        assert likeliest(given, 8) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0.1, 5.0, 300.0])
def test_the_mass_is_that_of_all_that_is_near(spread: float, dtype: type) -> None:
    row = (np.random.default_rng(3).standard_normal(3000) * spread).astype(dtype)
    found = likeliest_and_mass(row, 3, 10.0)
    ids, logits, mass = found.places, found.values, found.mass
    assert ids == np.argsort(-row, kind="stable")[:3].tolist()
    assert logits == row[ids].tolist()
    near = row[row > row.max() - 10.0].astype(np.float64)
    assert mass == pytest.approx(np.exp(near - row.max()).sum(), rel=1e-6)
