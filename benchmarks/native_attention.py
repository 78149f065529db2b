"""Paged attention of one layer by pool type, rows and context, all types in turn in one run.

python benchmarks/native_attention.py [--isa amx] [--threads 1] [--heads 12] [--kv-heads 2] [--head-dim 128]
"""

from __future__ import annotations

import argparse
import time

import torch

from hasten.cache.pool import Int8Pool
from hasten.native.attention import PagedAttention
from hasten.native.attention8 import PagedAttention8, largest_pairs
from hasten.native.loader import LEVELS, NativeLibrary, load, status

CASES = (
    (1, 1, 4096),
    (1, 4, 4096),
    (1, 16, 4096),
    (1, 64, 4000),
    (1, 1000, 0),
    (16, 1, 300),
    (16, 1, 1000),
)  # sequences, rows, context
BLOCKS, PAIRS = 272, 16
Kernel = PagedAttention | PagedAttention8


def kernels(library: NativeLibrary, layers: int, heads: int, kv_heads: int, dim: int) -> dict[str, Kernel]:
    """One of each pool type; int8 pools are written to by a first step, the others are random."""
    keys, values = torch.randn(layers, BLOCKS, kv_heads, dim, 64), torch.randn(layers, BLOCKS, kv_heads, 64, dim)
    key_codes, value_codes, key_scales, value_scales = Int8Pool(layers, kv_heads, dim, BLOCKS).tensors
    pool = key_codes, value_codes, key_scales, value_scales
    biases = [largest_pairs(torch.randn(kv_heads, dim), PAIRS) for _ in range(layers)]
    arguments = heads, dim**-0.5, 0.0, 1e-6
    return {
        "float32": PagedAttention(library, keys, values, *arguments),
        "float16": PagedAttention(library, keys.half(), values.half(), *arguments),
        "bf16": PagedAttention(library, keys.bfloat16(), values.bfloat16(), *arguments),
        "int8": PagedAttention8(library, pool, *arguments),
        f"int8, bias of {PAIRS} pairs kept out": PagedAttention8(library, pool, *arguments, biases, angles(dim)),
    }


def angles(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    turns = torch.arange(BLOCKS * 64).double()[None, :] * (1e6 ** -(torch.arange(0, dim, 2).double() / dim))[:, None]
    return turns.cos().float(), turns.sin().float()


def place(kernel: Kernel, sequences: int, rows: int, context: int) -> None:
    """So many sequences of one length, each with so many rows behind its context, in blocks of its own."""

    def ints(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    blocks = BLOCKS // sequences
    starts = [64 * blocks * sequence + context for sequence in range(sequences)]
    slots = torch.tensor([start + row for start in starts for row in range(rows)])
    tables = ints([list(range(blocks * sequence, blocks * (sequence + 1))) for sequence in range(sequences)])
    none = torch.zeros(sequences * rows, dtype=torch.int32)
    borders = ints([rows * sequence for sequence in range(sequences + 1)])
    kernel.begin(borders, ints([context] * sequences), ints([rows] * sequences), tables, none, none[:, None], slots)


def measure(
    kinds: dict[str, Kernel], layers: int, sequences: int, rows: int, context: int, width: int, dim: int, repeats: int
) -> None:
    """Milliseconds of each kind: the tenth percentile of calls taken in turn, so that all see the same neighbours."""
    cosine, sine = (each.T[context : context + rows].repeat(sequences, 1) for each in angles(dim))
    qkv = torch.randn(sequences * rows, width)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for kernel in kinds.values():
        place(kernel, sequences, rows, context)
    for repeat in range(repeats):
        for name, kernel in kinds.items():
            start = time.perf_counter()
            kernel(repeat % layers, qkv, None, None, cosine, sine)
            seconds[name].append(time.perf_counter() - start)
    for name, some in seconds.items():
        took = sorted(some)[len(some) // 10] * 1e3
        print(f"  sequences {sequences:2d}  rows {rows:4d}  context {context:4d}  {took:8.3f} ms  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=LEVELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12, help="taken in turn; enough that none stays in a cache")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=128)
    asked = parser.parse_args()
    library = load()
    if library is None:
        raise SystemExit(f"native kernels: {status()['reason']}")
    if asked.isa:
        library.set_isa(asked.isa)
    library.set_threads(asked.threads)
    kinds = kernels(library, asked.layers, asked.heads, asked.kv_heads, asked.head_dim)
    width = (asked.heads + 2 * asked.kv_heads) * asked.head_dim
    for kernel in kinds.values():
        if isinstance(kernel, PagedAttention8):
            place(kernel, 16, 64 * BLOCKS // 16, 0)
            cosine, sine = (each.T[: 64 * BLOCKS // 16].repeat(16, 1) for each in angles(asked.head_dim))
            for layer in range(asked.layers):
                kernel(layer, torch.randn(64 * BLOCKS, width), None, None, cosine, sine)
    for sequences, rows, context in CASES:
        measure(kinds, asked.layers, sequences, rows, context, width, asked.head_dim, 40 if rows < 100 else 8)


if __name__ == "__main__":
    main()
