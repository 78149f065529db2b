"""Linear layers over GGUF's own codes against the memory's reading speed, in one run.

For a shape of Qwen2.5-Coder-1.5B and each block format: milliseconds and gigabytes of packed weights a second for 1 to 64 rows,
what share of the best reading speed that is, and the time against that of the fewest rows. Rounding of the rows is included.
Weights rotate through more memory than the caches hold.

    python benchmarks/native_grouped.py [--kinds Q4_K,Q6_K] [--rows 1,16] [--shapes gate_up] [--threads 2] [--isa avx2]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from hasten.native.grouped import KINDS, GroupedLinear, GroupedMatrix
from hasten.native.loader import LEVELS, NativeLibrary, load, status
from native_linear import ROTATE_BYTES, ROWS, SHAPES, quiet_seconds, reading_speed


def make(library: NativeLibrary, kind: str, outputs: int, inputs: int) -> GroupedLinear:
    """A layer whose every byte is 17: sound scales, and no arithmetic that depends on values."""
    matrix = GroupedMatrix(library, kind, outputs, inputs)
    matrix.packed.fill_(17)
    return GroupedLinear(library, [matrix], None)


def measure(library: NativeLibrary, kind: str, outputs: int, inputs: int, rows: tuple[int, ...]) -> None:
    one = make(library, kind, outputs, inputs)
    layers = [one, *(make(library, kind, outputs, inputs) for _ in range(max(1, ROTATE_BYTES // one.bytes)))]
    ceiling = max(reading_speed(library).values())
    first = None
    for count in rows:
        x = torch.randn(count, inputs)
        seconds = quiet_seconds([partial(layer, x) for layer in layers])
        first = first or seconds
        speed = one.bytes / seconds / 1e9
        against = f"{speed / ceiling:4.0%} of reading  {seconds / first:5.2f}x of {rows[0]} rows"
        operations = 2e-9 * outputs * inputs * count / seconds
        name = f"{kind} {outputs:6d} x {inputs:5d}  rows {count:4d}"
        print(f"  {name}  {seconds * 1e3:7.3f} ms  {speed:5.1f} GB/s  {against}  {operations:7.0f} GOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=LEVELS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--kinds", default="Q4_1,Q5_0,Q8_0,Q4_K,Q6_K")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--shapes", default="gate_up,down")
    asked = parser.parse_args()
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
    for kind in asked.kinds.split(","):
        if kind not in KINDS:
            parser.error(f"kinds are {', '.join(KINDS)}, not {kind}")
        for name in asked.shapes.split(","):
            outputs, inputs = SHAPES.get(name) or map(int, name.split("x"))
            measure(library, kind, outputs, inputs, tuple(map(int, asked.rows.split(","))))


if __name__ == "__main__":
    main()
