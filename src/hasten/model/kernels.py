"""What the native kernels and PyTorch share: the processor's threads, and its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from hasten.model.precision import Precision
from hasten.native.loader import load, status

READ_KINDS = 4  # as in native/read.h
TORCH_THREADS = torch.get_num_threads()  # its own choice, or the environment's


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
    else:  # also after a model that let PyTorch have one
        torch.set_num_threads(count or TORCH_THREADS)


@contextmanager
def torch_at_work() -> Iterator[None]:
    """Lets PyTorch have all threads that the kernels have, while these rest."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_and_level()[0])
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_and_level() -> tuple[int, str]:
    """Threads that do the heavy work, and the instruction set level of the native kernels ("torch" without them)."""
    library = load()
    return (torch.get_num_threads(), "torch") if library is None else (library.threads, library.isa)


def kernels_fingerprint() -> str:
    """Tells one build of the native kernels from another; "" without them."""
    library = load()
    return "" if library is None else library.fingerprint


def bits_are_fixed(precision: Precision, device: torch.device) -> bool:
    """Whether a row's logits have the same bits whatever is computed beside it. Only the kernels see to that; PyTorch's products
    may round otherwise where there are more rows."""
    return precision.quantised and device.type == "cpu" and load() is not None


def missing_kernels() -> str:
    """Why no native kernels are in use; "" where they are."""
    found = status()
    return "" if found["available"] else str(found["reason"])


def native_reads(buffer: Tensor) -> list[Callable[[], object]]:
    """Ways of the native kernels to read all of ``buffer`` (uint8, contiguous) and nothing else, to time memory by."""
    library = load()
    if library is None:
        return []
    return [partial(library.call["hst_read"], buffer.data_ptr(), buffer.numel(), kind) for kind in range(READ_KINDS)]
