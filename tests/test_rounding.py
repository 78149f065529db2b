"""Rounding with feedback: its codes are legal, its measure is the true error, and it beats rounding to nearest by far."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hasten.model import linear_rounding as rounding
from hasten.model.linear_rounding import Rounded, damp, round_with_feedback, unit_factor
from hasten.native.feedback import fit_group
from hasten.native.kernels import (
    PackedProgressive,
    check_progressive,
    expand_progressive,
    largest_code,
    largest_scale,
    round_progressive,
)
from hasten.native.loader import NativeLibrary, load, status


@pytest.fixture(scope="module")
def native() -> NativeLibrary:
    library = load()
    if library is None:
        pytest.skip(f"native kernels: {status()['reason']}")
    return library


def problem(outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights, and moments of inputs that go together: a few directions hold most of the energy, as in a language model."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(max(1, inputs // 8), inputs, generator=generator)
    rows = torch.randn(4 * inputs + 64, directions.shape[0], generator=generator) @ directions
    rows += 0.5 * torch.randn(rows.shape, generator=generator)
    return torch.randn(outputs, inputs, generator=generator), rows.T @ rows / rows.shape[0]


def weights_of(rounded: Rounded) -> Tensor:
    return expand_progressive(rounded.codes, rounded.group_scale, rounded.group_offset).float() * rounded.scale[:, None]


def error(weight: Tensor, rounded: Rounded, moments: Tensor) -> float:
    """Share of the output's energy that the rounding costs."""
    lost = weight - weights_of(rounded)
    return float(((lost @ moments) * lost).sum() / ((weight @ moments) * weight).sum())


@pytest.fixture(params=[4, 3], ids=["4 bits", "3 bits"])
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def nearest(native: NativeLibrary, weight: Tensor, bits: int) -> Rounded:
    return Rounded(*round_progressive(native, weight, bits))


@pytest.mark.parametrize("inputs", [64, 65, 100, 192, 576])
def test_it_beats_rounding_to_nearest(native: NativeLibrary, bits: int, inputs: int) -> None:
    weight, moments = problem(24, inputs, inputs)
    ours, plain = (
        error(weight, round_with_feedback(native, weight, moments, bits), moments),
        error(weight, nearest(native, weight, bits), moments),
    )
    assert ours < plain / 4, (ours, plain)


def test_without_the_moments_it_is_no_better(native: NativeLibrary, bits: int) -> None:
    """The gain comes from knowing the inputs: told that they are white, it does no better than rounding to nearest."""
    weight, moments = problem(24, 192, 3)
    blind = round_with_feedback(native, weight, torch.eye(192), bits)
    assert error(weight, blind, moments) > 0.8 * error(weight, nearest(native, weight, bits), moments)
    assert error(weight, blind, torch.eye(192)) < 1.05 * error(weight, nearest(native, weight, bits), torch.eye(192))


def test_each_half_pays(native: NativeLibrary, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(24, 256, 5)
    both = error(weight, round_with_feedback(native, weight, moments, bits), moments)
    monkeypatch.setattr(rounding, "SWEEPS", 0)
    feedback = error(weight, round_with_feedback(native, weight, moments, bits), moments)
    monkeypatch.setattr(rounding, "unit_factor", lambda moments: (torch.eye(len(moments)), moments.diagonal().clone()))
    assert both < 0.95 * feedback
    assert feedback < 0.5 * error(weight, round_with_feedback(native, weight, moments, bits), moments)


def test_the_factor_is_that_of_the_moments() -> None:
    _, moments = problem(1, 130, 8)
    factor, cost = unit_factor(damp(moments))
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.diagonal(), torch.ones(130))
    assert torch.allclose((factor * cost) @ factor.T, moments, rtol=1e-3, atol=1e-3 * float(moments.abs().max()))


def test_codes_are_legal_whatever_comes(native: NativeLibrary, bits: int) -> None:
    generator = torch.Generator().manual_seed(7)
    for seed in range(30):
        inputs = int(torch.randint(1, 200, (1,), generator=generator))
        weight, moments = problem(9, inputs, seed)
        weight[0] = 0
        weight[1] = 3.0
        weight[2, 0] = 1e5
        weight[3] *= 1e-20
        dead = torch.rand(inputs, generator=generator) < 0.3
        moments[dead] = 0
        moments[:, dead] = 0
        if seed % 5 == 0:
            moments.zero_()
        if seed % 7 == 0:
            moments *= 1e8
        rounded = round_with_feedback(native, weight, moments, bits)
        check_progressive(rounded.codes, rounded.group_scale, rounded.group_offset, bits)
        PackedProgressive(native, *(getattr(rounded, name) for name in rounded.__slots__), None, 0, bits)
        assert torch.isfinite(rounded.scale).all()
        assert weights_of(rounded).isfinite().all()
        assert weights_of(rounded)[0].abs().max() < 1e-20


def test_it_is_as_good_as_trying_every_code(native: NativeLibrary, bits: int) -> None:
    """Three inputs, one group: within a few percent of the best of all codes on the grid that was fitted."""
    torch.manual_seed(1)
    codes = torch.cartesian_prod(*[torch.arange(largest_code(bits) + 1.0)] * 3)
    found, best = 0.0, 0.0
    for seed in range(20):
        weight, moments = problem(1, 3, seed)
        rounded = round_with_feedback(native, weight, moments, bits)
        all_weights = (codes * rounded.group_scale.float() + rounded.group_offset.float()) * rounded.scale
        lost = weight - all_weights
        errors = ((lost @ damp(moments)) * lost).sum(1)
        own = weight - weights_of(rounded)
        found += float(((own @ moments) * own).sum())
        best += float(errors.min())
    assert best <= found <= 1.3 * best


def test_fitted_groups_are_as_good_as_all_scales_and_offsets(native: NativeLibrary, bits: int) -> None:
    """Where inputs do not go together, feedback is none, and the best of all grids can be tried."""
    torch.manual_seed(2)
    part, importance = torch.randn(32, 32) * 40, torch.rand(32) + 0.1
    part.clamp_(-127, 127)

    def cost(scale: float, offset: float) -> Tensor:
        most = min(float(largest_code(bits)), (127.0 - offset) // scale)
        code = ((part - offset) / scale).round().clamp(0, most)
        return (part - code * scale - offset).square() @ importance

    best = torch.full((32,), torch.inf)
    for scale in range(1, largest_scale(bits) + 1):
        for offset in range(-128, 128):
            best = torch.minimum(best, cost(float(scale), float(offset)))
    ratio = fit_group(native, part, part, torch.eye(32), importance, bits=bits).error / best
    assert ratio.min() >= 1 - 1e-5
    assert ratio.mean() < 1.03
    assert ratio.max() < 1.2


def test_the_same_bits_every_time(native: NativeLibrary, bits: int) -> None:
    weight, moments = problem(8, 130, 9)
    first = round_with_feedback(native, weight, moments, bits)
    second = round_with_feedback(native, weight.clone(), moments.clone(), bits)
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in first.__slots__)


def test_outputs_do_not_know_each_other(native: NativeLibrary, bits: int) -> None:
    weight, moments = problem(8, 130, 11)
    whole, part = round_with_feedback(native, weight, moments, bits), round_with_feedback(native, weight[2:5], moments, bits)
    assert error(weight[2:5], part, moments) == pytest.approx(
        error(weight[2:5], Rounded(*(getattr(whole, name)[2:5] for name in whole.__slots__)), moments), rel=0.05
    )
