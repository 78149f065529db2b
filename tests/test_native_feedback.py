"""Rounding a group with feedback: against the same arithmetic in double precision, one output at a time, at every level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hasten.model.linear_rounding import unit_factor
from hasten.native.feedback import FittedGroup, descend_group, fit_group
from hasten.native.kernels import largest_code, largest_scale
from hasten.native.loader import NativeLibrary


def problem(outputs: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights in units of int8, targets near them, and moments of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * count + 8, count, generator=generator) @ torch.randn(count, count, generator=generator)
    moments = rows.T @ rows / rows.shape[0] + 0.05 * count * torch.eye(count)
    weights = (torch.randn(outputs, count, generator=generator) * 40).clamp(-127, 127)
    return weights, weights + 4 * torch.randn(outputs, count, generator=generator), moments


def fitted(native: NativeLibrary, weights: Tensor, targets: Tensor, moments: Tensor, bits: int = 4) -> FittedGroup:
    return fit_group(native, weights, targets, *unit_factor(moments), bits=bits)


def error_of(weights: Tensor, targets: Tensor, moments: Tensor, values: Tensor) -> Tensor:
    """Of whole groups, in double precision. Targets ask for more than the weights: (e + asked U^-1) H (e + asked U^-1)^T."""
    factor, _ = unit_factor(moments.double())
    moved = (weights - values).double() + torch.linalg.solve_triangular(
        factor, (targets - weights).double(), upper=True, left=False
    )
    return ((moved @ moments.double()) * moved).sum(1)


@pytest.mark.parametrize(("outputs", "count"), [(1, 1), (3, 2), (16, 32), (17, 31), (50, 32), (0, 5)])
@pytest.mark.parametrize("bits", [4, 3])
def test_what_it_says_is_the_true_error(native: NativeLibrary, outputs: int, count: int, bits: int) -> None:
    weights, targets, moments = problem(outputs, count, outputs + count)
    found = fitted(native, weights, targets, moments, bits)
    codes, values = found.codes[:, :count], found.values[:, :count]
    assert torch.equal(values, codes * found.scale[:, None] + found.offset[:, None])
    assert torch.equal(codes, codes.round())
    assert ((codes >= 0) & (codes <= largest_code(bits))).all()
    assert ((values >= -128) & (values <= 127)).all()
    assert ((found.scale >= 1) & (found.scale <= largest_scale(bits))).all()
    expected = error_of(weights, targets, moments, values)
    assert torch.allclose(found.error.double(), expected, rtol=1e-3, atol=1e-3)


def test_codes_are_those_of_feedback_one_by_one(native: NativeLibrary) -> None:
    weights, targets, moments = problem(20, 30, 1)
    factor, cost = unit_factor(moments)
    found = fit_group(native, weights, targets, factor, cost)
    lost, close = torch.zeros(20, 30, dtype=torch.float64), 0
    for j in range(30):
        wanted = targets[:, j] + lost @ factor[:, j].double().where(torch.arange(30) < j, 0.0)
        place = ((wanted - found.offset) / found.scale).clamp(0, 15)
        close += int(((found.codes[:, j] - place).abs() > 0.501).sum())  # clipped ones lie on the end of the range
        lost[:, j] = weights[:, j] - found.values[:, j]
    assert close <= 2 + int((found.values[:, :30] > 110).sum()), "each code is the nearest to what is asked"


def test_neighbours_are_searched(native: NativeLibrary) -> None:
    """No scale or offset one step away is better when the search began there."""
    weights, targets, moments = problem(64, 32, 2)
    factor, cost = unit_factor(moments)
    found = fit_group(native, weights, targets, factor, cost)
    again = fit_group(native, weights, targets, factor, cost, (found.scale, found.offset))
    assert (again.error <= found.error).all()
    poor = fit_group(native, weights, targets, factor, cost, (torch.full((64,), 17.0), torch.full((64,), -128.0)))
    assert found.error.mean() < 0.75 * poor.error.mean()


@pytest.mark.parametrize("bits", [4, 3])
def test_descent_only_goes_down(native: NativeLibrary, bits: int) -> None:
    weights, _, moments = problem(33, 30, 3)
    found = fitted(native, weights, weights, moments, bits)
    before = error_of(weights, weights, moments, found.values[:, :30])
    codes = found.codes.clone()
    descend_group(native, found, moments, (weights - found.values[:, :30]) @ moments, 4, bits)
    after = error_of(weights, weights, moments, found.values[:, :30])
    assert torch.equal(found.values[:, :30], found.codes[:, :30] * found.scale[:, None] + found.offset[:, None])
    assert ((found.codes[:, :30] >= 0) & (found.codes[:, :30] <= largest_code(bits))).all()
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    assert not torch.equal(codes, found.codes)


def test_levels_and_threads_agree(native: NativeLibrary) -> None:
    """Bit for bit where there is a fused multiply-add; without, as good a fit."""
    weights, targets, moments = problem(70, 32, 4)
    seen: dict[str, Tensor] = {}
    for level in native.available_isas():
        native.set_isa(level)
        for threads in (1, 3):
            native.set_threads(threads)
            found = fitted(native, weights, targets, moments)
            descend_group(native, found, moments, (weights - found.values) @ moments, 2)
            made = torch.cat([found.codes, found.scale[:, None], found.offset[:, None], found.error[:, None]], 1)
            assert torch.equal(seen.setdefault(level, made), made)
    assert all(torch.equal(seen[level], seen["avx2"]) for level in seen if level != "generic" and "avx2" in seen)
    errors = [made[:, -1].mean() for made in seen.values()]
    assert max(errors) <= min(errors) * 1.01


def test_outputs_do_not_know_each_other(native: NativeLibrary) -> None:
    weights, targets, moments = problem(40, 32, 5)
    whole, part = fitted(native, weights, targets, moments), fitted(native, weights[7:21], targets[7:21], moments)
    assert torch.equal(whole.codes[7:21], part.codes)
    assert torch.equal(whole.error[7:21], part.error)


def test_wrong_sizes_are_refused(native: NativeLibrary) -> None:
    weights, targets, moments = problem(4, 8, 6)
    factor, cost = unit_factor(moments)
    with pytest.raises(ValueError, match="contiguous"):
        fit_group(native, weights, targets[:3], factor, cost)
    with pytest.raises(ValueError, match="contiguous"):
        fit_group(native, weights.double(), targets, factor, cost)
    with pytest.raises(ValueError, match="refused"):
        fit_group(native, torch.zeros(4, 0), torch.zeros(4, 0), torch.zeros(0, 0), torch.zeros(0))
