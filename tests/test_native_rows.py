"""Norm, gate, rotation, rounding and rotary embedding: against float64, and the same bits on every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.native.attention import ELEMENTS, PagedAttention
from hasten.native.loader import NativeLibrary
from hasten.native.row_kernels import RowKernels

WIDTHS = [1, 3, 15, 16, 17, 64, 100, 576, 896, 1536, 2049]


def everywhere(native: NativeLibrary, function) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The result of ``function`` on every path and thread count, which must be one."""
    results = []
    for isa in native.available_isas():
        for threads in (1, 2):
            native.set_isa(isa)
            native.set_threads(threads)
            results.append(function())
    for other in results[1:]:
        assert torch.equal(results[0], other)
    return results[0]


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(native: NativeLibrary, width: int) -> None:
    torch.manual_seed(width)
    kernels = RowKernels(native)
    x, weight = torch.randn(33, width) * 5, torch.randn(width)
    out = everywhere(native, lambda: kernels.rms_norm(x, weight, 1e-6))
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6) * weight.double()
    assert torch.allclose(out.double(), exact, rtol=2e-6, atol=0)
    one = torch.cat([kernels.rms_norm(row[None], weight, 1e-6) for row in x])
    assert torch.equal(out, one)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", WIDTHS)
def test_gate(native: NativeLibrary, width: int, activation: str) -> None:
    torch.manual_seed(width)
    kernels = RowKernels(native)
    x = torch.randn(21, 2 * width) * 8
    x[0] *= 20
    out = everywhere(native, lambda: kernels.gate(x, activation))  # type: ignore[arg-type]
    gate, up = x.double().chunk(2, -1)
    act = torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    # relative to |gate * up|: far to the left the true value is below any float32 step of the product
    assert ((out.double() - act * up).abs() <= 1.5e-6 * (gate * up).abs() + 1e-30).all()


@pytest.mark.parametrize(
    ("width", "block"), [(2, 2), (12, 4), (24, 8), (48, 16), (96, 32), (576, 64), (1536, 512), (896, 128), (5, 0), (5, 1)]
)
def test_rotation_is_the_orthonormal_hadamard_transform(native: NativeLibrary, width: int, block: int) -> None:
    torch.manual_seed(width)
    kernels = RowKernels(native)
    x = torch.randn(13, width)
    out = everywhere(native, lambda: kernels.rotate(x, block))
    if block < 2:
        assert torch.equal(out, x)
        return
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    exact = (x.double().reshape(-1, block) @ (matrix * block**-0.5)).reshape(13, width)
    assert (out.double() - exact).abs().max() < 2e-6
    assert (kernels.rotate(out, block) - x).abs().max() < 2e-6


@pytest.mark.parametrize(("width", "block"), [(1, 0), (17, 0), (576, 64), (1536, 512), (100, 4)])
def test_quantise(native: NativeLibrary, width: int, block: int) -> None:
    torch.manual_seed(width)
    kernels = RowKernels(native)
    x = torch.randn(19, width) * torch.logspace(-30, 30, 19)[:, None]
    x[3] = 0
    codes = everywhere(native, lambda: kernels.quantise(x, block)[0])
    scale = everywhere(native, lambda: kernels.quantise(x, block)[1])
    rotated = kernels.rotate(x, block).double()
    assert (codes[3] == 0).all()
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    live = [i for i in range(19) if i != 3]
    assert torch.allclose(scale[live].double() * 127, rotated[live].abs().amax(-1), rtol=1e-6)
    assert (codes.abs().amax(-1)[live] == 127).all()
    error = (codes.double() * scale[:, None].double() - rotated).abs()
    assert (error <= 0.5001 * scale[:, None].double()).all()
    assert ((codes.double() - rotated / scale[:, None].double()).abs()[live] <= 0.5001).all()


def test_quantise_rounds_ties_to_even(native: NativeLibrary) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.4999]])
    codes = everywhere(native, lambda: RowKernels(native).quantise(x, 0)[0])
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 3]]


def test_subnormal_and_huge_rows_stay_finite(native: NativeLibrary) -> None:
    x = torch.tensor([[1e-42, -1e-44], [3e38, -3e38], [1e-38, 0.0]])
    scale = everywhere(native, lambda: RowKernels(native).quantise(x, 0)[1])
    assert torch.isfinite(scale).all()
    codes = everywhere(native, lambda: RowKernels(native).quantise(x, 0)[0])
    assert codes[1].tolist() == [127, -127]


@pytest.mark.parametrize(("width", "block"), [(1536, 512), (1536, 0), (2049, 0), (8960, 256), (1040, 16), (1100, 4)])
def test_few_rows_are_cut_among_threads_without_a_trace(native: NativeLibrary, width: int, block: int) -> None:
    kernels = RowKernels(native)
    x = torch.randn(9, width)
    x[4, 700], x[6, width - 1], x[7, 0] = float("inf"), float("nan"), 1e38
    native.set_threads(1)
    codes, scale = kernels.quantise(x, block)
    assert scale.isnan().tolist() == [index in (4, 6) for index in range(9)]
    sound = [index for index in range(9) if index not in (4, 6)]
    for isa in native.available_isas():
        native.set_isa(isa)
        for threads in (1, 2, 3, 7):
            native.set_threads(threads)
            for first, count in [*((row, 1) for row in range(9)), (0, 3), (3, 5), (0, 9)]:
                some, scales = kernels.quantise(x[first : first + count], block)
                rows = [row for row in sound if first <= row < first + count]
                assert torch.equal(some[[row - first for row in rows]], codes[rows]), (isa, threads, first, count)
                assert torch.equal(scales.nan_to_num(-1.0), scale[first : first + count].nan_to_num(-1.0)), (isa, threads, first)


@pytest.mark.parametrize("width", [2, 40, 576])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_has_the_scale_nan(native: NativeLibrary, value: float, width: int) -> None:
    x = torch.randn(3, width)
    x[1, width - 1] = value
    scale = everywhere(native, lambda: RowKernels(native).quantise(x, 0)[1].isnan())
    assert scale.tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dim", [16, 32, 64, 80, 96, 128, 256])
def test_rope_write(native: NativeLibrary, dim: int, normed: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    heads, kv_heads, rows, blocks = 6, 2, 37, 3
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim)
    angles = torch.rand(rows, dim // 2) * 6
    cosine, sine = angles.cos(), angles.sin()
    slots = torch.randperm(blocks * 64)[:rows]
    weights = (torch.rand(dim) + 0.5, torch.rand(dim) + 0.5) if normed else (None, None)
    int32 = {"dtype": torch.int32}
    layout = (torch.tensor([0, rows], **int32), torch.tensor([0], **int32), torch.tensor([rows], **int32))
    tail = (torch.zeros(1, 1, **int32), torch.zeros(rows, **int32), torch.zeros(rows, 1, **int32), slots)

    def run() -> torch.Tensor:
        keys = torch.zeros(1, blocks, kv_heads, dim, 64, dtype=dtype)
        values = torch.zeros(1, blocks, kv_heads, 64, dim, dtype=dtype)
        attention = PagedAttention(native, keys, values, heads, dim**-0.5, 0.0, 1e-6)
        attention.begin(*layout, *tail)
        query = attention.rope_write(0, qkv, *weights, cosine, sine)
        return torch.cat([query.flatten(), keys.float().flatten(), values.float().flatten()])

    flat = everywhere(native, run)
    split = rows * heads * dim
    query, keys, values = flat[:split].view(rows, heads, dim), *flat[split:].chunk(2)
    keys, values = keys.view(blocks, kv_heads, dim, 64), values.view(blocks, kv_heads, 64, dim)
    q, k, _ = qkv.double().split([heads * dim, kv_heads * dim, kv_heads * dim], -1)

    def turned(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        x = x.reshape(rows, -1, dim)
        if weight is not None:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight.double()
        first, second = x.chunk(2, -1)
        c, s = cosine.double()[:, None], sine.double()[:, None]
        return torch.cat([first * c - second * s, second * c + first * s], -1)

    assert (query.double() - turned(q, weights[0])).abs().max() < 3e-6
    step = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    got_keys = torch.stack([keys[s // 64, :, :, s % 64] for s in slots.tolist()])
    got_values = torch.stack([values[s // 64, :, s % 64] for s in slots.tolist()])
    wanted = turned(k, weights[1])
    assert ((got_keys.double() - wanted).abs() <= step * wanted.abs() + 3e-6).all()
    assert torch.equal(got_values, qkv[:, -kv_heads * dim :].reshape(rows, kv_heads, dim).to(dtype).float())
    untouched = torch.ones(blocks * 64, dtype=torch.bool)
    untouched[slots] = False
    assert (keys.permute(0, 3, 1, 2).reshape(blocks * 64, -1)[untouched] == 0).all()


def test_sums_do_not_depend_on_where_a_row_lies_in_memory(native: NativeLibrary) -> None:
    kernels = RowKernels(native)
    generator = np.random.default_rng(1)
    rows = torch.from_numpy(generator.standard_normal((70, 300), dtype=np.float32))
    weight = torch.rand(300)
    wanted = kernels.rms_norm(rows, weight, 1e-5)
    for _ in range(30):
        pick = torch.from_numpy(generator.permutation(70)[: generator.integers(1, 71)])
        assert torch.equal(kernels.rms_norm(rows[pick], weight, 1e-5), wanted[pick])
