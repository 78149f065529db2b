"""Memory of weights: aligned, disjoint, freed, and not short of threads."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from hasten.native import memory
from hasten.native.memory import ARENA, aligned_bytes, zeros


def test_pieces_are_aligned_as_long_as_asked_for_and_disjoint() -> None:
    sizes = [0, 1, 63, 64, 65, 4096, 1 << 20, ARENA // 2, ARENA // 2 + 1]
    with ThreadPoolExecutor(4) as workers:
        pieces = list(workers.map(aligned_bytes, sizes * 3))
    for size, piece in zip(sizes * 3, pieces, strict=True):
        assert piece.shape == (size,)
        assert piece.dtype is torch.uint8
        assert size == 0 or piece.data_ptr() % 64 == 0
    spans = sorted((piece.data_ptr(), piece.data_ptr() + piece.numel()) for piece in pieces if piece.numel() > 0)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for number, piece in enumerate(pieces):
        piece.fill_(number % 251)
    assert all((piece == number % 251).all() for number, piece in enumerate(pieces))


def test_small_pieces_share_an_arena_and_large_ones_begin_a_huge_page() -> None:
    first = aligned_bytes(100)
    second = aligned_bytes(100)
    same = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert same or second.data_ptr() % memory.HUGE_PAGE == 0  # unless the arena was full
    assert aligned_bytes(ARENA).data_ptr() % 64 == 0


def test_zeros_are_zero_however_large() -> None:
    for shape, dtype in (
        ((3, 5), torch.float16),
        ((2, memory.HUGE_PAGE), torch.int8),
        ((3, 1 << 20), torch.float32),
        ((0, 4), torch.int8),
    ):
        for _ in range(2):  # memory that was given back comes again
            found = zeros(shape, dtype)
            assert (found.shape, found.dtype) == (shape, dtype)
            assert not found.any()
            assert found.is_contiguous()
            found.fill_(1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_comes_back() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    gc.collect()
    before = resident()
    for _ in range(12):
        aligned_bytes(48 << 20).fill_(1)
    gc.collect()
    assert resident() - before < 144 << 20
