"""Native linear layers against the memory's reading speed, in one run.

For each shape of Qwen2.5-Coder-1.5B: milliseconds and gigabytes of packed weights a second for 1 to 512 rows, and what share of the
best reading speed (several read kernels, measured in between) that is. Weights rotate through more memory than the caches hold.

    python benchmarks/native_linear.py [--bits 4] [--isa amx] [--threads 2] [--rows 1,16,32] [--shapes 17920x1536]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from hasten.native.kernels import PackedLinear, PackedLinear4
from hasten.native.loader import LEVELS, NativeLibrary, load, status
from hasten.native.memory import aligned_bytes

SHAPES = {"gate_up": (17920, 1536), "down": (1536, 8960), "qkv": (2048, 1536), "output": (1536, 1536)}
ROWS = (1, 2, 4, 8, 16, 32, 64, 512)
READ_KINDS = ("no prefetch", "2 KiB ahead", "4 KiB ahead", "8 KiB ahead")
ROTATE_BYTES = 400 << 20
REPEATS = 4


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


def make(library: NativeLibrary, outputs: int, inputs: int, bits: int) -> PackedLinear | PackedLinear4:
    """A layer of random weights."""
    scale = torch.full((outputs,), 0.01)
    if bits == 8:
        return PackedLinear(library, torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), scale, None, 0)
    codes, groups = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8), (outputs, -(-inputs // 64))
    group_scale, group_offset = torch.full(groups, 8, dtype=torch.uint8), torch.full(groups, -60, dtype=torch.int8)
    return PackedLinear4(library, codes, group_scale, group_offset, scale, None, 0)


def measure(library: NativeLibrary, outputs: int, inputs: int, bits: int, rows: tuple[int, ...]) -> None:
    copies = max(2, ROTATE_BYTES * 8 // bits // (outputs * inputs))
    layers = [make(library, outputs, inputs, bits) for _ in range(copies)]
    ceiling = max(reading_speed(library).values())
    first = None
    for count in rows:
        codes, row_scale = torch.randint(-127, 128, (count, inputs), dtype=torch.int8), torch.ones(count)
        out = torch.empty(count, outputs)
        seconds = quiet_seconds([partial(layer.from_codes, codes, row_scale, None, out) for layer in layers])
        first = first or seconds
        speed = layers[0].bytes / seconds / 1e9
        against = f"{speed / ceiling:4.0%} of reading  {seconds / first:5.2f}x of {rows[0]} rows"
        operations = 2e-9 * outputs * inputs * count / seconds
        name = f"int{bits} {outputs:6d} x {inputs:5d}  rows {count:4d}"
        print(f"  {name}  {seconds * 1e3:7.3f} ms  {speed:5.1f} GB/s  {against}  {operations:7.0f} GOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=LEVELS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    asked = parser.parse_args()
    library = load()
    if library is None:
        raise SystemExit(f"native kernels: {status()['reason']}")
    if asked.isa:
        library.set_isa(asked.isa)
    if asked.threads:
        library.set_threads(asked.threads)
    print(status())
    for name, speed in reading_speed(library).items():
        print(f"  reading, {name:12s} {speed:5.1f} GB/s")
    for name in asked.shapes.split(","):
        outputs, inputs = SHAPES.get(name) or map(int, name.split("x"))
        measure(library, outputs, inputs, asked.bits, tuple(map(int, asked.rows.split(","))))


if __name__ == "__main__":
    main()
