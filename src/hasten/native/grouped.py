"""Linear layers over the codes and scales of GGUF's block formats, as PyTorch sees them: packed once from the file's bytes.

As in ``kernels``: rows are float32, contiguous, on a CPU; a row's result has the same bits whatever other rows, threads or
instruction set the call has. Wrong sizes or types raise ValueError; such a call is a mistake of ours, not of the user.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hasten.native.kernels import FromRows, _maybe, _need
from hasten.native.loader import NativeLibrary, check
from hasten.native.memory import aligned_bytes

# Numbers of ggml's tensor types; block length and bytes as in grouped.h.
KINDS = {
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
}
STRIP_OUTPUTS = 16


class GroupedMatrix:
    """Weights [outputs, inputs] of one block format (a name of ``KINDS``), in the kernels' order; as many bytes as in the file."""

    def __init__(self, library: NativeLibrary, kind: str, outputs: int, inputs: int) -> None:
        """Room for the weights, which ``fill`` brings."""
        self.kind, self.outputs, self.inputs = kind, outputs, inputs
        self._library = library
        self._number, length, size = KINDS[kind]
        if outputs < 1 or inputs < 1 or inputs % length:
            raise ValueError(f"{kind} takes rows of a multiple of {length} inputs, not {outputs} x {inputs}")
        self.row_bytes = inputs // length * size
        self.packed = aligned_bytes(library.call["hst_grouped_packed_bytes"](self._number, outputs, inputs))
        self._strip = self.packed.numel() // -(-outputs // STRIP_OUTPUTS)

    def fill(self, raw: Tensor, first: int = 0) -> None:
        """Take the rows from ``first`` on, a multiple of 16: uint8 [rows, bytes of a row] as in the file. What ends before the last
        output must be a multiple of 16 rows."""
        rows = raw.shape[0]
        if first % STRIP_OUTPUTS or first + rows > self.outputs or (rows % STRIP_OUTPUTS and first + rows < self.outputs):
            raise ValueError(f"rows {first} to {first + rows} are not whole strips of {self.outputs}")
        source = _need(raw, torch.uint8, (rows, self.row_bytes))
        to = self.packed.data_ptr() + first // STRIP_OUTPUTS * self._strip
        check(self._library.call["hst_grouped_pack"](self._number, source, rows, self.inputs, to))

    def rows(self, picked: Tensor) -> Tensor:
        """Rows ``picked`` (int64 [n]) as float32 [n, inputs], with the bits that the loaders give."""
        out = torch.empty(picked.shape[0], self.inputs)
        check(self._library.call["hst_grouped_rows"](*self._arguments(picked), out.data_ptr()))
        return out

    def pick(self, picked: Tensor) -> GroupedMatrix:
        """Rows ``picked`` (int64 [n], n at least 1) as a matrix of their own."""
        out = GroupedMatrix(self._library, self.kind, picked.shape[0], self.inputs)
        check(self._library.call["hst_grouped_pick"](*self._arguments(picked), out.packed.data_ptr()))
        return out

    def _arguments(self, picked: Tensor) -> tuple[int, int, int, int, int]:
        count = picked.shape[0]
        if count and (int(picked.min()) < 0 or int(picked.max()) >= self.outputs):
            raise ValueError(f"rows must be from 0 to {self.outputs - 1}")
        return self._number, self.packed.data_ptr(), self.inputs, _need(picked, torch.int64, (count,)), count


class _PartFields(ctypes.Structure):
    _fields_ = (("packed", ctypes.c_void_p), ("outputs", ctypes.c_int64), ("kind", ctypes.c_int32))


class _LayerFields(ctypes.Structure):
    _fields_ = (
        ("parts", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    )


class GroupedLinear(FromRows):
    """y = x W^T + bias + residual with the outputs of one or more matrices, perhaps of several formats, one after the other.

    Rows are rounded to int8 with a float scale for every 32 inputs. Products are summed exactly within a group, then in float32 in
    an order that grouped.h states.
    """

    def __init__(self, library: NativeLibrary, parts: list[GroupedMatrix], bias: Tensor | None) -> None:
        """``bias`` float32 [outputs of all parts]; it and the matrices are kept."""
        self.parts = parts
        self.inputs, self.outputs = parts[0].inputs, sum(part.outputs for part in parts)
        if any(part.inputs != self.inputs for part in parts):
            raise ValueError("the parts of a layer must have the same inputs")
        self._bias = bias
        fields = [_PartFields(part.packed.data_ptr(), part.outputs, KINDS[part.kind][0]) for part in parts]
        self._parts = (_PartFields * len(parts))(*fields)
        biases = _maybe(bias, (self.outputs,))
        self._fields = _LayerFields(ctypes.addressof(self._parts), biases, len(parts), self.outputs, self.inputs)
        self._address = ctypes.addressof(self._fields)
        self._from_rows = library.call["hst_grouped_linear"]

    @property
    def bytes(self) -> int:
        return sum(part.packed.numel() for part in self.parts)
