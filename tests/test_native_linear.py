"""Packed int8 linear layers: exact against integers, one bit pattern on every path, and no row knows of another."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from hasten.core.errors import ConfigError
from hasten.native.kernels import (
    GROUP_INPUTS,
    Activation,
    GrowingLinear,
    PackedLinear,
    PackedMlp,
    PackedProgressive,
    expand_progressive,
    largest_code,
    largest_scale,
    round_progressive,
)
from hasten.native.loader import NativeLibrary, load, status
from hasten.native.row_kernels import RowKernels

SHAPES = [
    (1, 1),
    (5, 7),
    (16, 32),
    (16, 64),
    (17, 65),
    (31, 63),
    (32, 128),
    (33, 1000),
    (34, 97),
    (96, 576),
    (70, 2112),
    (40, 4160),
]


def random_layer(
    native: NativeLibrary, outputs: int, inputs: int, *, bias: bool = True, block: int = 0, seed: int = 0
) -> PackedLinear:
    torch.manual_seed(seed)
    weight = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs) * 0.01 + 1e-4
    return PackedLinear(native, weight, scale, torch.randn(outputs) if bias else None, block)


def integer_reference(weight: np.ndarray, scale: np.ndarray, codes: np.ndarray, row_scale: np.ndarray) -> np.ndarray:
    """The same float32 operations in the same order, on exact sums."""
    sums = codes.astype(np.int64) @ weight.astype(np.int64).T
    return sums.astype(np.int32).astype(np.float32) * scale[None, :] * row_scale[:, None]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_every_path_gives_the_bits_of_the_integer_reference(native: NativeLibrary, outputs: int, inputs: int) -> None:
    generator = np.random.default_rng(outputs * 7919 + inputs)
    weight = generator.integers(-128, 128, (outputs, inputs), dtype=np.int8)
    scale = (generator.random(outputs) * 0.01).astype(np.float32)
    bias = generator.standard_normal(outputs).astype(np.float32)
    layer = PackedLinear(native, torch.from_numpy(weight), torch.from_numpy(scale), torch.from_numpy(bias), 0)
    plain = PackedLinear(native, torch.from_numpy(weight), torch.from_numpy(scale), None, 0)
    for rows in (0, 1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 65, 100):
        codes = generator.integers(-128, 128, (rows, inputs), dtype=np.int8)
        row_scale = (generator.random(rows) * 0.1).astype(np.float32)
        residual = generator.standard_normal((rows, outputs)).astype(np.float32)
        wanted = integer_reference(weight, scale, codes, row_scale)
        for isa in native.available_isas():
            native.set_isa(isa)
            arguments = torch.from_numpy(codes), torch.from_numpy(row_scale)
            assert np.array_equal(plain.from_codes(*arguments).numpy(), wanted), (isa, rows)
            full = layer.from_codes(*arguments, torch.from_numpy(residual)).numpy()
            assert np.array_equal(full, (wanted + bias[None, :]) + residual), (isa, rows)


@pytest.mark.parametrize("inputs", [7, 64, 1000])
def test_outputs_that_join_have_the_bits_of_those_that_were_there(native: NativeLibrary, inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    layer = GrowingLinear(native, inputs, 0)
    x = torch.randn(5, inputs, generator=generator)
    for again in range(2):
        weight, scale = torch.empty(0, inputs, dtype=torch.int8), torch.empty(0)
        for count in (1, 2, 28, 1, 1, 33, 0, 64, 150):
            new = torch.randint(-128, 128, (count, inputs), dtype=torch.int8, generator=generator)
            scales = torch.rand(count, generator=generator) * 0.01
            weight, scale = torch.cat([weight, new]), torch.cat([scale, scales])
            layer.join(new, scales)
            whole = PackedLinear(native, weight, scale, None, 0)
            for isa in native.available_isas():
                native.set_isa(isa)
                assert torch.equal(layer(x), whole(x)), (again, isa, len(weight))
        layer.clear()


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 18])
def test_extreme_values_do_not_saturate(native: NativeLibrary, rows: int) -> None:
    """Every code at an end of int8: the largest sums there are, in every form of the kernels (one, few and many rows)."""
    for value, other in ((-128, -128), (-128, 127), (127, 127), (127, -128), (-127, 127), (-127, -127)):
        weight = np.full((33, 8960), value, np.int8)
        codes = np.full((rows, 8960), other, np.int8)
        scale, row_scale = np.ones(33, np.float32), np.ones(rows, np.float32)
        layer = PackedLinear(native, torch.from_numpy(weight), torch.from_numpy(scale), None, 0)
        wanted = integer_reference(weight, scale, codes, row_scale)
        for isa in native.available_isas():
            native.set_isa(isa)
            result = layer.from_codes(torch.from_numpy(codes), torch.from_numpy(row_scale)).numpy()
            assert np.array_equal(result, wanted), (isa, value, other)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 18])
@pytest.mark.parametrize("bits", [4, 3])
def test_extreme_values_of_few_bits_do_not_saturate(native: NativeLibrary, rows: int, bits: int) -> None:
    """The largest codes and rows at the ends of int8: 16-bit sums of eight products stay inside 16 bits, and so do offsets."""
    most, wide = largest_code(bits), largest_scale(bits)
    ends = [(most, wide, -128), (most, 0, 127), (most, 0, -128), (0, wide, -128), (0, wide, 127), (most, 120 // most, 7)]
    for (code, group_scale, group_offset), other in ((end, x) for end in ends for x in (-128, 127)):
        codes = torch.full((35, 1984), code, dtype=torch.uint8)
        scales, offsets = torch.full((35, 62), group_scale, dtype=torch.uint8), torch.full((35, 62), group_offset, dtype=torch.int8)
        layer = PackedProgressive(native, codes, scales, offsets, torch.ones(35), None, 0, bits)
        wanted = float(1984 * other * (code * group_scale + group_offset))
        for isa in native.available_isas():
            native.set_isa(isa)
            result = layer.from_codes(torch.full((rows, 1984), other, dtype=torch.int8), torch.ones(rows))
            assert torch.equal(result, torch.full((rows, 35), wanted)), (isa, code, group_scale, group_offset, other)


@pytest.mark.parametrize(("outputs", "inputs"), [(100, 576), (33, 700), (31, 65)])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_every_number_of_rows(native: NativeLibrary, outputs: int, inputs: int, bits: int) -> None:
    """1 to 70 rows and around the border of a panel: each way of cutting rows into blocks, on every path and several threads."""
    layer: PackedLinear | PackedProgressive = random_layer(native, outputs, inputs)
    if bits < 8:
        made = random_codes(outputs, inputs, 5, bits)
        layer = PackedProgressive(native, *made, torch.rand(outputs), torch.randn(outputs), 0, bits)
    x = torch.randint(-128, 128, (1030, inputs), dtype=torch.int8)
    row_scale, residual = torch.rand(1030), torch.randn(1030, outputs)
    native.set_isa("generic")
    wanted = layer.from_codes(x, row_scale, residual)
    for rows in (*range(1, 71), 511, 512, 513, 514, 517, 1024, 1025, 1030):
        first = 1030 - rows
        for isa in native.available_isas():
            native.set_isa(isa)
            native.set_threads(1 + rows % 3)
            result = layer.from_codes(x[first:].contiguous(), row_scale[first:].contiguous(), residual[first:].contiguous())
            assert torch.equal(result, wanted[first:]), (isa, rows)


def random_codes(outputs: int, inputs: int, seed: int, bits: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes with integer scales and offsets that use the whole of int8, and none beyond."""
    generator = np.random.default_rng(seed)
    groups = -(-inputs // GROUP_INPUTS)
    scales = generator.integers(0, largest_scale(bits) + 1, (outputs, groups))
    offsets = generator.integers(-128, 128 - largest_code(bits) * scales)
    codes = generator.integers(0, largest_code(bits) + 1, (outputs, inputs))
    arrays = codes.astype(np.uint8), scales.astype(np.uint8), offsets.astype(np.int8)
    return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), torch.from_numpy(arrays[2])


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("bits", [4, 3])
def test_weights_of_few_bits_have_the_bits_of_their_int8_weights(
    native: NativeLibrary, outputs: int, inputs: int, bits: int
) -> None:
    codes, scales, offsets = random_codes(outputs, inputs, outputs + inputs, bits)
    scale, bias = torch.rand(outputs) * 0.01, torch.randn(outputs)
    eight = PackedLinear(native, expand_progressive(codes, scales, offsets).to(torch.int8), scale, bias, 0)
    few = PackedProgressive(native, codes, scales, offsets, scale, bias, 0, bits)
    for rows in (*range(18), 32, 33, 64, 65, 130, 545):
        if rows > 130 and outputs * inputs < 100_000:
            continue
        x = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
        row_scale, residual = torch.rand(rows), torch.randn(rows, outputs)
        native.set_isa("generic" if rows < 9 else native.best_isa)
        wanted = eight.from_codes(x, row_scale, residual)
        for isa in native.available_isas():
            native.set_isa(isa)
            for threads in (1, 2):
                native.set_threads(threads)
                assert torch.equal(few.from_codes(x, row_scale, residual), wanted), (isa, rows)


@pytest.mark.parametrize("inputs", [1, 63, 64, 100, 1536])
@pytest.mark.parametrize("bits", [4, 3])
def test_rounding_to_few_bits(native: NativeLibrary, inputs: int, bits: int) -> None:
    torch.manual_seed(inputs)
    weight = torch.randn(37, inputs) * torch.logspace(-6, 3, 37)[:, None]
    weight[3] = 0
    weight[4, : inputs // 2] = 5e4  # most of an int8 range unused by the rest
    weight[5] = 7.0
    codes, scales, offsets, scale = round_progressive(native, weight, bits)
    PackedProgressive(native, codes, scales, offsets, scale, None, 0, bits)  # accepts them: every weight is an int8
    rebuilt = expand_progressive(codes, scales, offsets).float() * scale[:, None]
    assert torch.isfinite(rebuilt).all()
    error = (rebuilt - weight).norm(dim=1) / weight.norm(dim=1).clamp_min(1e-30)
    assert error[3] < 1
    assert error[5] < 1e-6
    groups = torch.nn.functional.pad(weight, (0, -inputs % GROUP_INPUTS), mode="constant", value=float("nan")).view(
        37, -1, GROUP_INPUTS
    )
    low = torch.nan_to_num(groups, nan=float("inf")).amin(-1, keepdim=True)
    high = torch.nan_to_num(groups, nan=float("-inf")).amax(-1, keepdim=True)
    step = ((high - low) / largest_code(bits)).clamp_min(1e-30)
    plain = (((groups - low) / step).round() * step + low - groups).nan_to_num(0.0).square().sum((1, 2)).sqrt()
    ours = (rebuilt - weight).norm(dim=1)
    keep = torch.tensor([i for i in range(37) if i not in (3, 4, 5)])
    if inputs >= 63:  # within 3 % of free float scales and offsets for each group, in the mean better
        assert (ours[keep] <= plain[keep] * 1.15).all()
        assert (ours[keep] / plain[keep]).mean() < 1.03


@pytest.mark.parametrize("bits", [4, 3])
def test_codes_out_of_range_are_refused(native: NativeLibrary, bits: int) -> None:
    codes, scales, offsets = random_codes(8, 64, 0, bits)
    most, wide = largest_code(bits), largest_scale(bits)
    for broken in (
        (torch.full_like(codes, most + 1), scales, offsets),
        (codes, torch.full_like(scales, wide + 1), offsets),
        (torch.full_like(codes, most), torch.full_like(scales, wide), torch.full_like(offsets, -124)),
    ):
        with pytest.raises(ValueError, match=f"codes of {bits} bits"):
            PackedProgressive(native, *broken, torch.ones(8), None, 0, bits)
    with pytest.raises(ValueError, match="contiguous"):
        PackedProgressive(native, codes, scales[:, :0], offsets, torch.ones(8), None, 0, bits)
    with pytest.raises(ValueError, match="inputs"):
        PackedProgressive(native, codes, scales, offsets, torch.ones(8), None, 0, 5)


@pytest.mark.parametrize(("outputs", "inputs", "block"), [(96, 576, 64), (50, 1536, 512), (33, 100, 4), (64, 2560, 512)])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_a_row_does_not_know_of_others(native: NativeLibrary, outputs: int, inputs: int, block: int, bits: int) -> None:
    layer: PackedLinear | PackedProgressive = random_layer(native, outputs, inputs, block=block)
    if bits < 8:
        made = random_codes(outputs, inputs, 0, bits)
        layer = PackedProgressive(native, *made, torch.rand(outputs), torch.randn(outputs), block, bits)
    rows = torch.randn(70, inputs)
    residual = torch.randn(70, outputs)
    weight = torch.rand(inputs) + 0.5
    gate_up = torch.randn(70, 2 * inputs) * 3
    native.set_threads(1)
    native.set_isa("generic")
    one = [layer.after_norm(rows[i : i + 1], weight, 1e-5, residual[i : i + 1]) for i in range(70)]
    two = [layer.after_gate(gate_up[i : i + 1], "silu", residual[i : i + 1]) for i in range(70)]
    normed, gated = torch.cat(one), torch.cat(two)
    generator = np.random.default_rng(0)
    for trial in range(60):
        native.set_isa(str(generator.choice(native.available_isas())))
        native.set_threads(int(generator.integers(1, 4)))
        count = int(generator.integers(1, 71)) if trial else 70
        pick = torch.from_numpy(generator.permutation(70)[:count])
        assert torch.equal(layer.after_norm(rows[pick], weight, 1e-5, residual[pick]), normed[pick]), (native.isa, count)
        assert torch.equal(layer.after_gate(gate_up[pick], "silu", residual[pick]), gated[pick]), (native.isa, count)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_whole_mlp_has_the_bits_of_its_halves(native: NativeLibrary, activation: Activation) -> None:
    gate_up, down = random_layer(native, 2 * 192, 96, block=32), random_layer(native, 96, 192, block=64, bias=False)
    mlp = PackedMlp(native, gate_up, down, activation)
    weight = torch.rand(96)
    for rows in (0, 1, 5, 40, 512, 513, 700):
        x, residual = torch.randn(rows, 96), torch.randn(rows, 96)
        for added in (None, residual):
            wanted = down.after_gate(gate_up.after_norm(x, weight, 1e-6), activation, added)
            assert torch.equal(mlp(x, weight, 1e-6, added), wanted)
    with pytest.raises(ValueError, match="down takes"):
        PackedMlp(native, down, gate_up, activation)


def test_prefill_sizes_give_the_bits_of_single_rows(native: NativeLibrary) -> None:
    native.set_threads(2)
    for inputs in (640, 2624):  # the second is worked in panels
        layer = random_layer(native, 200, inputs, block=64)
        rows = torch.randn(600, inputs)
        native.set_isa("generic")
        some = torch.arange(0, 600, 23)
        wanted = torch.cat([layer(rows[i : i + 1]) for i in some])
        for isa in native.available_isas():
            native.set_isa(isa)
            for count in (511, 512, 513, 545, 600):
                keep = some < count
                assert torch.equal(layer(rows[:count])[some[keep]], wanted[keep]), (isa, count)


def test_the_residual_may_be_a_view_of_nothing_else_and_wrong_shapes_are_refused(native: NativeLibrary) -> None:
    layer = random_layer(native, 32, 64)
    with pytest.raises(ValueError, match="contiguous"):
        layer(torch.randn(3, 65))
    with pytest.raises(ValueError, match="contiguous"):
        layer(torch.randn(64, 3).T)
    with pytest.raises(ValueError, match="contiguous"):
        layer(torch.randn(3, 64).double())
    with pytest.raises(ValueError, match="contiguous"):
        layer(torch.randn(3, 64), torch.randn(3, 33))
    with pytest.raises(ValueError, match="Hadamard"):
        random_layer(native, 32, 96, block=64)
    with pytest.raises(ValueError, match="from 0 to 31"):
        layer.rows(torch.tensor([32]))


def test_weight_rows_come_back(native: NativeLibrary) -> None:
    weight = torch.randint(-128, 128, (50, 100), dtype=torch.int8)
    scale = torch.rand(50)
    layer = PackedLinear(native, weight, scale, None, 4)
    picked = torch.tensor([49, 0, 17, 17])
    assert torch.equal(layer.rows(picked), weight[picked].float() * scale[picked, None])


def test_close_to_float_arithmetic(native: NativeLibrary) -> None:
    """Rows rounded to int8: error against float64 within the bound of rounding (half a step an input, steps of max / 127)."""
    weight = torch.randint(-127, 128, (40, 512), dtype=torch.int8)
    layer = PackedLinear(native, weight, torch.full((40,), 0.01), None, 0)
    x = torch.randn(9, 512)
    wanted = x.double() @ (weight.double() * 0.01).T
    bound = 0.5 * x.abs().amax(1, keepdim=True).double() / 127 * (weight.double() * 0.01).abs().sum(1)[None, :]
    assert ((layer(x).double() - wanted).abs() <= bound * 1.001).all()
    assert (layer(x).double() - wanted).abs().max() < 0.1 * bound.max()


def test_calls_from_several_threads_at_once(native: NativeLibrary) -> None:
    from concurrent.futures import ThreadPoolExecutor

    native.set_threads(2)
    native.set_isa(native.best_isa)
    layer = random_layer(native, 640, 640, block=128)
    rows = torch.randn(40, 640)
    wanted = layer(rows)
    with ThreadPoolExecutor(4) as workers:
        for result in workers.map(lambda _: layer(rows), range(200)):
            assert torch.equal(result, wanted)


def test_many_short_calls_with_more_threads_than_cores(native: NativeLibrary) -> None:
    """Workers join late, never or while another call begins; every unit of work is done exactly once all the same."""
    native.set_isa(native.best_isa)
    layer = random_layer(native, 2048, 256)
    codes, scale = torch.randint(-127, 128, (3, 256), dtype=torch.int8), torch.ones(3)
    native.set_threads(1)
    wanted = layer.from_codes(codes, scale)
    for threads in (2, 5, 3, 8):
        native.set_threads(threads)
        for _ in range(400):
            out = torch.full((3, 2048), float("nan"))
            assert torch.equal(layer.from_codes(codes, scale, None, out), wanted)


def test_status_and_forcing(native: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    report = status()
    assert report["available"] is True
    assert set(report) == {"available", "path", "threads", "best_isa", "isa"}
    with pytest.raises(ConfigError, match="must be one of"):
        native.set_isa("sse9")
    monkeypatch.setenv("HASTEN_NATIVE", "off")
    assert load() is None
    assert status()["available"] is False
    monkeypatch.setenv("HASTEN_NATIVE", "perhaps")
    with pytest.raises(ConfigError, match="HASTEN_NATIVE"):
        load()


def test_a_forked_child_computes(native: NativeLibrary) -> None:
    """Threads do not survive fork; the child must start its own."""
    import os

    native.set_threads(2)
    layer = random_layer(native, 640, 640)
    codes, scale = torch.randint(-127, 128, (4, 640), dtype=torch.int8), torch.ones(4)
    wanted = layer.from_codes(codes, scale)
    shared = torch.empty_like(wanted).share_memory_()
    child = os.fork()
    if child == 0:
        arguments = (layer._address, codes.data_ptr(), scale.data_ptr(), None, shared.data_ptr(), 4)
        os._exit(native.call["hst_linear"](*arguments))
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(shared, wanted)


def test_row_kernel_interface_refuses_bad_sizes(native: NativeLibrary) -> None:
    assert native.call["hst_rows"](None, None, ctypes.c_float(0.0), 0, 1, 96, 64, None, None, None) == 1
    assert native.call["hst_rows"](None, None, ctypes.c_float(0.0), 9, 1, 64, 64, None, None, None) == 1
    with pytest.raises(ValueError, match="refused"):
        RowKernels(native).rotate(torch.randn(2, 96), 64)
