"""Norms, gates and rounding of rows, for PyTorch; layers that are packed do these themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.native.kernels import _GATES, _NORM, _PLAIN, Activation, _need
from hasten.native.loader import NativeLibrary, check


class RowKernels:
    """Norms, gates and rounding of rows for layers that are not packed. All take and give [rows, n], float32 unless said."""

    def __init__(self, library: NativeLibrary) -> None:
        self._rows = library.call["hst_rows"]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight; ``weight`` [n]."""
        rows, inputs = x.shape
        return self._floats(x, inputs, _need(weight, torch.float32, (inputs,)), eps, _NORM, rows)

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """activation(gate) * up of [rows, 2 n] to [rows, n]."""
        rows, width = gate_up.shape
        return self._floats(gate_up, width // 2, None, 0.0, _GATES[activation], rows)

    def rotate(self, x: Tensor, block: int) -> Tensor:
        """Orthonormal Hadamard transform of each block of a row."""
        rows, inputs = x.shape
        return self._floats(x, inputs, None, 0.0, _PLAIN, rows, block)

    def quantise(self, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Rotate and round: int8 [rows, n] and float32 [rows] with x ~ codes * scale; a row of zeros has codes 0."""
        rows, inputs = x.shape
        codes, scale = torch.empty(rows, inputs, dtype=torch.int8), torch.empty(rows)
        start = _need(x, torch.float32, (rows, inputs))
        check(self._rows(start, None, 0.0, _PLAIN, rows, inputs, block, codes.data_ptr(), scale.data_ptr(), None))
        return codes, scale

    def _floats(self, x: Tensor, inputs: int, weight: int | None, eps: float, source: int, rows: int, block: int = 0) -> Tensor:
        out = torch.empty(rows, inputs)
        start = _need(x, torch.float32, (rows, x.shape[1]))
        check(self._rows(start, weight, eps, source, rows, inputs, block, None, None, out.data_ptr()))
        return out
