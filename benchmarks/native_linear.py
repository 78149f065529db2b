"""Native linear layers against the memory's reading speed, in one run.

For each shape of Qwen2.5-Coder-1.5B: milliseconds and gigabytes of packed weights a second for 1 to 512 rows, and what share of the
best reading speed (several read kernels, measured in between) that is. Weights rotate through more memory than the caches hold.

    python benchmarks/native_linear.py [--bits 4] [--isa amx] [--threads 2] [--rows 1,16,32] [--shapes 17920x1536]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from hasten.native.grouped import GroupedLinear
from hasten.native.kernels import GROUP_INPUTS, PackedLinear, PackedProgressive, largest_code
from hasten.native.loader import LEVELS, NativeLibrary, load, status
from hasten.native.memory import aligned_bytes

SHAPES = {"gate_up": (17920, 1536), "down": (1536, 8960), "qkv": (2048, 1536), "output": (1536, 1536)}
ROWS = (1, 2, 4, 8, 16, 32, 64, 512)
READ_KINDS = ("no prefetch", "2 KiB ahead", "4 KiB ahead", "8 KiB ahead")
ROTATE_BYTES = 400 << 20
REPEATS = 4

Layer = PackedLinear | PackedProgressive | GroupedLinear
Calls = Callable[[Sequence[Layer], int], list[Callable[[], object]]]


def quiet_seconds(calls: list[Callable[[], object]]) -> float:
    """Seconds of one call when the machine leaves us alone: the tenth percentile of single calls, over some repeats of all."""
    seconds = []
    for _ in range(REPEATS):
        for call in calls:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 10]


def reading_speed(library: NativeLibrary) -> dict[str, float]:
    """Gigabytes a second of each read kernel with all threads."""
    memory = aligned_bytes(ROTATE_BYTES)
    memory.fill_(1)
    read, piece = library.call["hst_read"], 20 << 20
    speeds = {}
    for kind, name in enumerate(READ_KINDS):
        starts = range(memory.data_ptr(), memory.data_ptr() + ROTATE_BYTES - piece, piece)
        speeds[name] = piece / quiet_seconds([partial(read, start, piece, kind) for start in starts]) / 1e9
    return speeds


def make(library: NativeLibrary, outputs: int, inputs: int, bits: int) -> PackedLinear | PackedProgressive:
    """A layer of random weights."""
    scale = torch.full((outputs,), 0.01)
    if bits == 8:
        return PackedLinear(library, torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), scale, None, 0)
    codes = torch.randint(0, largest_code(bits) + 1, (outputs, inputs), dtype=torch.uint8)
    groups = outputs, -(-inputs // GROUP_INPUTS)
    group_scale, group_offset = torch.full(groups, 8, dtype=torch.uint8), torch.full(groups, -60, dtype=torch.int8)
    return PackedProgressive(library, codes, group_scale, group_offset, scale, None, 0, bits)


def measure(library: NativeLibrary, name: str, layers: Sequence[Layer], rows: tuple[int, ...], calls: Calls) -> None:
    """Print a line for each count of rows; ``calls`` are one call of every layer with that many rows."""
    ceiling = max(reading_speed(library).values())
    outputs, inputs = layers[0].outputs, layers[0].inputs
    first = None
    for count in rows:
        seconds = quiet_seconds(calls(layers, count))
        first = first or seconds
        speed = layers[0].bytes / seconds / 1e9
        against = f"{speed / ceiling:4.0%} of reading  {seconds / first:5.2f}x of {rows[0]} rows"
        operations = 2e-9 * outputs * inputs * count / seconds
        size = f"{name} {outputs:6d} x {inputs:5d}  rows {count:4d}"
        print(f"  {size}  {seconds * 1e3:7.3f} ms  {speed:5.1f} GB/s  {against}  {operations:7.0f} GOP/s")


def with_codes(layers: Sequence[Any], rows: int) -> list[Callable[[], object]]:
    """Each layer on rows that are rounded already."""
    codes = torch.randint(-127, 128, (rows, layers[0].inputs), dtype=torch.int8)
    scale, out = torch.ones(rows), torch.empty(rows, layers[0].outputs)
    return [partial(layer.from_codes, codes, scale, None, out) for layer in layers]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What both benchmarks of linear layers may be asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=LEVELS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    return parser


def prepared(asked: argparse.Namespace) -> tuple[NativeLibrary, tuple[int, ...], list[tuple[int, int]]]:
    """The library as it was asked for, row counts, and outputs and inputs of the shapes; says how fast memory is read."""
    library = load()
    if library is None:
        raise SystemExit(f"native kernels: {status()['reason']}")
    if asked.isa:
        library.set_isa(asked.isa)
    if asked.threads:
        library.set_threads(asked.threads)
    torch.set_num_threads(1)
    print(status())
    for name, speed in reading_speed(library).items():
        print(f"  reading, {name:12s} {speed:5.1f} GB/s")
    shapes = [SHAPES.get(name) or tuple(map(int, name.split("x"))) for name in asked.shapes.split(",")]
    return library, tuple(map(int, asked.rows.split(","))), [(shape[0], shape[1]) for shape in shapes]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bits", type=int, choices=(8, 4, 3), default=8)
    asked = parser.parse_args()
    library, rows, shapes = prepared(asked)
    for outputs, inputs in shapes:
        copies = max(2, ROTATE_BYTES * 8 // asked.bits // (outputs * inputs))
        layers = [make(library, outputs, inputs, asked.bits) for _ in range(copies)]
        measure(library, f"int{asked.bits}", layers, rows, with_codes)


if __name__ == "__main__":
    main()
