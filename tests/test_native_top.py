"""The largest outputs of a layer, found without keeping all of them: the very ids and values of the outputs. And those of rows."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch

from hasten.native.kernels import PackedLinear, PackedProgressive, round_progressive
from hasten.native.largest import MOST, largest, largest_and_mass
from hasten.native.loader import NativeLibrary


def wanted_top(outputs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By value, then by id."""
    values, ids = outputs.sort(dim=1, descending=True, stable=True)
    return ids[:, :k], values[:, :k]


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 5), (31, 64), (1024, 100), (1025, 128), (3000, 192)])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_ids_and_values_are_those_of_the_outputs(native: NativeLibrary, outputs: int, inputs: int, bits: int) -> None:
    torch.manual_seed(outputs + bits)
    block = inputs & -inputs if inputs > 5 else 0
    layer: PackedLinear | PackedProgressive
    if bits == 8:
        weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        layer = PackedLinear(native, weight, torch.rand(outputs), torch.randn(outputs), block)
    else:
        made = round_progressive(native, torch.randn(outputs, inputs), bits)
        layer = PackedProgressive(native, *made, torch.randn(outputs), block, bits)
    norm = torch.rand(inputs) + 0.5
    for rows in (0, 1, 3, 17, 40):
        x = torch.randn(rows, inputs)
        native.set_isa(native.best_isa)
        plain, after = layer(x), layer.after_norm(x, norm, 1e-6)
        for isa in native.available_isas():
            native.set_isa(isa)
            native.set_threads(1 + rows % 3)
            for k in (1, 2, 16):
                if k > outputs:
                    continue
                for wanted, arguments in ((plain, ()), (after, (norm, 1e-6))):
                    ids, values = layer.top_k(x, k, *arguments)
                    wanted_ids, wanted_values = wanted_top(wanted, k)
                    assert torch.equal(ids, wanted_ids), (isa, rows, k)
                    assert torch.equal(values, wanted_values), (isa, rows, k)
            assert torch.equal(layer.argmax(x, norm, 1e-6), after.argmax(1)), (isa, rows)


def test_equal_values_go_by_id(native: NativeLibrary) -> None:
    """Rows of weights that repeat within and across the pieces of work."""
    native.set_isa(native.best_isa)
    few = torch.randint(-127, 128, (7, 64), dtype=torch.int8)
    pick = torch.randint(0, 7, (2000,))
    layer = PackedLinear(native, few[pick], torch.ones(2000), None, 0)
    x = torch.randn(5, 64)
    outputs = layer(x)
    for threads in (1, 2, 4):
        native.set_threads(threads)
        ids, values = layer.top_k(x, 16)
        assert torch.equal(ids, wanted_top(outputs, 16)[0])
        assert torch.equal(values, outputs.gather(1, ids))
    zeros = PackedLinear(native, few[pick] * 0, torch.ones(2000), None, 0)
    assert torch.equal(zeros.top_k(x, 3)[0], torch.tensor([[0, 1, 2]] * 5))


def test_rows_that_are_not_numbers_have_no_ids(native: NativeLibrary) -> None:
    bias = torch.full((300,), float("nan"))
    layer = PackedLinear(native, torch.zeros(300, 64, dtype=torch.int8), torch.ones(300), bias, 0)
    assert layer.argmax(torch.randn(2, 64)).tolist() == [-1, -1]
    bias[77] = 3.0
    layer = PackedLinear(native, torch.zeros(300, 64, dtype=torch.int8), torch.ones(300), bias, 0)
    assert layer.top_k(torch.randn(1, 64), 2)[0].tolist() == [[77, -1]]


def test_what_does_not_fit_is_refused(native: NativeLibrary) -> None:
    layer = PackedLinear(native, torch.zeros(30, 64, dtype=torch.int8), torch.ones(30), None, 0)
    for k in (0, 17):
        with pytest.raises(ValueError, match="k must be from 1 to 16"):
            layer.top_k(torch.randn(1, 64), k)
    with pytest.raises(ValueError, match="contiguous"):
        layer.top_k(torch.randn(1, 65), 1)


@pytest.mark.parametrize("width", [1, 3, 31, 32, 33, 64, 1000, 4097])
def test_largest_of_rows_in_memory(native: NativeLibrary, width: int) -> None:
    torch.manual_seed(width)
    for rows in (1, 2, 5):
        for spread in (0.0, 0.05, 3.0):
            memory = (torch.randn(rows, width + 7) * spread).round(decimals=1)
            for count in {1, min(8, width), min(MOST, width)}:
                some = memory[:, :width]
                assert largest(native, some, count) == wanted_top(some, count)[0].tolist(), (rows, spread, count)


@pytest.mark.parametrize("width", [1, 31, 33, 1000, 8193])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_a_row_s_largest_and_the_mass_of_what_is_near(native: NativeLibrary, width: int, spread: float) -> None:
    generator = np.random.default_rng(width)
    row = (generator.standard_normal(width) * spread).astype(np.float32)
    row[generator.integers(0, width, width // 3)] = -np.inf
    row[generator.integers(0, width)] = 2.0 * spread
    rows = torch.from_numpy(row)[None]
    for count in {1, min(3, width), min(MOST, width)}:
        (found,) = largest_and_mass(native, rows, count, 10.0)
        assert found.places == largest(native, rows, count)[0]
        assert found.values == [float(row[place]) if place >= 0 else -np.inf for place in found.places]
        near = row[row > row.max() - 10.0].astype(np.float64)
        assert found.mass == pytest.approx(np.exp(near - row.max()).sum(), rel=1e-12)


@pytest.mark.parametrize("width", [1, 32, 100])
def test_largest_among_the_first_columns_and_some_others(native: NativeLibrary, width: int) -> None:
    generator = np.random.default_rng(width)
    memory = torch.from_numpy(generator.standard_normal((5, width + 90)).astype(np.float32))
    more = [array("q", generator.permutation(np.arange(width, width + 80))[:length].tolist()) for length in (0, 1, 7, 80, 33)]
    for count in {1, min(3, width)}:
        found = largest_and_mass(native, memory[:, : width + 80], count, 2.0, width, more)
        for row, places, each in zip(memory.numpy(), more, found, strict=True):
            allowed = np.array([*range(width), *places])
            order = allowed[np.argsort(-row[allowed], kind="stable")][:count]
            assert each.places == order.tolist()
            assert each.values == row[order].tolist()
            near = row[allowed][row[allowed] > row[order[0]] - np.float32(2.0)].astype(np.float64)
            assert each.mass == pytest.approx(np.exp(near - row[order[0]]).sum(), rel=1e-12)


def test_columns_that_are_not_there_are_refused(native: NativeLibrary) -> None:
    rows = torch.zeros(2, 40)
    for wrong in (-1, 29, 40):  # outside, and among the first, which would count twice
        with pytest.raises(ValueError, match="refused"):
            largest_and_mass(native, rows, 1, 10.0, 30, [array("q"), array("q", [35, wrong])])


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
