"""The kernels as PyTorch sees them: objects that hold what does not change (weights, pools, a step's layout) and take CPU tensors.

Everything is row-major and contiguous; rows are float32. A row's result has the same bits whatever other rows, threads or layout
the call has, and at every instruction set (attention: AVX2 and above; generic differs in rounding).
Where sizes or types are wrong the constructors and calls raise ValueError; such a call is a mistake of ours, not of the user.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from hasten.native.loader import NativeLibrary, check
from hasten.native.memory import aligned_bytes

Activation = Literal["silu", "gelu_tanh"]

_PLAIN, _NORM = 0, 1
_GATES = {"silu": 2, "gelu_tanh": 3}
BLOCK_SIZE = 64
GROUP_INPUTS = 32  # CODE_GROUP of linear.h


def _need(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """The address of a tensor that is what the kernel expects."""
    if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_contiguous() or not tensor.is_cpu:
        raise ValueError(f"needs a contiguous {dtype} tensor {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
    return tensor.data_ptr()


def _maybe(tensor: Tensor | None, shape: tuple[int, ...]) -> int | None:
    return None if tensor is None else _need(tensor, torch.float32, shape)


class _LinearFields(ctypes.Structure):
    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("bits", ctypes.c_int32),
    )


class FromRows:
    """What every packed layer does with float rows; ``_from_rows`` is its kernel and ``_address`` its fields."""

    outputs: int
    inputs: int
    _address: int
    _from_rows: Callable[..., int]

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [rows, inputs] to [rows, outputs]; ``residual`` [rows, outputs] is added."""
        return self._run(x, self.inputs, None, 0.0, _PLAIN, residual)

    def after_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """The layer applied to x / rms(x) * weight; ``weight`` [inputs]."""
        return self._run(x, self.inputs, _need(weight, torch.float32, (self.inputs,)), eps, _NORM, residual)

    def after_gate(self, gate_up: Tensor, activation: Activation, residual: Tensor | None = None) -> Tensor:
        """The layer applied to activation(gate) * up; ``gate_up`` [rows, 2 * inputs] holds gate and then up."""
        return self._run(gate_up, 2 * self.inputs, None, 0.0, _GATES[activation], residual)

    def _run(self, x: Tensor, width: int, weight: int | None, eps: float, source: int, residual: Tensor | None) -> Tensor:
        rows = x.shape[0]
        start, added = _need(x, torch.float32, (rows, width)), _maybe(residual, (rows, self.outputs))
        out = torch.empty(rows, self.outputs)
        check(self._from_rows(self._address, start, weight, eps, source, added, out.data_ptr(), rows))
        return out


class _Linear(FromRows):
    """What layers of both widths share: calls over packed weights."""

    def __init__(
        self, library: NativeLibrary, packed: Tensor, scale: Tensor, bias: Tensor | None, inputs: int, block: int, bits: int
    ) -> None:
        self.outputs, self.inputs = scale.shape[0], inputs
        if block > 1 and (block & (block - 1) or block > 512 or inputs % block):
            raise ValueError(f"the Hadamard block must be a power of two up to 512 that divides {inputs}, not {block}")
        self._packed, self._scale, self._bias = packed, scale, bias
        scales, biases = _need(scale, torch.float32, (self.outputs,)), _maybe(bias, (self.outputs,))
        self._fields = _LinearFields(packed.data_ptr(), scales, biases, self.outputs, inputs, block, bits)
        self._address = ctypes.addressof(self._fields)
        self._from_rows = library.call["hst_rows_linear"]
        self._from_codes = library.call["hst_linear"]
        self._top = library.call["hst_rows_linear_top"]

    @property
    def bytes(self) -> int:
        return self._packed.numel()

    @property
    def packed(self) -> Tensor:
        """The packed bytes, for keeping: uint8 [bytes]."""
        return self._packed

    @property
    def scale(self) -> Tensor:
        """float32 [outputs]."""
        return self._scale

    def top_k(self, x: Tensor, k: int, weight: Tensor | None = None, eps: float = 0.0) -> tuple[Tensor, Tensor]:
        """The ``k`` (1 to 16) largest outputs of each row, of ``after_norm`` where there is a ``weight``: ids int64 and values
        float32 [rows, k], descending, equal values by id. No rows x outputs are kept anywhere. Where a row has fewer outputs above
        -infinity, ids are -1 behind them."""
        if not 1 <= k <= min(16, self.outputs):
            raise ValueError(f"k must be from 1 to {min(16, self.outputs)}, not {k}")
        rows = x.shape[0]
        start = _need(x, torch.float32, (rows, self.inputs))
        norm, source = _maybe(weight, (self.inputs,)), _PLAIN if weight is None else _NORM
        ids, values = torch.empty(rows, k, dtype=torch.int64), torch.empty(rows, k)
        check(self._top(self._address, start, norm, eps, source, rows, k, ids.data_ptr(), values.data_ptr()))
        return ids, values

    def argmax(self, x: Tensor, weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
        """The largest output of each row, the lowest id among equals: int64 [rows]. Arguments as for ``top_k``."""
        return self.top_k(x, 1, weight, eps)[0][:, 0]

    def from_codes(self, codes: Tensor, scale: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The layer applied to int8 rows [rows, inputs] with float32 scales [rows] (rotated already), into ``out`` when given."""
        rows = codes.shape[0]
        out = torch.empty(rows, self.outputs) if out is None else out
        _need(out, torch.float32, (rows, self.outputs))
        source, scales = _need(codes, torch.int8, (rows, self.inputs)), _need(scale, torch.float32, (rows,))
        check(self._from_codes(self._address, source, scales, _maybe(residual, (rows, self.outputs)), out.data_ptr(), rows))
        return out


class PackedLinear(_Linear):
    """y = x W^T + bias + residual with int8 weights, one scale an output, and rows rounded to int8 with a scale each.

    Sums are exact int32; then float32: sum * weight scale * row scale + bias + residual, in this order. Rows are rotated in
    Hadamard blocks of ``block`` before rounding (0: not), so ``weight`` must have been rotated the same way.
    """

    def __init__(self, library: NativeLibrary, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int) -> None:
        """``weight`` int8 [outputs, inputs], copied into the kernel's order; ``scale`` and ``bias`` float32 [outputs], kept."""
        outputs, inputs = weight.shape
        packed = _room(library, 8, outputs, inputs)
        super().__init__(library, packed, scale, bias, inputs, block, 8)
        source = _need(weight, torch.int8, (self.outputs, inputs))
        check(library.call["hst_w8_pack"](source, outputs, inputs, packed.data_ptr()))
        self._unpack = library.call["hst_w8_rows"]

    def rows(self, outputs: Tensor) -> Tensor:
        """Weight rows as float32 [n, inputs] (still rotated) for ``outputs`` int64 [n]: embedding rows of a tied head."""
        if outputs.numel() and (int(outputs.min()) < 0 or int(outputs.max()) >= self.outputs):
            raise ValueError(f"outputs must be from 0 to {self.outputs - 1}")
        count = outputs.shape[0]
        out = torch.empty(count, self.inputs)
        source = _need(outputs, torch.int64, (count,))
        check(self._unpack(self._packed.data_ptr(), self._scale.data_ptr(), self.inputs, source, count, out.data_ptr()))
        return out


class GrowingLinear(_Linear):
    """A ``PackedLinear`` without bias whose outputs are added while it is in use; without any it cannot be called."""

    def __init__(self, library: NativeLibrary, inputs: int, block: int) -> None:
        super().__init__(library, torch.empty(0, dtype=torch.uint8), torch.empty(0), None, inputs, block, 8)
        self._library = library
        self._scales = torch.empty(0)

    def join(self, weight: Tensor, scale: Tensor) -> None:
        """Outputs behind those that are there: ``weight`` int8 [n, inputs] and ``scale`` float32 [n], copied."""
        first, count = self.outputs, weight.shape[0]
        source, scales = _need(weight, torch.int8, (count, self.inputs)), _need(scale, torch.float32, (count,))
        if first + count > self._scales.shape[0]:
            self._move(2 * (first + count))
        ctypes.memmove(self._scales.data_ptr() + 4 * first, scales, 4 * count)
        check(self._library.call["hst_w8_join"](source, first, count, self.inputs, self._packed.data_ptr()))
        self._has(first + count)

    def clear(self) -> None:
        """No outputs any more; the memory stays."""
        self._has(0)

    def _has(self, outputs: int) -> None:
        self.outputs = self._fields.outputs = outputs
        self._scale = self._scales[:outputs]

    def _move(self, room: int) -> None:
        """To memory that takes so many outputs."""
        before, scales = self._packed, self._scale
        self._packed = torch.empty(_packed_bytes(self._library, 8, room, self.inputs), dtype=torch.uint8)
        self._packed[: before.numel()] = before
        self._scales = torch.empty(room)
        self._scales[: len(scales)] = scales
        self._fields.packed, self._fields.scale = self._packed.data_ptr(), self._scales.data_ptr()


class PackedProgressive(_Linear):
    """As ``PackedLinear``, with int8 weights that are kept in four or three bits: weight = code * group scale + group offset, all
    integers, groups of 32 inputs (progressive quantisation: QoQ, 2405.04532). The bits of results are those of ``PackedLinear``
    on these int8 weights.
    """

    def __init__(
        self,
        library: NativeLibrary,
        codes: Tensor,
        group_scale: Tensor,
        group_offset: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        block: int,
        bits: int = 4,
    ) -> None:
        """``codes`` uint8 [outputs, inputs] of ``bits`` (4 or 3); ``group_scale`` uint8 (0 to ``largest_scale``) and
        ``group_offset`` int8 [outputs, groups], one group for every 32 inputs begun; code * scale + offset must lie in int8.
        ``scale``, ``bias`` float32 [outputs]."""
        outputs, inputs = codes.shape
        groups = -(-inputs // GROUP_INPUTS)
        packed = _room(library, bits, outputs, inputs)
        super().__init__(library, packed, scale, bias, inputs, block, bits)
        code_start = _need(codes, torch.uint8, (self.outputs, inputs))
        scale_start = _need(group_scale, torch.uint8, (outputs, groups))
        offset_start = _need(group_offset, torch.int8, (outputs, groups))
        check_progressive(codes, group_scale, group_offset, bits)
        check(library.call["hst_progressive_pack"](bits, code_start, scale_start, offset_start, outputs, inputs, packed.data_ptr()))

    @classmethod
    def from_packed(
        cls, library: NativeLibrary, packed: Tensor, scale: Tensor, bias: Tensor | None, inputs: int, block: int, bits: int
    ) -> PackedProgressive:
        """The layer that once was packed to these bytes (``packed``, from ``aligned_bytes``, of ``packed_bytes`` length)."""
        if packed.numel() != cls.packed_bytes(library, bits, scale.shape[0], inputs):
            raise ValueError(f"{packed.numel()} bytes are not a packed layer of {scale.shape[0]} x {inputs}")
        made = cls.__new__(cls)
        _Linear.__init__(made, library, packed, scale, bias, inputs, block, bits)
        return made

    @staticmethod
    def packed_bytes(library: NativeLibrary, bits: int, outputs: int, inputs: int) -> int:
        """How many bytes a packed layer takes."""
        return library.call["hst_packed_bytes"](bits, outputs, inputs)


def round_progressive(library: NativeLibrary, weight: Tensor, bits: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round float32 weights [outputs, inputs] (rotated already) to what ``PackedProgressive`` takes for ``bits``: codes, group
    scales, group offsets and scales. Each group's integer scale and offset are searched for the least squared error. Finite
    weights only."""
    outputs, inputs = weight.shape
    groups = -(-inputs // GROUP_INPUTS)
    codes = torch.empty(outputs, inputs, dtype=torch.uint8)
    group_scale = torch.empty(outputs, groups, dtype=torch.uint8)
    group_offset = torch.empty(outputs, groups, dtype=torch.int8)
    scale = torch.empty(outputs)
    results = codes, group_scale, group_offset, scale
    start = _need(weight, torch.float32, (outputs, inputs))
    check(library.call["hst_progressive_round"](bits, start, outputs, inputs, *(result.data_ptr() for result in results)))
    return results


class PackedMlp:
    """A whole MLP in one call: out = down(activation(gate) * up) + residual, with [gate, up] = gate_up(x / rms(x) * weight). Same
    bits as ``gate_up.after_norm`` and ``down.after_gate``; the wide middle never becomes a tensor."""

    def __init__(self, library: NativeLibrary, gate_up: _Linear, down: _Linear, activation: Activation) -> None:
        if gate_up.outputs != 2 * down.inputs:
            raise ValueError(f"gate_up gives {gate_up.outputs} values, down takes 2 * {down.inputs}")
        self.gate_up, self.down = gate_up, down
        self._activation = _GATES[activation]
        self._run = library.call["hst_mlp"]

    def __call__(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """x [rows, inputs], norm ``weight`` [inputs], ``residual`` [rows, outputs] to [rows, outputs]."""
        rows, inputs, outputs = x.shape[0], self.gate_up.inputs, self.down.outputs
        start, norm = _need(x, torch.float32, (rows, inputs)), _need(weight, torch.float32, (inputs,))
        added = _maybe(residual, (rows, outputs))
        out = torch.empty(rows, outputs)
        addresses = self.gate_up._address, self.down._address
        check(self._run(*addresses, start, norm, eps, self._activation, added, out.data_ptr(), rows))
        return out


def largest_code(bits: int) -> int:
    return (1 << bits) - 1


def largest_scale(bits: int) -> int:
    """The largest that a group's scale may be: a code times it must fit a byte."""
    return 255 // largest_code(bits)


def check_progressive(codes: Tensor, group_scale: Tensor, group_offset: Tensor, bits: int = 4) -> None:
    """Raise ValueError where codes or scales are out of range or a weight would not be an int8."""
    most, most_scale = largest_code(bits), largest_scale(bits)
    if codes.numel() == 0 or (int(codes.max()) <= most and int(group_scale.max()) <= most_scale):
        weights = expand_progressive(codes, group_scale, group_offset)
        if weights.numel() == 0 or (int(weights.min()) >= -128 and int(weights.max()) <= 127):
            return
    raise ValueError(
        f"codes of {bits} bits must be 0 to {most}, group scales 0 to {most_scale} and every code * scale + offset an int8"
    )


def expand_progressive(codes: Tensor, group_scale: Tensor, group_offset: Tensor) -> Tensor:
    """The weights that codes stand for: int16 [outputs, inputs]."""
    inputs = codes.shape[1]
    scale = group_scale.to(torch.int16).repeat_interleave(GROUP_INPUTS, 1)[:, :inputs]
    offset = group_offset.to(torch.int16).repeat_interleave(GROUP_INPUTS, 1)[:, :inputs]
    return codes.to(torch.int16) * scale + offset


def _room(library: NativeLibrary, bits: int, outputs: int, inputs: int) -> Tensor:
    return aligned_bytes(_packed_bytes(library, bits, outputs, inputs))


def _packed_bytes(library: NativeLibrary, bits: int, outputs: int, inputs: int) -> int:
    size: int = library.call["hst_packed_bytes"](bits, outputs, inputs)
    if size < 0:
        raise ValueError(f"the kernels take 1 to 131008 inputs, not {inputs}")
    return size
