"""Paged tree attention: against float64, and one bit pattern per (query, keys by position), however the call is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from hasten.native.attention import PagedAttention
from hasten.native.loader import NativeLibrary


@dataclass(frozen=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    dim: int = 64
    softcap: float = 0.0
    window: int = 0
    dtype: torch.dtype = torch.float32


@dataclass
class Row:
    """A token at a position: its query, key and value are functions of (seed, position) alone."""

    seed: int
    position: int

    def tensors(self, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return made(self.seed, self.position, shape)


@lru_cache(maxsize=20000)
def made(seed: int, position: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng((seed, position))
    flat = torch.from_numpy(generator.standard_normal((shape.heads + 2 * shape.kv_heads) * shape.dim, dtype=np.float32))
    q, k, v = flat.split([shape.heads * shape.dim, shape.kv_heads * shape.dim, shape.kv_heads * shape.dim])
    return q * 1.7, k.view(shape.kv_heads, shape.dim), v.view(shape.kv_heads, shape.dim)


@dataclass
class Piece:
    """One segment: context rows (already in the pool), chain rows, and nodes as (parent, row); parent -1 is the chain's end."""

    context: list[Row]
    chain: list[Row]
    nodes: list[tuple[int, Row]] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [*self.chain, *(row for _, row in self.nodes)]

    def paths(self) -> list[list[int]]:
        base, out = len(self.context) + len(self.chain), []
        for node, (parent, _) in enumerate(self.nodes):
            out.append([*([] if parent < 0 else out[parent]), base + node])
        return out


def run(native: NativeLibrary, shape: Shape, pieces: list[Piece], seed: int = 0, filler: float = 0.0) -> torch.Tensor:
    """Lay the pieces out in a pool whose blocks are handed out at random, and attend. ``filler`` stands in every unused slot."""
    generator = np.random.default_rng(seed)
    needs = [-(-(len(p.context) + len(p.rows)) // 64) for p in pieces]
    order = generator.permutation(sum(needs) + 2).tolist()
    filler = max(min(filler, torch.finfo(shape.dtype).max), torch.finfo(shape.dtype).min)
    keys = torch.full((1, len(order), shape.kv_heads, shape.dim, 64), filler, dtype=shape.dtype)
    values = torch.full((1, len(order), shape.kv_heads, 64, shape.dim), filler, dtype=shape.dtype)
    tables, slots, queries, depths, paths = [], [], [], [], []
    for piece, need in zip(pieces, needs, strict=True):
        table = [order.pop() for _ in range(need)]
        tables.append(table)
        triples = [row.tensors(shape) for row in [*piece.context, *piece.rows]]
        places = torch.tensor([table[index // 64] * 64 + index % 64 for index in range(len(triples))])
        blocks, offsets = places // 64, places % 64
        keys[0][blocks, :, :, offsets] = torch.stack([k for _, k, _ in triples]).to(shape.dtype)
        values[0][blocks, :, offsets] = torch.stack([v for _, _, v in triples]).to(shape.dtype)
        slots += places[len(piece.context) :].tolist()
        queries += [q for q, _, _ in triples[len(piece.context) :]]
        own = piece.paths()
        depths += [0] * len(piece.chain) + [len(path) for path in own]
        paths += [[]] * len(piece.chain) + own
    widest, deepest = max(map(len, tables)), max(1, *map(len, paths))
    attention = PagedAttention(native, keys, values, shape.heads, shape.dim**-0.5, shape.softcap, 1e-6)

    def ints(rows: object) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int32)

    attention.begin(
        ints([0, *np.cumsum([len(p.rows) for p in pieces]).tolist()]),
        ints([len(p.context) for p in pieces]),
        ints([len(p.chain) for p in pieces]),
        ints([table + [0] * (widest - len(table)) for table in tables]),
        ints(depths),
        ints([path + [0] * (deepest - len(path)) for path in paths]),
        torch.tensor(slots),
    )
    return attention.attend(0, torch.stack(queries), shape.window)


def exact(shape: Shape, history: list[Row]) -> torch.Tensor:
    """float64 attention of the last row of ``history`` over all of it."""
    triples = [row.tensors(shape) for row in history]
    if shape.window:
        triples = triples[-shape.window :]
    group = shape.heads // shape.kv_heads
    q = triples[-1][0].double().view(shape.heads, shape.dim)
    k = torch.stack([t[1].to(shape.dtype).double() for t in triples], 1).repeat_interleave(group, 0)
    v = torch.stack([t[2].to(shape.dtype).double() for t in triples], 1).repeat_interleave(group, 0)
    scores = (k @ q[:, :, None]).squeeze(-1) * shape.dim**-0.5
    if shape.softcap:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    return (scores.softmax(-1)[:, None, :] @ v).reshape(-1)


def text(seed: int, length: int, start: int = 0) -> list[Row]:
    return [Row(seed, start + i) for i in range(length)]


SHAPES = [
    Shape(),
    Shape(dtype=torch.bfloat16),
    Shape(9, 3, 64),
    Shape(14, 2, 32, dtype=torch.bfloat16),
    Shape(4, 1, 256, window=40, dtype=torch.bfloat16),
    Shape(4, 1, 256, window=512),
    Shape(1, 1, 16, softcap=5.0),
    Shape(5, 5, 80, window=100, softcap=20.0),
    Shape(16, 2, 96, window=1),
    Shape(12, 2, 128, dtype=torch.bfloat16),
    Shape(9, 3, 64, dtype=torch.float16),
    Shape(14, 2, 80, window=100, softcap=20.0, dtype=torch.float16),
    Shape(4, 1, 256, window=40, dtype=torch.float16),
]


def by_tiles(isa: str, shape: Shape) -> bool:
    """Whether AMX attends: queries and weights have 16 bits then, where elsewhere they have 24."""
    return isa == "amx" and shape.dtype is not torch.float32 and shape.dim % 64 == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_close_to_float64(native: NativeLibrary, shape: Shape) -> None:
    tokens = text(1, 700)
    tree = [(-1, Row(1, 700)), (-1, Row(2, 700)), (0, Row(1, 701)), (1, Row(3, 701)), (2, Row(4, 702))]
    piece = Piece(tokens[:650], tokens[650:], tree)
    for isa in native.available_isas():
        native.set_isa(isa)
        out = run(native, shape, [piece])
        most = 2e-5 if by_tiles(isa, shape) else 3e-6
        for index in (0, 13, 49):
            assert (out[index].double() - exact(shape, tokens[: 651 + index])).abs().max() < most, isa
        for node, path in enumerate(piece.paths()):
            history = [*tokens, *(tree[i - 700][1] for i in path)]
            assert (out[50 + node].double() - exact(shape, history)).abs().max() < most, (isa, node)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_levels_with_fma_agree_bit_for_bit(native: NativeLibrary, shape: Shape) -> None:
    pieces = [Piece(text(5, 900), text(5, 3, 900), [(-1, Row(6, 903)), (0, Row(6, 904))]), Piece([], text(7, 130))]
    results: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for isa in native.available_isas()[1:]:
        for threads in (1, 2, 3):
            native.set_isa(isa)
            native.set_threads(threads)
            results[by_tiles(isa, shape)].append(run(native, shape, pieces))
    for alike in results.values():
        assert all(torch.equal(alike[0], other) for other in alike[1:])


def plainly(native: NativeLibrary, shape: Shape, tokens: list[Row], wanted: list[int]) -> dict[int, torch.Tensor]:
    """Rows decoded one at a time, each alone in its call."""
    native.set_threads(1)
    return {at: run(native, shape, [Piece(tokens[:at], [tokens[at]])], seed=at)[0] for at in wanted}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ["generic", "avx2", "vnni", "amx"])
def test_chunks_batches_and_trees_give_the_bits_of_plain_decoding(native: NativeLibrary, shape: Shape, isa: str) -> None:
    if isa not in native.available_isas():
        pytest.skip(f"no {isa} here")
    if isa == "amx" and not by_tiles(isa, shape):
        pytest.skip("AMX has the kernels of AVX-512 there")
    native.set_isa(isa)
    generator = np.random.default_rng(sum(map(ord, str(shape))))
    tokens = text(11, 600)
    checked = sorted({0, 1, 62, 63, 64, 65, 127, 128, 510, 511, 512, 513, 599, *generator.integers(0, 600, 8).tolist()})
    plain = plainly(native, shape, tokens, checked)
    for trial in range(8):
        native.set_threads(int(generator.integers(1, 4)))
        cuts = sorted({0, 600, *generator.integers(1, 600, trial).tolist()})
        for begin, end in pairwise(cuts):
            others = [
                Piece(text(100 + i, int(generator.integers(0, 90))), text(200 + i, int(generator.integers(1, 4)), 1000))
                for i in range(int(generator.integers(0, 3)))
            ]
            out = run(native, shape, [*others, Piece(tokens[:begin], tokens[begin:end])], seed=trial, filler=1e30)
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
    low, high = [(40, 60), (500, 511), (560, 590), (0, 3)][trial % 4]
    root = int(generator.integers(low, high))
    chain = int(generator.integers(1, min(root + 1, 6) + 1))
    context = root + 1 - chain
    nodes: list[tuple[int, Row]] = []
    at_depth, true_node, depth_of = root, -1, []
    for _ in range(int(generator.integers(1, 80))):
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
    out = run(native, shape, [Piece(text(77, 70), text(77, 2, 70)), piece], seed=trial, filler=-1e30)[2:]
    for index, row in enumerate(piece.rows):
        if row.seed == tokens[0].seed and row.position in plain:
            assert torch.equal(out[index], plain[row.position]), (row.position, root, chain)


def test_the_split_of_one_long_sequence_among_threads_changes_nothing(native: NativeLibrary) -> None:
    """Few units are cut by splits, many walk their splits: both must merge to the same bits."""
    shape, tokens = Shape(3, 1, 32), text(3, 2300)
    results = []
    for threads in (1, 2, 4):
        native.set_threads(threads)
        alone = run(native, shape, [Piece(tokens[:-1], tokens[-1:])], seed=threads)[0]
        crowd = [Piece(text(50 + i, 20), text(50 + i, 1, 20)) for i in range(16)]
        among = run(native, shape, [*crowd, Piece(tokens[:-1], tokens[-1:])], seed=threads)[-1]
        results += [alone, among]
    for other in results[1:]:
        assert torch.equal(results[0], other)
    assert (results[0].double() - exact(shape, tokens)).abs().max() < 3e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_window_does_not_touch_what_lies_outside(native: NativeLibrary, dtype: torch.dtype) -> None:
    """Values behind the window may be NaN (a block given back and used by another): no trace of them."""
    shape = Shape(4, 1, 64, window=70, dtype=dtype)
    tokens = text(9, 300)
    clean = run(native, shape, [Piece(tokens[:299], tokens[299:])])
    native.set_threads(1)
    original = Row.tensors
    try:

        def broken(self: Row, s: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            q, k, v = original(self, s)
            return (q, k, v) if self.position >= 230 else (q, k * float("nan"), v * float("nan"))

        Row.tensors = broken  # type: ignore[method-assign]
        assert torch.equal(run(native, shape, [Piece(tokens[:299], tokens[299:])]), clean)
    finally:
        Row.tensors = original  # type: ignore[method-assign]


@pytest.mark.parametrize("shape", [Shape(2, 1, 16), Shape(2, 1, 64, dtype=torch.float16)], ids=str)
def test_huge_scores_do_not_overflow(native: NativeLibrary, shape: Shape) -> None:
    original = Row.tensors
    try:
        Row.tensors = lambda self, s: tuple(t * 3000 for t in original(self, s))  # type: ignore[method-assign,assignment,return-value]
        for isa in native.available_isas():
            native.set_isa(isa)
            out = run(native, shape, [Piece(text(1, 90), text(1, 2, 90))])
            assert torch.isfinite(out).all()
            wanted = exact(shape, [*text(1, 92)])
            assert (out[1].double() - wanted).abs().max() < 1e-2
    finally:
        Row.tensors = original  # type: ignore[method-assign]


def write_and_read(native: NativeLibrary, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [rows, dim] as a float16 pool keeps them, and as rows read them that see nothing but themselves, each in its block."""
    rows, dim = numbers.shape
    keys, values = torch.zeros(1, rows, 1, dim, 64).half(), torch.zeros(1, rows, 1, 64, dim).half()
    attention = PagedAttention(native, keys, values, 1, 0.25, 0.0, 1e-6)
    each, none = torch.arange(rows + 1, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    attention.begin(each, none, none + 1, each[:rows, None], none, none[:, None], torch.arange(rows) * 64)
    qkv = torch.cat([torch.zeros(rows, 2 * dim), numbers], 1)
    read = attention(0, qkv, None, None, torch.ones(rows, dim // 2), torch.zeros(rows, dim // 2))
    return values[0, :, 0, 0], read


@pytest.mark.parametrize("dim", [16, 64])
def test_every_half_is_kept_and_read_as_it_is(native: NativeLibrary, dim: int) -> None:
    """All finite 16-bit floats, the numbers halfway between neighbours, and what is too large, subnormal or zero."""
    halves = torch.arange(0, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    between = (halves[1:] + halves[:-1]) / 2
    odd = torch.tensor([65519.9, 65520.0, 7e4, 3e38, float("inf"), 1e-45, 2.0**-25, 2.0**-25 * 1.0001, 2.0**-24 * 1.5])
    numbers = torch.cat([halves, between, torch.nextafter(between, halves[1:]), odd])
    numbers = torch.cat([numbers, -numbers])
    numbers = torch.cat([numbers, torch.zeros(-len(numbers) % dim)]).view(-1, dim)
    wanted = numbers.clamp(-65504.0, 65504.0).half()
    for isa in native.available_isas():
        native.set_isa(isa)
        kept, read = write_and_read(native, numbers)
        assert torch.equal(kept.view(torch.int16), wanted.view(torch.int16)), isa
        assert torch.equal(read, wanted.float()), isa


def test_no_segments_and_bad_pools(native: NativeLibrary) -> None:
    keys, values = torch.zeros(1, 2, 1, 32, 64), torch.zeros(1, 2, 1, 64, 32)
    attention = PagedAttention(native, keys, values, 2, 1.0, 0.0, 1e-6)
    none = torch.zeros(0, dtype=torch.int32)
    table = torch.zeros(0, 1, dtype=torch.int32)
    attention.begin(torch.zeros(1, dtype=torch.int32), none, none, table, none, table, torch.zeros(0, dtype=torch.int64))
    assert attention.attend(0, torch.zeros(0, 64)).shape == (0, 64)
    with pytest.raises(ValueError, match="cannot attend"):
        PagedAttention(native, torch.zeros(1, 2, 1, 24, 64), torch.zeros(1, 2, 1, 64, 24), 2, 1.0, 0.0, 1e-6)
    with pytest.raises(ValueError, match="cannot attend"):
        PagedAttention(native, keys.double(), values.double(), 2, 1.0, 0.0, 1e-6)
    with pytest.raises(ValueError, match="contiguous"):
        PagedAttention(native, keys, values.transpose(-1, -2).contiguous(), 2, 1.0, 0.0, 1e-6)
