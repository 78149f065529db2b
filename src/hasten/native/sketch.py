"""A head in two steps: its weights in four bits say roughly what every output is, and only those that may be among a row's
largest are computed from the weights proper, bit for bit as these give them; and that one with the largest sum with noise.

A step reads 18 bytes for every 32 of an int8 head. The odds that a rough value hides one of the largest: it is off by a sum of as
many terms as there are inputs, and rows are rotated, so the sum is normal. ``error`` is a multiple of the most that its deviation
can be, for a row of length 1 (how far off real heads are: docs/exactness.md). An output is left out only where it lies
``DEVIATIONS`` of its own below what another is, exactly: for one of the largest to be left out, it must be off by more than seven
deviations, once in 7 * 10^11 rivals that are as large to the last bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.native.grouped import GroupedLinear
from hasten.native.kernels import PackedLinear, PackedProgressive, _need
from hasten.native.loader import NativeLibrary, check
from hasten.native.memory import aligned_bytes
from hasten.native.row_kernels import RowKernels

DEVIATIONS = 7.0
MOST_KEPT = 64
MOST_ROWS = 32
MOST_DRAWN, MOST_DRAWN_NARROW = 4, 2  # rows whose tokens are drawn (benchmarks/native_head.py)
NARROW = 640
LEAST_BLOCK = 64
PIECE_OUTPUTS = 4096  # a multiple of 32
TILE_INPUTS, PAIR_OUTPUTS, PAIR_BYTES, PAIR_BYTES_4 = 64, 32, 2048, 1152  # as in linear.h


class _SketchFields(ctypes.Structure):
    _fields_ = (
        ("rough", ctypes.c_void_p),
        ("exact", ctypes.c_void_p),
        ("grouped", ctypes.c_void_p),
        ("error", ctypes.c_void_p),
        ("rounding", ctypes.c_float),
        ("choosable", ctypes.c_int64),
    )


class DrawFields(ctypes.Structure):
    """How a row's token is drawn; nothing is at temperature 0."""

    _fields_ = (("temperature", ctypes.c_double), ("seed", ctypes.c_uint64), ("position", ctypes.c_int64))


def _most_rows(isa: str, exact: PackedLinear | GroupedLinear, several: bool) -> int:
    """For how many rows the sketch saves time (benchmarks/native_head.py), where one output of each has to be exact or ``several``.
    With VNNI or AMX many rows are bound by computing, of which four bits take no less than eight; a narrow head, and several
    leaders, have more outputs to look at twice."""
    grouped, narrow, wide = isinstance(exact, GroupedLinear), exact.inputs < NARROW, exact.inputs >= 1024
    if isa == "avx2":
        rows = MOST_ROWS
    elif narrow:
        rows = 6 if grouped else 4
    elif grouped:
        rows = MOST_ROWS if wide else 16
    else:
        rows = MOST_ROWS if isa == "amx" else 8
    if several:
        return 0 if narrow else rows // (4 if wide else 8)
    return rows


class SketchedHead:
    """``exact``, which has no bias, with a sketch of it. Outputs from ``choosable`` on (padding of a vocabulary) do not count as
    large."""

    def __init__(self, library: NativeLibrary, exact: PackedLinear | GroupedLinear, block: int, choosable: int) -> None:
        """Makes the sketch. ``block``: the Hadamard block of ``exact``'s inputs, at least 64, so that rows are spread over what a
        group of weights is off by. Raises ValueError for smaller ones, and for a head of several parts."""
        self.exact = exact
        self.outputs, self.inputs, self.choosable = exact.outputs, exact.inputs, choosable
        if block < LEAST_BLOCK or (isinstance(exact, GroupedLinear) and len(exact.parts) != 1):
            raise ValueError(f"a head of several parts has no sketch, nor one whose rows are rotated in blocks of {block}")
        self._library = library
        packed = aligned_bytes(self.bytes_for(self.outputs, self.inputs))
        scale, self._error = torch.empty(self.outputs), torch.empty(self.outputs)
        longest = self._draw(packed, scale, block)
        self.rough = PackedProgressive.from_packed(library, packed, scale, None, self.inputs, block, 4)
        # What rounding a row to int8 takes from its values is uniform over one scale: twice over, here and in groups.
        rounding = longest**2 / 6 if isinstance(exact, GroupedLinear) else 0.0
        self._error *= DEVIATIONS
        addresses = (None, exact._address) if isinstance(exact, GroupedLinear) else (exact._address, None)
        self._fields = _SketchFields(self.rough._address, *addresses, self._error.data_ptr(), rounding, choosable)
        self._address = ctypes.addressof(self._fields)
        self._call = library.call["hst_sketched_head"]
        self._most_rows = tuple(_most_rows(library.isa, exact, several) for several in (False, True))

    @property
    def bytes(self) -> int:
        """Of the sketch alone."""
        return self.rough.bytes

    @staticmethod
    def bytes_for(outputs: int, inputs: int) -> int:
        """Bytes of the sketch of such a head."""
        return -(-outputs // PAIR_OUTPUTS) * (-(-inputs // TILE_INPUTS) * PAIR_BYTES_4 + 4 * PAIR_OUTPUTS)

    def pays(self, keep: Tensor, drawn: bool = False) -> bool:
        """Whether ``leaders`` takes less time than the whole head. Either way the outputs that matter are the same."""
        most, rows = int(keep.max()), keep.shape[0]
        if drawn and rows > (MOST_DRAWN_NARROW if self.inputs < NARROW else MOST_DRAWN):
            return False
        return most <= min(MOST_KEPT, self.choosable) and rows <= self._most_rows[most > 1]

    def leaders(
        self,
        x: Tensor,
        keep: Tensor,
        weight: Tensor | None = None,
        eps: float = 0.0,
        draws: Sequence[tuple[float, int, int]] | None = None,
        likeliest: Tensor | None = None,
    ) -> Tensor:
        """Outputs [rows, outputs] for x [rows, inputs], or for x / rms(x) * ``weight``: of row i the ``keep[i]`` (int64, 1 to 64)
        largest choosable ones are exact, and every other lies below them.

        ``draws``: of each row temperature, seed and position (temperature 0: nothing is drawn). Then that choosable output, too,
        is exact for which output / temperature + noise (``sampling.noise``) is largest, and all others lie below by that.

        ``likeliest`` int64 [rows, 0 to 64] takes the choosable ones that are largest in what is returned, descending, equal ones
        by id, -1 behind those above -infinity."""
        rows = x.shape[0]
        start, kept = _need(x, torch.float32, (rows, self.inputs)), _need(keep, torch.int64, (rows,))
        norm = None if weight is None else _need(weight, torch.float32, (self.inputs,))
        chances = None if draws is None else (DrawFields * rows)(*(DrawFields(*draw) for draw in draws))
        out = torch.empty(rows, self.outputs)
        count = 0 if likeliest is None else likeliest.shape[1]
        ids = None if likeliest is None else _need(likeliest, torch.int64, (rows, count))
        check(self._call(self._address, start, norm, eps, kept, chances, out.data_ptr(), rows, count, ids))
        return out

    def _draw(self, packed: Tensor, scale: Tensor, block: int) -> float:
        """Fill ``packed``, ``scale`` and the lengths of errors; returns the longest output against its error."""
        pairs, tiles = -(-self.outputs // PAIR_OUTPUTS), -(-self.inputs // TILE_INPUTS)
        tile_bytes = tiles * PAIR_BYTES_4
        longest = 0.0
        for first in range(0, self.outputs, PIECE_OUTPUTS):
            count = min(PIECE_OUTPUTS, self.outputs - first)
            error = self._error[first : first + count]
            rough = packed.data_ptr() + first // PAIR_OUTPUTS * tile_bytes
            sums = packed.data_ptr() + pairs * tile_bytes + 4 * first
            if isinstance(self.exact, PackedLinear):
                source, own = self.exact.packed.data_ptr() + first // PAIR_OUTPUTS * tiles * PAIR_BYTES, self.exact.scale[first:]
                self._pack(source, own, count, block, rough, sums, error)
                scale[first : first + count] = own[:count]
                continue
            rows = self.exact.parts[0].rows(torch.arange(first, first + count))
            codes, own = RowKernels(self._library).quantise(rows, block)
            piece = PackedLinear(self._library, codes, own, None, block)
            self._pack(piece.packed.data_ptr(), own, count, block, rough, sums, error)
            scale[first : first + count] = own
            error.square_().add_(own.square() / 12).sqrt_()  # rounding to int8 is a part of what is off
            longest = max(longest, float((rows.norm(dim=1) / error.clamp(min=1e-30)).max()))
        return longest

    def _pack(self, packed: int, scale: Tensor, count: int, block: int, rough: int, sums: int, error: Tensor) -> None:
        sizes = count, self.inputs, block
        check(self._library.call["hst_sketch_pack"](packed, scale.data_ptr(), *sizes, rough, sums, error.data_ptr()))
