"""Linear layers over GGUF's own codes: no second rounding, one bit pattern on every path, and no row knows of another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from hasten.model.loaders.dequantise import dequantise
from hasten.native.grouped import KINDS, GroupedLinear, GroupedMatrix
from hasten.native.loader import NativeLibrary

MINIMUMS = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
SUPER_BLOCKS = ("Q4_K", "Q5_K", "Q6_K")
U = 2.0**-24  # unit roundoff of float32


def blocks(kind: str, outputs: int, inputs: int, seed: int = 0, byte: int | None = None) -> torch.Tensor:
    """Rows of a format with random codes (or all bytes ``byte``) and finite random scales."""
    _, length, size = KINDS[kind]
    generator = np.random.default_rng(seed)
    shape = (outputs, inputs // length, size)
    raw = generator.integers(0, 256, shape, dtype=np.uint8) if byte is None else np.full(shape, byte, np.uint8)
    scales = (generator.standard_normal((*shape[:2], 2)) * 0.02).astype(np.float16).view(np.uint8)
    if kind == "Q6_K":
        raw[..., -2:] = scales[..., :2]
    else:
        raw[..., :2] = scales[..., :2]
    if kind in MINIMUMS:
        raw[..., 2:4] = scales[..., 2:]
    return torch.from_numpy(raw.reshape(outputs, -1))


def floats(kind: str, raw: torch.Tensor, inputs: int) -> torch.Tensor:
    out = torch.empty(raw.shape[0], inputs)
    dequantise(raw, GGMLQuantizationType[kind], out)
    return out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_a_row_that_is_not_finite_gives_nothing_that_is(native: NativeLibrary, kind: str, value: float) -> None:
    x = torch.randn(3, 512)
    x[1, 300] = value
    layer = GroupedLinear(native, [make(native, kind, blocks(kind, 48, 512), 512)], None)
    for isa in native.available_isas():
        native.set_isa(isa)
        assert layer(x).isfinite().all(dim=1).tolist() == [True, False, True]
        assert not layer(x)[1].isfinite().any()


def make(native: NativeLibrary, kind: str, raw: torch.Tensor, inputs: int) -> GroupedMatrix:
    matrix = GroupedMatrix(native, kind, raw.shape[0], inputs)
    matrix.fill(raw)
    return matrix


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as the kernels round them: integers and a scale for every 32 inputs, by the same float32 operations."""
    groups = x.reshape(x.shape[0], -1, 32)
    limit = groups.abs().amax(-1, keepdim=True).clamp(2.0**-119, torch.finfo(torch.float32).max)
    factor = torch.full_like(limit, 127.0) / limit  # a number divided by a tensor would be its reciprocal times the number
    return (groups * factor).clamp(-127, 127).round(), limit / 127.0


def reference(kind: str, raw: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64, products of the rounded rows with the file's weights, and a bound of what float32 may differ by: the size of all
    terms with codes and minimums apart (they may cancel) times a few roundings a group."""
    weight = floats(kind, raw, x.shape[1]).double()
    codes, scale = rounded(x)
    exact = (codes.double() * scale.double()).reshape(x.shape)
    zeros = floats(kind, without_codes(kind, raw), x.shape[1]).double()
    size = exact.abs() @ ((weight - zeros).abs() + zeros.abs()).T
    return exact @ weight.T, size * U * (x.shape[1] / 32 * 2 + 16)


def without_codes(kind: str, raw: torch.Tensor) -> torch.Tensor:
    """The same blocks with every code 0, so that what is left of a weight is its minimum."""
    _, _, size = KINDS[kind]
    header = {"Q4_0": 2, "Q4_1": 4, "Q5_0": 2, "Q5_1": 4, "Q8_0": 2, "Q4_K": 16, "Q5_K": 16, "Q6_K": 0}[kind]
    out = raw.clone().view(raw.shape[0], -1, size)
    out[..., header : 192 if kind == "Q6_K" else size] = 0
    return out.view(raw.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_as_the_loaders_read_them(native: NativeLibrary, kind: str) -> None:
    for outputs, inputs in ((1, 256), (7, 512), (8, 256), (19, 1280), (64, 768)):
        raw = blocks(kind, outputs, inputs, seed=outputs)
        matrix = make(native, kind, raw, inputs)
        picked = torch.from_numpy(np.random.default_rng(1).integers(0, outputs, 33))
        assert torch.equal(matrix.rows(picked), floats(kind, raw, inputs)[picked])
        again = matrix.pick(picked)
        assert torch.equal(again.rows(torch.arange(33)), floats(kind, raw, inputs)[picked])
        strips = (outputs + 15) // 16
        assert matrix.packed.numel() <= strips * (16 * raw.shape[1] + 63), "a packed matrix is no larger than its file"
        with pytest.raises(ValueError, match="rows must be"):
            matrix.rows(torch.tensor([outputs]))


@pytest.mark.parametrize("kind", KINDS)
def test_close_to_float64_on_every_path(native: NativeLibrary, kind: str) -> None:
    torch.manual_seed(0)
    sizes = [256, 512, 1536, 8960] if kind in SUPER_BLOCKS else [32, 96, 576, 1536, 8960]
    for inputs in sizes:
        outputs = 37
        raw = blocks(kind, outputs, inputs, seed=inputs)
        layer = GroupedLinear(native, [make(native, kind, raw, inputs)], None)
        x = torch.randn(21, inputs) * torch.logspace(-3, 3, 21)[:, None]
        wanted, bound = reference(kind, raw, x)
        for isa in native.available_isas():
            native.set_isa(isa)
            difference = (layer(x).double() - wanted).abs()
            assert (difference <= bound).all(), (isa, inputs, float((difference / bound).max()))
        plain = x.double() @ floats(kind, raw, inputs).double().T
        assert (layer(x).double() - plain).norm() < 0.02 * plain.norm(), "rounding rows to int8 in groups of 32"


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_in_company_at_every_level_and_thread_count(native: NativeLibrary, kind: str) -> None:
    generator = np.random.default_rng(len(kind))
    for outputs, inputs in ((5, 256), (8, 2304), (50, 768), (123, 512)):
        bias = torch.randn(outputs)
        layer = GroupedLinear(native, [make(native, kind, blocks(kind, outputs, inputs, seed=3), inputs)], bias)
        rows, residual = torch.randn(140, inputs), torch.randn(140, outputs)
        weight, gate_up = torch.rand(inputs) + 0.5, torch.randn(140, 2 * inputs) * 3
        native.set_threads(1)
        native.set_isa("generic")
        one = [layer.after_norm(rows[i : i + 1], weight, 1e-5, residual[i : i + 1]) for i in range(140)]
        two = [layer.after_gate(gate_up[i : i + 1], "silu", residual[i : i + 1]) for i in range(140)]
        normed, gated = torch.cat(one), torch.cat(two)
        for trial in range(24):
            native.set_isa(str(generator.choice(native.available_isas())))
            native.set_threads(int(generator.integers(1, 4)))
            count = (140, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 63, 64, 65, 66, 67)[trial % 17]
            pick = torch.from_numpy(generator.permutation(140)[:count])
            assert torch.equal(layer.after_norm(rows[pick], weight, 1e-5, residual[pick]), normed[pick]), (native.isa, count)
            assert torch.equal(layer.after_gate(gate_up[pick], "silu", residual[pick]), gated[pick]), (native.isa, count)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_through_the_kernels_gives_the_portable_bits(native: NativeLibrary, kind: str) -> None:
    """Rows pass over one strip, or in tiles over two whose codes are unpacked in passing or before: rows, inputs and format decide.
    Twenty outputs leave a strip alone, and flat formats a tail of fewer groups than are taken together."""
    for most in (512, 8448):
        inputs = most + KINDS[kind][1]
        layer = GroupedLinear(native, [make(native, kind, blocks(kind, 20, inputs, seed=most), inputs)], None)
        x = torch.randn(24, inputs)
        native.set_isa("generic")
        wanted = layer(x)
        for isa in native.available_isas():
            native.set_isa(isa)
            for count in range(1, 25):
                assert torch.equal(layer(x[:count]), wanted[:count]), (isa, inputs, count)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_codes_do_not_saturate(native: NativeLibrary, kind: str) -> None:
    """All codes and integer scales at their ends, rows at +-127: 16-bit sums must hold."""
    inputs = 512
    for byte in (0, 0x7F, 0x80, 0xFF):
        raw = blocks(kind, 9, inputs, seed=byte, byte=byte)
        layer = GroupedLinear(native, [make(native, kind, raw, inputs)], None)
        for pattern in (torch.ones(inputs), -torch.ones(inputs), torch.tensor([1.0, -1.0] * (inputs // 2))):
            x = torch.stack([pattern] * 9)
            wanted, bound = reference(kind, raw, x)
            for isa in native.available_isas():
                native.set_isa(isa)
                for count in range(1, 10):
                    assert ((layer(x[:count]).double() - wanted[:count]).abs() <= bound[:count]).all(), (isa, byte, count)


def test_parts_of_several_formats_are_one_layer(native: NativeLibrary) -> None:
    inputs = 512
    kinds = {"Q4_K": 40, "Q6_K": 9, "Q5_0": 16, "Q8_0": 3}
    raws = [blocks(kind, outputs, inputs, seed=outputs) for kind, outputs in kinds.items()]
    matrices = [make(native, kind, raw, inputs) for kind, raw in zip(kinds, raws, strict=True)]
    bias = torch.randn(68)
    layer = GroupedLinear(native, matrices, bias)
    for rows in (0, 1, 2, 3, 11, 70):
        x, residual = torch.randn(rows, inputs), torch.randn(rows, 68)
        for isa in native.available_isas():
            native.set_isa(isa)
            alone = torch.cat([GroupedLinear(native, [matrix], None)(x) for matrix in matrices], dim=1)
            assert torch.equal(layer(x, residual), (alone + bias) + residual)
            assert torch.equal(layer(x), alone + bias)


def test_picked_outputs_have_the_bits_of_the_whole(native: NativeLibrary) -> None:
    for kind in KINDS:
        matrix = make(native, kind, blocks(kind, 90, 256), 256)
        picked = torch.tensor([89, 0, 17, 17, 40])
        x = torch.randn(4, 256)
        assert torch.equal(
            GroupedLinear(native, [matrix.pick(picked)], None)(x), GroupedLinear(native, [matrix], None)(x)[:, picked]
        )


def test_rows_of_zeros_and_of_extreme_size(native: NativeLibrary) -> None:
    layer = GroupedLinear(native, [make(native, "Q4_K", blocks("Q4_K", 16, 256), 256)], None)
    x = torch.stack([torch.zeros(256), torch.full((256,), 1e-38), torch.full((256,), 1e30)])
    results = []
    for isa in native.available_isas():
        native.set_isa(isa)
        results.append(layer(x))
        assert torch.equal(results[-1], results[0])
    assert (results[0][0] == 0).all()
    assert torch.isfinite(results[0]).all()


def test_wrong_sizes_are_refused(native: NativeLibrary) -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        GroupedMatrix(native, "Q4_K", 8, 32)
    matrix = GroupedMatrix(native, "Q4_0", 20, 64)
    with pytest.raises(ValueError, match="whole strips"):
        matrix.fill(torch.zeros(5, 36, dtype=torch.uint8))
    with pytest.raises(ValueError, match="whole strips"):
        matrix.fill(torch.zeros(16, 36, dtype=torch.uint8), 16)
    with pytest.raises(ValueError, match="contiguous"):
        matrix.fill(torch.zeros(16, 35, dtype=torch.uint8))
    matrix.fill(torch.zeros(20, 36, dtype=torch.uint8))
    with pytest.raises(ValueError, match="same inputs"):
        GroupedLinear(native, [matrix, GroupedMatrix(native, "Q4_0", 8, 32)], None)
    with pytest.raises(ValueError, match="contiguous"):
        GroupedLinear(native, [matrix], None)(torch.zeros(2, 63))
