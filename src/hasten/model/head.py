"""A head over part of the vocabulary: some rows of the whole one, as they are, and a few more that change while it runs.

For draft models only (VocabTrim, 2506.22694): what the target says is decided over its whole vocabulary.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hasten.model.conversion import ConvertedReader, is_converted
from hasten.model.decoder import Decoder
from hasten.model.description import Activation
from hasten.model.linear import DenseLinear, Growing, Linear, growing_linear, int8_linear
from hasten.model.linear_file import head_in_codes
from hasten.model.linear_packed import few_bits_run, rounded_again
from hasten.model.precision import INT3
from hasten.model.weights import Weights, conversion_plan

IntArray = npt.NDArray[np.int64]

MOST_RECENT = 64  # rows of a trimmed head that are copied once more for each that joins them
MIDDLE = 8  # times as many that are copied once more for each time that the recent ones join them


class HeadRows(Protocol):
    """Makes a projection of some rows of the whole head; ``ids`` int64, none below 0 or beyond the head."""

    def __call__(self, ids: IntArray) -> Linear: ...


class Part(Protocol):
    """What changes of a trimmed head: the projections of ``hold``'s ids, none where there are none."""

    def hold(self, ids: IntArray) -> None: ...
    def layers(self) -> list[Linear]: ...


class DenseRows:
    """Rows of a matrix in memory, of the dtype of the projections."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, ids: IntArray) -> Linear:
        return DenseLinear(self._weight[torch.from_numpy(ids).to(self._weight.device)], None)


class ConvertedRows:
    """int8 rows of a converted file: the very codes and scales of the whole head, so that a logit has the same bits; or with
    ``four_bits`` rounded to those, beside layers that have fewer. The file is mapped, not held: memory has only what is chosen."""

    def __init__(self, codes: npt.NDArray[Any], scale: npt.NDArray[Any], four_bits: bool) -> None:
        self._codes, self._scale, self._four_bits = codes, scale, four_bits

    def in_four_bits(self) -> ConvertedRows:
        return ConvertedRows(self._codes, self._scale, True)

    def __call__(self, ids: IntArray) -> Linear:
        codes, scale = torch.from_numpy(self._codes[ids]), torch.from_numpy(self._scale[ids])
        return rounded_again(codes, scale, 4) if self._four_bits else int8_linear(codes, scale, None)

    def joining(self) -> Joining | None:
        """A part that new rows join one by one, where a kernel has such."""
        layer = None if self._four_bits else growing_linear(self._codes.shape[1])
        return None if layer is None else Joining(self._codes, self._scale, layer)


class Joining:
    """Rows that join those that are there: nothing of these is copied again."""

    def __init__(self, codes: npt.NDArray[Any], scale: npt.NDArray[Any], layer: Growing) -> None:
        self._codes, self._scale = codes, scale
        self.layer = layer  # the same object whatever is held
        self._ids = np.empty(0, np.int64)

    def hold(self, ids: IntArray) -> None:
        known = len(self._ids)
        if not np.array_equal(ids[:known], self._ids):
            self.layer.clear()
            known = 0
        if len(ids) > known:
            new = ids[known:]
            self.layer.join(torch.from_numpy(self._codes[new]), torch.from_numpy(self._scale[new]))
        self._ids = ids

    def layers(self) -> list[Linear]:
        return [self.layer] if self.layer.outputs else []


class Runs:
    """Rows copied once more, or a few of them where the ids begin as they did: they stand in three runs, and one that has grown
    too long joins the one before it (as in a log-structured merge tree)."""

    def __init__(self, rows: HeadRows) -> None:
        self._rows = rows
        self._runs: list[tuple[IntArray, Linear | None]] = [(np.empty(0, np.int64), None)] * 3

    def hold(self, ids: IntArray) -> None:
        runs = [ids[first:last] for first, last in pairwise(self._borders(ids))]
        self._runs = [
            (held, layer) if np.array_equal(held, new) else (new, self._rows(new) if len(new) else None)
            for (held, layer), new in zip(self._runs, runs, strict=True)
        ]

    def layers(self) -> list[Linear]:
        return [layer for _, layer in self._runs if layer is not None]

    def _borders(self, ids: IntArray) -> tuple[int, int, int, int]:
        """Where the runs of ``ids`` begin and end: those that are there stay, unless the last one has grown too long."""
        (settled_ids, _), (middle_ids, _), _ = self._runs
        settled = len(settled_ids)
        if not np.array_equal(ids[:settled], settled_ids):
            return 0, len(ids), len(ids), len(ids)
        middle = settled + len(middle_ids)
        if not np.array_equal(ids[settled:middle], middle_ids):
            middle = settled
        if len(ids) - middle > MOST_RECENT:
            middle = len(ids)
        return 0, middle if middle - settled > MOST_RECENT * MIDDLE else settled, middle, len(ids)


def rows_for_guesses(rows: HeadRows) -> HeadRows:
    """The same in four bits, where they are converted ones and a kernel multiplies these: a guess need not be of the same bits."""
    return rows.in_four_bits() if isinstance(rows, ConvertedRows) and few_bits_run() else rows


def head_rows(source: Weights, decoder: Decoder, converted: Path | None) -> HeadRows | None:
    """Where rows of the decoder's whole head are found, other than in the head; None where they are nowhere (int8 weights that
    could not be kept on disk). No head of any family has a bias.

    A dense head that is tied to the embedding is found there, where the dtype is the same; one that is not stays in memory, and so
    does one that is in a file's own codes.
    """
    head, embedding = decoder.weights.head, decoder.weights.embedding
    if isinstance(head, DenseLinear):
        tied = source.description.tied_head and isinstance(embedding, Tensor) and embedding.dtype is head.weight.dtype
        return DenseRows(embedding if tied and isinstance(embedding, Tensor) else head.weight)
    if (in_codes := head_in_codes(head)) is not None:
        return in_codes
    plan = conversion_plan(source, decoder.precision)
    if converted is None or not is_converted(converted, plan, source.fingerprint):
        return None
    reader = ConvertedReader(converted, plan, source.fingerprint)
    try:
        return ConvertedRows(reader.map("head.codes"), reader.map("head.scale"), decoder.precision is INT3)
    finally:
        reader.close()  # the maps stay


class TrimmedHead:
    """A ``Linear`` whose outputs are those of ``ids``: a fixed choice, then whatever ``hold`` was last given.

    The whole head is not needed any more once this is made (but see ``head_rows``). ``fixed_rows``: where the rows of the fixed
    choice come from, if not from ``rows``.
    """

    def __init__(self, rows: HeadRows, fixed: IntArray, fixed_rows: HeadRows | None = None) -> None:
        self._fixed = (fixed_rows or rows)(fixed)
        joining = rows.joining() if isinstance(rows, ConvertedRows) else None
        self._changing: Part = Runs(rows) if joining is None else joining
        self.fixed = fixed
        self.ids = fixed
        self.outputs, self.inputs = len(fixed), self._fixed.inputs

    def hold(self, more: IntArray) -> None:
        """Replace what comes after the fixed ids. Costs little where ``more`` begins as it did."""
        self._changing.hold(more)
        self.ids = np.concatenate([self.fixed, more])
        self.outputs = len(self.ids)

    @property
    def lasting(self) -> tuple[Linear, Linear | None]:
        """The projections of the fixed ids and of those behind them; None for these where the object changes."""
        return self._fixed, self._changing.layer if isinstance(self._changing, Joining) else None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        parts = [part(x) for part in self._parts()]
        return _joined(parts, residual)

    def after_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _joined([part.after_norm(x, weight, eps) for part in self._parts()], None)

    def after_gate(self, gate_up: Tensor, activation: Activation, residual: Tensor | None = None) -> Tensor:
        return _joined([part.after_gate(gate_up, activation) for part in self._parts()], residual)

    def _parts(self) -> list[Linear]:
        return [self._fixed, *self._changing.layers()]


def _joined(parts: list[Tensor], residual: Tensor | None) -> Tensor:
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return out if residual is None else out.add_(residual)
