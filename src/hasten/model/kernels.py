"""What the native kernels and PyTorch share: the processor's threads."""

from __future__ import annotations

import torch

from hasten.model.precision import Precision
from hasten.native.loader import load


def set_threads(count: int, precision: Precision) -> None:
    """Give ``count`` threads (0: leave the choice to each) to whoever does the heavy work of a precision.

    Where that is the native kernels, PyTorch keeps to one thread: two pools that spin on the same cores only steal from each
    other.
    """
    library = load()
    if library is not None and count:
        library.set_threads(count)
    if library is not None and precision.quantised:
        torch.set_num_threads(1)
    elif count:
        torch.set_num_threads(count)


def threads_and_level() -> tuple[int, str]:
    """Threads that do the heavy work, and the instruction set level of the native kernels ("torch" without them)."""
    library = load()
    return (torch.get_num_threads(), "torch") if library is None else (library.threads, library.isa)
