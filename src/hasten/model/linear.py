"""Linear layers in every precision, with the two operations that always stand before them (norm, gate) at the same border, so
that a kernel may fuse them. The only file besides ``attention`` that chooses kernels.

Shapes: x is [rows, inputs] in the stream dtype, results are [rows, outputs] in the stream dtype.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.model.description import Activation
from hasten.model.hadamard import hadamard_block, rotate
from hasten.native.kernels import GrowingLinear, PackedLinear, PackedMlp, PackedProgressive
from hasten.native.loader import load

PACKED = (PackedLinear, PackedProgressive)  # projections that a kernel of several takes
ACTIVATIONS = {"silu": F.silu, "gelu_tanh": lambda gate: F.gelu(gate, approximate="tanh")}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (RMSNorm, 1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up, where gate and up are the halves of the last dimension."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate).mul_(up)


class Linear(Protocol):
    """y = x W^T + bias (+ residual), plain or after one of the two operations that stand before a projection."""

    outputs: int
    inputs: int

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor: ...

    def after_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def after_gate(self, gate_up: Tensor, activation: Activation, residual: Tensor | None = None) -> Tensor: ...


class Mlp(Protocol):
    """down(activation(gate) * up) + residual, with [gate, up] = gate_up(x / rms(x) * weight)."""

    @property
    def gate_up(self) -> Linear: ...

    @property
    def down(self) -> Linear: ...

    def __call__(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor: ...


class ComposedMlp:
    """The two projections one after the other."""

    def __init__(self, gate_up: Linear, down: Linear, activation: Activation) -> None:
        self.gate_up = gate_up
        self.down = down
        self._activation: Activation = activation

    def __call__(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        return self.down.after_gate(self.gate_up.after_norm(x, weight, eps), self._activation, residual)


def make_mlp(gate_up: Linear, down: Linear, activation: Activation) -> Mlp:
    """One kernel for the whole MLP where both projections are packed for the native kernels."""
    library = load()
    if library is not None and isinstance(gate_up, PACKED) and isinstance(down, PACKED):
        return PackedMlp(library, gate_up, down, activation)
    return ComposedMlp(gate_up, down, activation)


class ComposedLinear:
    """The two operations in front as steps of their own; subclasses say what ``__call__`` is."""

    def __init__(self, outputs: int, inputs: int, bias: Tensor | None) -> None:
        self.outputs = outputs
        self.inputs = inputs
        self.bias = bias

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def after_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self(rms_norm(x, weight, eps))

    def after_gate(self, gate_up: Tensor, activation: Activation, residual: Tensor | None = None) -> Tensor:
        return self(gated(gate_up, activation), residual)


class DenseLinear(ComposedLinear):
    """Weights in a floating dtype; rows are cast to it and the result back to the stream's."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], bias)
        self.weight = weight

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = F.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)
        if self.bias is not None:
            out += self.bias
        return out if residual is None else out.add_(residual)


class Int8Linear(ComposedLinear):
    """int8 weights, one scale an output; rows rotated (``hadamard``) and rounded to int8, one scale a row; exact int32 sums through
    oneDNN. A row's sum does not depend on the other rows of the call."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """``weight`` int8 [outputs, inputs], already rotated; ``scale`` float32 [outputs]."""
        super().__init__(weight.shape[0], weight.shape[1], bias)
        self.scale = scale
        self._block = hadamard_block(self.inputs)
        self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self._zero_points = torch.zeros(self.outputs, dtype=torch.int32)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        codes, scale = quantise_rows(rotate(x, self._block))
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, self._packed, self.scale, self._zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out.mul_(scale)
        if self.bias is not None:
            out += self.bias
        return out if residual is None else out.add_(residual)


def int8_linear(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Linear:
    """The native kernel where it is built, else oneDNN through PyTorch. Same arguments as ``Int8Linear``."""
    library = load()
    if library is None:
        return Int8Linear(weight, scale, bias)
    return PackedLinear(library, weight, scale, bias, hadamard_block(weight.shape[1]))


class Growing(Linear, Protocol):
    """A projection that outputs join while it is in use; without any it cannot be called."""

    def join(self, weight: Tensor, scale: Tensor) -> None:
        """``weight`` int8 [n, inputs] (rotated) and ``scale`` float32 [n] behind those that are there; copied."""

    def clear(self) -> None: ...


def growing_linear(inputs: int) -> Growing | None:
    """One of int8 without outputs; None where the native kernels are not built."""
    library = load()
    return None if library is None else GrowingLinear(library, inputs, hadamard_block(inputs))


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 with its own scale: int8 [rows, n], float32 [rows, 1] with x ~ codes * scale. A row of zeros has
    scale tiny, not 0, so that nothing divides by zero."""
    scale = (x.abs().amax(-1, keepdim=True) / 127.0).clamp_min_(torch.finfo(x.dtype).tiny)
    return (x / scale).round_().to(torch.int8), scale
