"""Which heads are sketched: those whose four-bit sketch takes far fewer bytes than they do. What that is: ``native.sketch``."""

from __future__ import annotations

from hasten.model.hadamard import hadamard_block
from hasten.model.linear import Linear
from hasten.native.grouped import GroupedLinear
from hasten.native.kernels import PackedLinear
from hasten.native.loader import load
from hasten.native.sketch import LEAST_BLOCK, SketchedHead

LEAST_BYTES = 4 << 20  # a smaller head takes no time that could be saved
MOST_SHARE = 0.75  # of the head's bytes; beyond, looking twice eats up what is saved


def sketches_here() -> bool:
    """Whether this machine has what sketches are made and read by."""
    library = load()
    return library is not None and library.isa != "generic"


def sketch_bytes(outputs: int, inputs: int, head_bytes: float) -> int:
    """Bytes of the sketch of a head that takes ``head_bytes``; 0 where there is none: for a head that is small or has four bits
    already, and where rows are rotated in small blocks only."""
    size = SketchedHead.bytes_for(outputs, inputs)
    pays = head_bytes >= LEAST_BYTES and size <= MOST_SHARE * head_bytes
    return size if pays and hadamard_block(inputs) >= LEAST_BLOCK else 0


def sketch_of(head: Linear, vocabulary: int) -> SketchedHead | None:
    """A sketch of ``head``, whose first ``vocabulary`` outputs are tokens; None where none would pay, or without the native kernels
    or for weights in floats."""
    library = load()
    if library is None or not sketches_here() or not isinstance(head, PackedLinear | GroupedLinear):
        return None
    several = isinstance(head, GroupedLinear) and len(head.parts) != 1
    if several or not sketch_bytes(head.outputs, head.inputs, head.bytes):
        return None
    return SketchedHead(library, head, hadamard_block(head.inputs), vocabulary)
