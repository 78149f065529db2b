"""Attention over int8 pools: against float64, and one bit pattern per (query, keys by position), however the call is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from hasten.cache.pool import Int8Pool, bytes_per_block
from hasten.native.attention8 import KeyBias, PagedAttention8, largest_pairs
from hasten.native.loader import NativeLibrary

POSITIONS = 1024


@dataclass(frozen=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    dim: int = 64
    softcap: float = 0.0
    window: int = 0
    pairs: int = 0  # of the bias that are kept out; the bias is large where there are any

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim

    def bias(self) -> torch.Tensor:
        generator = np.random.default_rng(5)
        bias = generator.standard_normal((self.kv_heads, self.dim)) * (generator.random((self.kv_heads, self.dim)) < 0.12)
        return torch.from_numpy(bias * 40.0 if self.pairs else bias * 0.0).float()


SHAPES = [
    Shape(),
    Shape(9, 3, 64, pairs=8),
    Shape(4, 1, 256, window=40),
    Shape(2, 2, 192, window=100, softcap=20.0, pairs=96),
    Shape(12, 2, 128, pairs=64),
    Shape(20, 1, 128, softcap=5.0, window=1),
]


@lru_cache(maxsize=8)
def angles(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    turns = torch.arange(POSITIONS).double()[None, :] * (1e4 ** -(torch.arange(0, dim, 2).double() / dim))[:, None]
    return turns.cos(), turns.sin()


@dataclass(frozen=True)
class Row:
    seed: int
    position: int

    def qkv(self, shape: Shape) -> torch.Tensor:
        return made(self.seed, self.position, shape)


@lru_cache(maxsize=20000)
def made(seed: int, position: int, shape: Shape) -> torch.Tensor:
    generator = np.random.default_rng((seed, position))
    flat = torch.from_numpy(generator.standard_normal(shape.width, dtype=np.float32))
    flat[: shape.heads * shape.dim] *= 1.7
    flat[shape.heads * shape.dim :][: shape.kv_heads * shape.dim] += shape.bias().view(-1)
    return flat


@dataclass
class Piece:
    """One segment: context, chain, and nodes as (parent, row); parent -1 is the chain's end."""

    context: list[Row]
    chain: list[Row]
    nodes: list[tuple[int, Row]] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [*self.chain, *(row for _, row in self.nodes)]

    def paths(self) -> list[list[int]]:
        base = len(self.context) + len(self.chain)
        out: list[list[int]] = []
        for node, (parent, _) in enumerate(self.nodes):
            out.append([*([] if parent < 0 else out[parent]), base + node])
        return out


def text(seed: int, length: int, start: int = 0) -> list[Row]:
    return [Row(seed, start + i) for i in range(length)]


def broken_pool(shape: Shape, blocks: int) -> Int8Pool:
    """Unwritten slots hold any codes and scales that are not numbers: nothing of them may show."""
    pool = Int8Pool(1, shape.kv_heads, shape.dim, blocks)
    keys, values, *scales = pool.tensors
    keys.random_(-128, 128)
    values.random_(-128, 128)
    for scale in scales:
        scale.fill_(float("nan"))
    return pool


def step(attention: PagedAttention8, shape: Shape, pieces: list[Piece], tables: list[list[int]]) -> torch.Tensor:
    """Run the pieces' rows on tables that hold their contexts already."""
    rows: list[Row] = []
    slots: list[int] = []
    depths: list[int] = []
    paths: list[list[int]] = []
    for piece, table in zip(pieces, tables, strict=True):
        first, own = len(piece.context), piece.paths()
        rows += piece.rows
        slots += [table[index // 64] * 64 + index % 64 for index in range(first, first + len(piece.rows))]
        depths += [0] * len(piece.chain) + [len(path) for path in own]
        paths += [[]] * len(piece.chain) + own
    widest, deepest = max(map(len, tables)), max(1, *map(len, paths))

    def ints(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    attention.begin(
        ints([0, *np.cumsum([len(p.rows) for p in pieces]).tolist()]),
        ints([len(p.context) for p in pieces]),
        ints([len(p.chain) for p in pieces]),
        ints([table + [0] * (widest - len(table)) for table in tables]),
        ints(depths),
        ints([path + [0] * (deepest - len(path)) for path in paths]),
        torch.tensor(slots),
    )
    positions = [row.position for row in rows]
    cosine, sine = (each.float().T[positions].contiguous() for each in angles(shape.dim))
    return attention(0, torch.stack([row.qkv(shape) for row in rows]), None, None, cosine, sine, shape.window)


def run(native: NativeLibrary, shape: Shape, pieces: list[Piece], seed: int = 0) -> torch.Tensor:
    """Write the contexts as one step, then run the pieces, in a pool whose blocks are handed out at random."""
    generator = np.random.default_rng(seed)
    needs = [-(-(len(p.context) + len(p.rows)) // 64) for p in pieces]
    order = generator.permutation(sum(needs) + 2).tolist()
    tables = [[order.pop() for _ in range(need)] for need in needs]
    biases = [largest_pairs(shape.bias(), shape.pairs)] if shape.pairs else None
    cosine, sine = angles(shape.dim)
    table = (cosine.float().contiguous(), sine.float().contiguous()) if shape.pairs else None
    pool = broken_pool(shape, sum(needs) + 2)
    attention = PagedAttention8(native, pool.tensors, shape.heads, shape.dim**-0.5, shape.softcap, 1e-6, biases, table)
    written = [(Piece([], p.context), table) for p, table in zip(pieces, tables, strict=True) if p.context]
    if written:
        step(attention, shape, [piece for piece, _ in written], [table for _, table in written])
    return step(attention, shape, pieces, tables)


def exact(shape: Shape, history: list[Row]) -> torch.Tensor:
    """float64 attention of the last row of ``history`` over all of it, with nothing rounded."""
    if shape.window:
        history = history[-shape.window :]
    sizes = [shape.heads * shape.dim, shape.kv_heads * shape.dim, shape.kv_heads * shape.dim]
    q, k, v = torch.split(torch.stack([row.qkv(shape) for row in history]).double(), sizes, dim=1)
    cosine, sine = (each.T[[row.position for row in history], None, :] for each in angles(shape.dim))

    def turned(x: torch.Tensor) -> torch.Tensor:
        a, b = x.view(len(history), -1, 2, shape.dim // 2).unbind(2)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)

    group = shape.heads // shape.kv_heads
    keys = turned(k).repeat_interleave(group, 1)
    scores = torch.einsum("hd,khd->hk", turned(q)[-1], keys) * shape.dim**-0.5
    if shape.softcap:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    values = v.view(len(history), shape.kv_heads, shape.dim).repeat_interleave(group, 1)
    return torch.einsum("hk,khd->hd", scores.softmax(-1), values).reshape(-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_close_to_float64(native: NativeLibrary, shape: Shape) -> None:
    """Rows differ from exact attention by what rounding to int8 costs: less than 3 % of a row's length on these texts,
    8 % where most of a large bias is left in the keys."""
    bound = 0.08 if 0 < shape.pairs < shape.dim // 2 else 0.03
    tokens = text(1, 650)
    nodes = [(-1, Row(1, 650)), (-1, Row(2, 650)), (0, Row(1, 651)), (1, Row(3, 651)), (2, Row(4, 652))]
    piece = Piece(tokens[:600], tokens[600:], nodes)
    native.set_isa(native.best_isa)
    out = run(native, shape, [piece]).double()
    for index in (0, 13, 49):
        wanted = exact(shape, tokens[: 601 + index])
        assert (out[index] - wanted).norm() < bound * wanted.norm()
    for node, path in enumerate(piece.paths()):
        wanted = exact(shape, [*tokens, *(nodes[i - 650][1] for i in path)])
        assert (out[50 + node] - wanted).norm() < bound * wanted.norm()


def test_a_large_bias_costs_nothing_when_it_is_kept_out(native: NativeLibrary) -> None:
    errors = {}
    tokens = text(3, 300)
    for pairs in (1, 3, 32):
        shape = Shape(4, 2, 64, pairs=pairs)
        wanted = exact(shape, tokens)
        errors[pairs] = float((run(native, shape, [Piece(tokens[:299], tokens[299:])])[0].double() - wanted).norm() / wanted.norm())
    assert errors[32] < 0.02
    assert errors[32] < errors[3] < errors[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_levels_agree_bit_for_bit(native: NativeLibrary, shape: Shape) -> None:
    """All of them where keys have no bias; those with fused multiply-add where they have."""
    pieces = [Piece(text(5, 700), text(5, 3, 700), [(-1, Row(6, 703)), (0, Row(6, 704))]), Piece([], text(7, 130))]
    results = []
    for isa in native.available_isas()[1 if shape.pairs else 0 :]:
        for threads in (1, 3):
            native.set_isa(isa)
            native.set_threads(threads)
            results.append(run(native, shape, pieces))
    assert torch.isfinite(results[0]).all()
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_batches_and_trees_give_the_bits_of_plain_decoding(native: NativeLibrary, shape: Shape) -> None:
    native.set_isa(native.best_isa)
    generator = np.random.default_rng(sum(map(ord, str(shape))))
    tokens = text(11, 600)
    checked = sorted({0, 1, 63, 64, 65, 511, 512, 513, 599, *generator.integers(0, 600, 6).tolist()})
    native.set_threads(1)
    plain = {at: run(native, shape, [Piece(tokens[:at], [tokens[at]])], seed=at)[0] for at in checked}
    for trial in range(5):
        native.set_threads(int(generator.integers(1, 4)))
        cuts = sorted({0, 600, *generator.integers(1, 600, trial).tolist()})
        for begin, end in pairwise(cuts):
            others = [Piece(text(100 + i, int(generator.integers(0, 90))), text(200 + i, 2, 900)) for i in range(trial % 3)]
            out = run(native, shape, [*others, Piece(tokens[:begin], tokens[begin:end])], seed=trial)
            first = sum(len(piece.rows) for piece in others)
            for at in checked:
                if begin <= at < end:
                    assert torch.equal(out[first + at - begin], plain[at]), (at, begin, end)
    for trial in range(14):
        native.set_threads(int(generator.integers(1, 4)))
        check_tree(native, shape, tokens, plain, generator, trial)


def check_tree(
    native: NativeLibrary,
    shape: Shape,
    tokens: list[Row],
    plain: dict[int, torch.Tensor],
    generator: np.random.Generator,
    trial: int,
) -> None:
    """Hide a run of the text among random siblings; its nodes must have the bits of plain decoding."""
    low, high = [(40, 60), (495, 511), (560, 590), (0, 3)][trial % 4]
    root = int(generator.integers(low, high))
    chain = int(generator.integers(1, min(root + 1, 6) + 1))
    context = root + 1 - chain
    nodes: list[tuple[int, Row]] = []
    at_depth, true_node = root, -1
    depth_of: list[int] = []
    for _ in range(int(generator.integers(1, 130))):
        if generator.random() < 0.4 and at_depth < 599:
            at_depth += 1
            nodes.append((true_node, tokens[at_depth]))
            depth_of.append(1 if true_node < 0 else depth_of[true_node] + 1)
            true_node = len(nodes) - 1
            continue
        parent = int(generator.integers(-1, len(nodes)))
        depth = 1 if parent < 0 else depth_of[parent] + 1
        nodes.append((parent, Row(int(generator.integers(1000, 10**6)), root + depth)))
        depth_of.append(depth)
    piece = Piece(tokens[:context], tokens[context : root + 1], nodes)
    out = run(native, shape, [Piece(text(77, 70), text(77, 2, 70)), piece], seed=trial)[2:]
    for index, row in enumerate(piece.rows):
        if row.seed == tokens[0].seed and row.position in plain:
            assert torch.equal(out[index], plain[row.position]), (row.position, root, chain)


def test_moved_slots_are_read_where_they_went(native: NativeLibrary) -> None:
    shape = Shape(4, 2, 64)
    native.set_isa(native.best_isa)
    tokens = text(21, 100)
    wanted = run(native, shape, [Piece(tokens[:99], tokens[99:])])
    pool = broken_pool(shape, 4)
    attention = PagedAttention8(native, pool.tensors, 4, 64**-0.5, 0.0, 1e-6)
    step(attention, shape, [Piece([], tokens[:90])], [[2, 0]])
    others = [(-1, Row(5, 90)), (-1, tokens[90]), (1, Row(6, 91)), (1, tokens[91])]
    step(attention, shape, [Piece(tokens[:89], [tokens[89]], others)], [[2, 0]])
    base = 90 - 64  # in block 0
    pool.move([base + 1, base + 3], [base, base + 1])
    step(attention, shape, [Piece(tokens[:92], tokens[92:99])], [[2, 0]])
    assert torch.equal(step(attention, shape, [Piece(tokens[:99], tokens[99:])], [[2, 0]]), wanted)


def test_rows_of_zeros_and_huge_values(native: NativeLibrary) -> None:
    pool = broken_pool(Shape(2, 1, 64), 1)
    none = torch.zeros(3, 1, dtype=torch.int32)
    attention = PagedAttention8(native, pool.tensors, 2, 1.0, 0.0, 1e-6)
    start = torch.tensor([0, 3], dtype=torch.int32)
    one = torch.tensor([0], dtype=torch.int32)
    attention.begin(
        start, one, one + 3, torch.zeros(1, 1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), none, torch.arange(3)
    )
    cosine, sine = torch.ones(3, 32), torch.zeros(3, 32)
    for value in (0.0, 1e-38, 1e15, 3e38):
        for isa in native.available_isas():
            native.set_isa(isa)
            qkv = torch.zeros(3, 4 * 64)
            qkv[:, 192:] = value
            out = attention(0, qkv, None, None, cosine, sine)
            assert torch.isfinite(out).all(), (value, isa)
            if 1e-30 < value < 1e30:
                assert torch.allclose(out, torch.tensor(value), rtol=0.02)


def test_what_does_not_fit_is_refused(native: NativeLibrary) -> None:
    with pytest.raises(ValueError, match="cannot attend"):
        PagedAttention8(native, Int8Pool(1, 1, 96, 2).tensors, 2, 1.0, 0.0, 1e-6)
    pool = Int8Pool(1, 1, 64, 2)
    bias = largest_pairs(torch.randn(1, 64), 4)
    with pytest.raises(ValueError, match="cosines and sines"):
        PagedAttention8(native, pool.tensors, 2, 1.0, 0.0, 1e-6, [bias])
    table = torch.zeros(32, 128), torch.zeros(32, 128)
    with pytest.raises(ValueError, match="pairs must be"):
        PagedAttention8(native, pool.tensors, 2, 1.0, 0.0, 1e-6, [KeyBias(bias.values, bias.pairs + 32)], table)
    with pytest.raises(ValueError, match="pairs must be"):
        PagedAttention8(native, pool.tensors, 2, 1.0, 0.0, 1e-6, [bias], (torch.zeros(32, 100), torch.zeros(32, 100)))
    assert 2 * bytes_per_block(1, 1, 64, torch.int8) == pool.bytes


class Damaged(Row):
    """A row that overflowed."""

    def qkv(self, shape: Shape) -> torch.Tensor:
        return made(self.seed, self.position, shape) * float("inf")


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_who_sees_a_row_that_is_not_finite_is_not_finite(native: NativeLibrary, shape: Shape) -> None:
    """And nobody else is touched, in the same call or in blocks that lie beside."""
    before, after = text(1, 70), text(1, 9, 71)
    whole, other = Piece([*before, Damaged(1, 70)], after), Piece(text(2, 90), text(2, 3, 90))
    for isa in native.available_isas():
        native.set_isa(isa)
        out = run(native, shape, [whole, other])
        assert not out[: len(after)].isfinite().any()
        assert torch.equal(out[len(after) :], run(native, shape, [other]))
