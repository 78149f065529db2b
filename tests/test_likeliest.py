"""``likeliest`` against a full sort, by the kernel where there is one and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.native.largest import MOST, largest
from hasten.native.loader import NativeLibrary
from hasten.sampling.likeliest import likeliest


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


def test_a_part_of_each_row_and_half_precision() -> None:
    rows = torch.randn(5, 4096, generator=torch.Generator().manual_seed(3))
    for given in (rows[:, :1500], rows[::2], rows.half(), rows.T):
        expected = [np.argsort(-row, kind="stable")[:8].tolist() for row in given.float().numpy()]
        assert likeliest(given, 8) == expected


def test_the_kernel_passes_nan_over_and_says_where_nothing_is(native: NativeLibrary) -> None:
    rows = torch.full((3, 40), -torch.inf)
    rows[0, 7], rows[0, 33], rows[1] = 1.0, 2.0, torch.nan
    assert largest(native, rows, 3) == [[33, 7, -1], [-1, -1, -1], [-1, -1, -1]]
    assert largest(native, rows[:0], 3) == []


def test_the_kernel_refuses_what_it_would_misread(native: NativeLibrary) -> None:
    with pytest.raises(ValueError, match="side by side"):
        largest(native, torch.zeros(8, 8).T, 2)
    with pytest.raises(ValueError, match="float32"):
        largest(native, torch.zeros(2, 8, dtype=torch.float64), 2)
    for count in (0, 9, MOST + 1):
        with pytest.raises(ValueError, match="count"):
            largest(native, torch.zeros(2, 8), count)
