"""Memory that weights, keys and values are streamed from at every step: in huge pages, so that streaming waits less for address
translation.

A stream of 4 KiB pages can lose a fifth of the reading speed. The system gives huge pages (2 MiB) to aligned private memory that
asks for them; small layers share an arena, because alone they would fill none.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
ARENA = 32 << 20

_lock = threading.Lock()
_arena = torch.empty(0, dtype=torch.uint8)  # what is left of the arena that small pieces are cut from


def aligned_bytes(size: int) -> Tensor:
    """Uninitialised uint8 [size] that starts at a multiple of 64. Freed when nothing refers to it and to its neighbours of one
    arena any more, so it is for what lives as long as a model."""
    global _arena
    if size > ARENA // 2:
        return _huge(size)[:size]
    taken = -(-size // 64) * 64
    with _lock:
        if _arena.numel() < taken:
            _arena = _huge(ARENA)
        piece, _arena = _arena[:size], _arena[taken:]
    return piece


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in memory of their own, which the system hands out as it is written to; in huge pages where they fill one."""
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE_PAGE:
        return torch.zeros(shape, dtype=dtype)
    return _huge(size)[:size].view(dtype).view(*shape)


def _huge(size: int) -> Tensor:
    """At least ``size`` zeroed bytes that start at a huge page, where the system has such; else at a multiple of 64."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = torch.zeros(size + 64, dtype=torch.uint8)
        return memory[-memory.data_ptr() % 64 :]
    mapped = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system that was built without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE
    return memory[start : start + size]
