"""Linear layers over GGUF's own codes against the memory's reading speed, in one run.

For a shape of Qwen2.5-Coder-1.5B and each block format: milliseconds and gigabytes of packed weights a second for 1 to 64 rows,
what share of the best reading speed that is, and the time against that of the fewest rows. Rounding of the rows is included.
Weights rotate through more memory than the caches hold.

    python benchmarks/native_grouped.py [--kinds Q4_K,Q6_K] [--rows 1,16] [--shapes gate_up] [--threads 2] [--isa avx2]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from hasten.native.grouped import KINDS, GroupedLinear, GroupedMatrix
from hasten.native.loader import NativeLibrary
from native_linear import ROTATE_BYTES, arguments, measure, prepared


def make(library: NativeLibrary, kind: str, outputs: int, inputs: int) -> GroupedLinear:
    """A layer whose every byte is 17: sound scales, and no arithmetic that depends on values."""
    matrix = GroupedMatrix(library, kind, outputs, inputs)
    matrix.packed.fill_(17)
    return GroupedLinear(library, [matrix], None)


def with_rows(layers: Sequence[Any], rows: int) -> list[Callable[[], object]]:
    """Each layer on float rows, their rounding included."""
    x = torch.randn(rows, layers[0].inputs)
    return [partial(layer, x) for layer in layers]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kinds", default="Q4_1,Q5_0,Q8_0,Q4_K,Q6_K")
    parser.set_defaults(shapes="gate_up,down")
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"kinds are {', '.join(KINDS)}, not {', '.join(unknown)}")
    library, rows, shapes = prepared(asked)
    for kind, (outputs, inputs) in product(kinds, shapes):
        one = make(library, kind, outputs, inputs)
        layers = [one, *(make(library, kind, outputs, inputs) for _ in range(max(1, ROTATE_BYTES // one.bytes)))]
        measure(library, kind, layers, rows, with_rows)


if __name__ == "__main__":
    main()
