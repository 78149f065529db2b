"""A head's largest outputs by way of its sketch: the very values of the whole head, and nothing else above them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import hasten.native.sketch
from hasten.core.types import SamplingParams
from hasten.model.hadamard import hadamard_block
from hasten.model.sketch import sketch_of
from hasten.native.grouped import GroupedLinear
from hasten.native.kernels import PackedLinear
from hasten.native.largest import largest
from hasten.native.loader import NativeLibrary
from hasten.native.sketch import LEAST_BLOCK, MOST_KEPT, SketchedHead
from hasten.sampling.choose import choose_row
from hasten.sampling.noise import noise_of
from test_native_grouped import blocks, make

Head = PackedLinear | GroupedLinear


def int8_head(native: NativeLibrary, outputs: int, inputs: int, repeated: int | None = None) -> PackedLinear:
    """Normal weights; of ``repeated`` distinct rows, again and again, where that is given."""
    weight = (torch.randn(repeated or outputs, inputs) * 30).round().clamp(-127, 127).to(torch.int8)
    scale = torch.rand(repeated or outputs) + 0.5
    pick = torch.arange(outputs) % weight.shape[0]
    return PackedLinear(native, weight[pick], scale[pick], None, hadamard_block(inputs))


def grouped_head(native: NativeLibrary, kind: str, outputs: int, inputs: int) -> GroupedLinear:
    return GroupedLinear(native, [make(native, kind, blocks(kind, outputs, inputs, seed=outputs), inputs)], None)


def check_leaders(found: torch.Tensor, whole: torch.Tensor, choosable: int, keep: torch.Tensor) -> None:
    """Each row's ``keep`` largest of the choosable outputs have the whole head's bits, and every other is below them all."""
    for row, kept in enumerate(keep.tolist()):
        order = whole[row, :choosable].argsort(descending=True, stable=True)
        leading, others = order[:kept], order[kept:]
        assert torch.equal(found[row, leading], whole[row, leading])
        assert (found[row, others] <= whole[row, leading[-1]]).all()
        assert found[row, :choosable].argmax() == whole[row, :choosable].argmax()


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 64), (33, 64), (1000, 192), (9001, 576), (20000, 128), (8200, 320)])
def test_leaders_have_the_bits_of_the_whole_head(native: NativeLibrary, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    head = int8_head(native, outputs, inputs)
    choosable = max(1, outputs - outputs // 7)
    sketched = SketchedHead(native, head, hadamard_block(inputs), choosable)
    norm = torch.rand(inputs) + 0.5
    for isa in native.available_isas():
        native.set_isa(isa)
        for rows in (0, 1, 2, 7, 14, 15, 33):
            native.set_threads(1 + rows % 3)
            x = torch.randn(rows, inputs)
            keep = torch.randint(1, min(MOST_KEPT, choosable) + 1, (rows,))
            check_leaders(sketched.leaders(x, keep, norm, 1e-6), head.after_norm(x, norm, 1e-6), choosable, keep)
            check_leaders(sketched.leaders(x, keep), head(x), choosable, keep)


@pytest.mark.parametrize(("kind", "inputs"), [("Q8_0", 192), ("Q6_K", 512), ("Q5_K", 256), ("Q4_0", 640)])
def test_leaders_of_a_files_codes_have_their_bits(native: NativeLibrary, kind: str, inputs: int) -> None:
    outputs = 5003
    head = grouped_head(native, kind, outputs, inputs)
    sketched = SketchedHead(native, head, hadamard_block(inputs), outputs)
    norm = torch.rand(inputs) + 0.5
    for isa in native.available_isas():
        native.set_isa(isa)
        for rows in (1, 3, 9, 33):
            x = torch.randn(rows, inputs)
            keep = torch.randint(1, MOST_KEPT + 1, (rows,))
            check_leaders(sketched.leaders(x, keep, norm, 1e-6), head.after_norm(x, norm, 1e-6), outputs, keep)


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_the_likeliest_are_those_of_what_is_returned(native: NativeLibrary, spread: float) -> None:
    """Whatever was computed exactly, and whichever blocks were looked into; of equal outputs the first."""
    torch.manual_seed(5)
    inputs, choosable = 192, 8900
    heads: list[Head] = [
        int8_head(native, 9001, inputs),
        grouped_head(native, "Q8_0", 9001, inputs),
        int8_head(native, 9001, inputs, 40),
    ]
    for head in heads:
        sketched = SketchedHead(native, head, hadamard_block(inputs), choosable)
        for isa in native.available_isas():
            native.set_isa(isa)
            for rows in (1, 3, 17, 32):
                x = torch.randn(rows, inputs) * spread
                keep = torch.ones(rows, dtype=torch.int64)
                for count in (1, 8, 16):
                    told = torch.empty(rows, count, dtype=torch.int64)
                    found = sketched.leaders(x, keep, likeliest=told)
                    assert told.tolist() == largest(native, found[:, :choosable], count)
                    assert torch.equal(found, sketched.leaders(x, keep))


def test_where_there_are_fewer_likeliest_than_asked_for(native: NativeLibrary) -> None:
    head = int8_head(native, 40, 64)
    sketched = SketchedHead(native, head, hadamard_block(64), 5)
    told = torch.empty(2, 8, dtype=torch.int64)
    found = sketched.leaders(torch.randn(2, 64), torch.ones(2, dtype=torch.int64), likeliest=told)
    assert told[:, 5:].tolist() == [[-1] * 3] * 2
    assert told[:, :5].tolist() == largest(native, found[:, :5], 5)
    with pytest.raises(ValueError, match="refused"):
        sketched.leaders(torch.randn(1, 64), torch.ones(1, dtype=torch.int64), likeliest=torch.empty(1, 65, dtype=torch.int64))


def without_a_margin(native: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> tuple[Head, SketchedHead, torch.Tensor]:
    """A head, a sketch of it that is trusted too far, and 200 rows."""
    monkeypatch.setattr(hasten.native.sketch, "DEVIATIONS", 0.2)
    torch.manual_seed(5)
    head = int8_head(native, 30000, 256)
    return head, SketchedHead(native, head, 256, 30000), torch.randn(200, 256)


def check_draws(found: torch.Tensor, whole: torch.Tensor, choosable: int, draws: list[tuple[float, int, int]]) -> None:
    """The same token comes of it, with its value, and no other has a better score than with the whole head."""
    for row, (temperature, seed, position) in enumerate(draws):
        if not temperature:
            continue
        params = SamplingParams(temperature=temperature)
        chosen, wanted = (choose_row(values[row], params, seed, position, vocabulary_size=choosable) for values in (found, whole))
        assert chosen == wanted
        assert found[row, wanted] == whole[row, wanted]
        assert found[row, :choosable].max() == whole[row, :choosable].max()
        noise = torch.from_numpy(noise_of(seed, position, np.arange(choosable)))
        score = found[row, :choosable].double() / temperature + noise
        assert score.argmax() == wanted


@pytest.mark.parametrize(
    ("outputs", "inputs", "kind"), [(1, 64, ""), (33, 64, ""), (9001, 576, ""), (20000, 128, ""), (30011, 256, "Q6_K")]
)
def test_what_is_drawn_by_chance_has_the_bits_of_the_whole_head(
    native: NativeLibrary, outputs: int, inputs: int, kind: str
) -> None:
    torch.manual_seed(outputs)
    random.seed(outputs)
    head: Head = grouped_head(native, kind, outputs, inputs) if kind else int8_head(native, outputs, inputs)
    choosable = max(1, outputs - outputs // 7)
    sketched = SketchedHead(native, head, hadamard_block(inputs), choosable)
    for isa in native.available_isas():
        native.set_isa(isa)
        for rows in (1, 2, 9, 33):
            native.set_threads(1 + rows % 3)
            x = torch.randn(rows, inputs)
            spread = float(head(x).std(correction=0)) or 1.0
            x /= spread  # so that a temperature of 1 is neither greedy nor uniform
            # From nearly greedy to nearly uniform, seeds beyond 63 bits and below zero; some rows draw nothing.
            draws = [
                (0.0 if row % 5 == 4 else 10 ** random.uniform(-2, 1), random.randrange(-(2**63), 2**64), random.randrange(10**6))
                for row in range(rows)
            ]
            keep = torch.randint(1, min(9, choosable) + 1, (rows,))
            found, whole = sketched.leaders(x, keep, draws=draws), head(x)
            check_draws(found, whole, choosable, draws)
            check_leaders(found, whole, choosable, keep)


def test_a_small_margin_loses_what_is_drawn(native: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    head, sketched, x = without_a_margin(native, monkeypatch)
    x /= head(x).std()
    whole, draws = head(x), [(0.2, row, 7) for row in range(200)]
    keep = torch.ones(1, dtype=torch.int64)  # row by row: together they would want so much that all is computed
    found = torch.cat([sketched.leaders(x[row : row + 1], keep, draws=draws[row : row + 1]) for row in range(200)])
    with pytest.raises(AssertionError):
        check_draws(found, whole, 30000, draws)


def test_outputs_that_are_equal_lead_together(native: NativeLibrary) -> None:
    """Eight hundred copies of seven rows of weights: the lowest of the copies is what is chosen."""
    torch.manual_seed(1)
    head = int8_head(native, 5600, 192, repeated=7)
    sketched = SketchedHead(native, head, 64, 5600)
    x = torch.randn(6, 192)
    found, whole = sketched.leaders(x, torch.ones(6, dtype=torch.int64)), head(x)
    for row in range(6):
        assert found[row].numpy().argmax() == whole[row].numpy().argmax() < 7


def test_rows_of_zeros_and_of_nan_are_those_of_the_whole_head(native: NativeLibrary) -> None:
    head = int8_head(native, 5000, 128)
    sketched = SketchedHead(native, head, 128, 5000)
    x = torch.randn(3, 128)
    x[0], x[2, 5] = 0.0, float("nan")
    draws = [(1.0, 5, 6)] * 3
    found, whole = sketched.leaders(x, torch.ones(3, dtype=torch.int64), draws=draws), head(x)
    check_draws(found, whole, 5000, draws[:2])
    assert torch.equal(found[0], whole[0])
    assert found[1].max() == whole[1].max()
    assert not found[2].isfinite().any()
    assert not whole[2].isfinite().any()


def test_rows_without_a_leader_take_the_whole_head(native: NativeLibrary) -> None:
    """Outputs that differ by less than four bits can tell: everything may be the largest, and everything is exact."""
    torch.manual_seed(6)
    base = torch.randint(-90, 91, (1, 128))
    weight = (base + torch.randint(-1, 2, (40000, 128))).to(torch.int8)
    int8 = PackedLinear(native, weight, torch.ones(40000), None, 128)
    raw = torch.cat([torch.tensor([0.25], dtype=torch.float16).view(torch.int8).expand(40000, 4, 2), weight.view(-1, 4, 32)], 2)
    grouped = GroupedLinear(native, [make(native, "Q8_0", raw.reshape(40000, -1).view(torch.uint8), 128)], None)
    for head in (int8, grouped):
        sketched = SketchedHead(native, head, 128, 40000)
        for rows in (1, 3):
            x = torch.randn(rows, 128)
            found = sketched.leaders(x, torch.ones(rows, dtype=torch.int64))
            assert torch.equal(found, head(x))
            assert not torch.equal(found, sketched.rough(x))


def test_padding_of_a_vocabulary_leads_nobody(native: NativeLibrary) -> None:
    """Outputs behind the choosable ones that are larger than all of these."""
    torch.manual_seed(2)
    weight = (torch.randn(6000, 256) * 30).round().clamp(-127, 127).to(torch.int8)
    scale = torch.ones(6000)
    scale[5000:] = 50.0
    head = PackedLinear(native, weight, scale, None, 256)
    sketched = SketchedHead(native, head, 256, 5000)
    x, keep = torch.randn(5, 256), torch.full((5,), 3)
    check_leaders(sketched.leaders(x, keep), head(x), 5000, keep)


def test_a_rows_leaders_do_not_depend_on_other_rows(native: NativeLibrary) -> None:
    torch.manual_seed(3)
    for head in (int8_head(native, 7000, 320), grouped_head(native, "Q8_0", 7000, 320)):
        sketched = SketchedHead(native, head, 64, 7000)
        x, keep = torch.randn(9, 320), torch.full((9,), 8)
        together = sketched.leaders(x, keep).topk(8)
        alone = [sketched.leaders(x[row : row + 1], keep[:1]).topk(8) for row in range(9)]
        assert torch.equal(together.values, torch.cat([one.values for one in alone]))
        assert torch.equal(together.indices, torch.cat([one.indices for one in alone]))


@pytest.mark.parametrize("kind", ["int8", "Q8_0", "Q6_K"])
def test_rough_values_are_off_as_foretold(native: NativeLibrary, kind: str) -> None:
    torch.manual_seed(4)
    inputs = 768
    head = int8_head(native, 12000, inputs) if kind == "int8" else grouped_head(native, kind, 12000, inputs)
    sketched = SketchedHead(native, head, hadamard_block(inputs), 12000)
    x = torch.randn(200, inputs)
    deviation = sketched._error / hasten.native.sketch.DEVIATIONS * x.norm(dim=1, keepdim=True)
    off = (sketched.rough(x) - head(x)) / deviation
    assert 0.6 < off.std() < 1.01  # codes of random blocks are of very different sizes
    assert off.abs().max() < 6.0  # of 2.4 million normal values some reach 5
    assert off.mean().abs() < 0.02


def test_rough_values_are_off_as_foretold_where_weights_and_rows_have_the_same_outliers(native: NativeLibrary) -> None:
    """One block of the rotation holds ten times larger weights and most of every row."""
    torch.manual_seed(7)
    weight, x = torch.randn(9000, 576) * 8, torch.randn(200, 576)
    weight[:, 128:192] *= 10
    x[:, 128:192] *= 10
    scale = weight.abs().amax(1) / 127
    head = PackedLinear(native, (weight / scale[:, None]).round().to(torch.int8), scale, None, 64)
    sketched = SketchedHead(native, head, 64, 9000)
    deviation = sketched._error / hasten.native.sketch.DEVIATIONS * x.norm(dim=1, keepdim=True)
    off = (sketched.rough(x) - head(x)) / deviation
    assert off.std() < 1.01
    assert off.abs().max() < 6.0
    keep = torch.full((200,), 20)
    check_leaders(sketched.leaders(x, keep), head(x), 9000, keep)


def test_without_a_margin_leaders_are_missed(native: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests show is owed to the margin."""
    head, sketched, x = without_a_margin(native, monkeypatch)
    assert (sketched.leaders(x, torch.ones(200, dtype=torch.int64)).argmax(1) != head(x).argmax(1)).any()


@pytest.mark.parametrize(("outputs", "inputs"), [(33, 64), (1000, 192), (513, 576)])
def test_every_level_makes_the_same_sketch(native: NativeLibrary, outputs: int, inputs: int) -> None:
    torch.manual_seed(inputs)
    head = int8_head(native, outputs, inputs)
    made = []
    for isa in native.available_isas():
        native.set_isa(isa)
        sketched = SketchedHead(native, head, LEAST_BLOCK, outputs)
        made.append((sketched.rough._packed, sketched._error))
    for packed, error in made[1:]:
        assert torch.equal(packed, made[0][0])
        assert torch.equal(error, made[0][1])


def test_what_cannot_be_is_refused(native: NativeLibrary) -> None:
    head = int8_head(native, 1000, 128)
    sketched = SketchedHead(native, head, 128, 900)
    x = torch.randn(2, 128)
    for keep in ([0, 1], [1, MOST_KEPT + 1], [-1, 1]):
        with pytest.raises(ValueError, match="refused"):
            sketched.leaders(x, torch.tensor(keep))
    with pytest.raises(ValueError, match="int64"):
        sketched.leaders(x, torch.ones(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="blocks of 32"):
        SketchedHead(native, int8_head(native, 1000, 96), 32, 1000)
    parts = [make(native, "Q8_0", blocks("Q8_0", 64, 128), 128) for _ in range(2)]
    with pytest.raises(ValueError, match="several parts"):
        SketchedHead(native, GroupedLinear(native, parts, None), 128, 128)
    biased = PackedLinear(native, torch.ones(1000, 128, dtype=torch.int8), torch.ones(1000), torch.ones(1000), 128)
    with pytest.raises(ValueError, match="refused"):
        SketchedHead(native, biased, 128, 1000).leaders(x, torch.ones(2, dtype=torch.int64))


def test_heads_that_are_not_worth_it_have_no_sketch(native: NativeLibrary) -> None:
    native.set_isa(native.best_isa)
    assert sketch_of(int8_head(native, 1000, 256), 1000) is None  # small
    assert sketch_of(grouped_head(native, "Q4_0", 40000, 256), 40000) is None  # four bits already
    made = sketch_of(grouped_head(native, "Q8_0", 40000, 256), 39990)
    assert made is not None
    assert made.bytes < 0.55 * grouped_head(native, "Q8_0", 40000, 256).bytes
    assert made.pays(torch.ones(2, dtype=torch.int64))
    assert not made.pays(torch.ones(100, dtype=torch.int64))
    assert sketch_of(int8_head(native, 200_000, 96), 200_000) is None  # rotated in blocks of 32 only
    wide = sketch_of(int8_head(native, 5000, 1536), 5000)
    assert wide is not None
    assert wide.pays(torch.tensor([20, 1]))
    assert not wide.pays(torch.tensor([MOST_KEPT + 1]))
