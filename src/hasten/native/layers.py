"""All layers of a decoder over one pool in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.native.attention import StepAttention
from hasten.native.grouped import GroupedLinear
from hasten.native.kernels import _GATES, Activation, FromRows, _maybe, _need
from hasten.native.loader import NativeLibrary, check

FEW_ROWS = 64  # up to so many all layers are one call; more go layer by layer, so that an interruption need not wait for all


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer: packed projections; float32 norms, None where there are none; ``window`` 0 where a row sees everything."""

    qkv: FromRows
    output: FromRows
    gate_up: FromRows
    down: FromRows
    activation: Activation
    attention_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    post_mlp_norm: Tensor | None
    window: int


class _ProjectionFields(ctypes.Structure):
    _fields_ = (
        ("fields", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("grouped", ctypes.c_int32),
    )

    @classmethod
    def of(cls, layer: FromRows) -> _ProjectionFields:
        return cls(layer._address, layer.outputs, layer.inputs, int(isinstance(layer, GroupedLinear)))


class _LayerFields(ctypes.Structure):
    _fields_ = (
        *((name, _ProjectionFields) for name in ("qkv", "output", "gate_up", "down")),
        *(
            (name, ctypes.c_void_p)
            for name in ("attention_norm", "query_norm", "key_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm")
        ),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "cache")),
        ("window", ctypes.c_int64),
        ("activation", ctypes.c_int32),
    )


class LayerStack:
    """``hidden`` through every layer: the same kernels, and the same bits, as one after the other (where there are norms behind
    attention and MLP, Gemma 3, these are kernels too)."""

    def __init__(self, library: NativeLibrary, layers: Sequence[LayerParts], attention: StepAttention, eps: float) -> None:
        """``attention`` must have begun a step before each call. The layers and it are kept. Raises ValueError where sizes do not
        fit each other."""
        self._kept = list(layers), attention
        self._width, self._eps, self._attention = layers[0].qkv.inputs, eps, attention
        fields = [self._fields_of(layer, attention.pool_of(index)) for index, layer in enumerate(layers)]
        self._layers = (_LayerFields * len(fields))(*fields)
        self._starts = [ctypes.addressof(self._layers) + index * ctypes.sizeof(_LayerFields) for index in range(len(fields))]
        self._angles = (ctypes.c_void_p * 4)()
        self._run = library.call["hst_layers"]

    def _fields_of(self, layer: LayerParts, pool: tuple[int | None, int | None, int | None]) -> _LayerFields:
        width, dim = self._width, self._attention.head_dim
        attended = self._attention.heads * dim
        shapes = (layer.qkv.inputs, layer.output.inputs, layer.output.outputs, layer.gate_up.inputs, layer.down.outputs)
        if shapes != (width, attended, width, width, width) or layer.qkv.outputs != self._attention.width:
            raise ValueError(f"the projections of a layer do not fit {width} wide rows and {self._attention.heads} heads of {dim}")
        return _LayerFields(
            *(_ProjectionFields.of(each) for each in (layer.qkv, layer.output, layer.gate_up, layer.down)),
            _need(layer.attention_norm, torch.float32, (width,)),
            _maybe(layer.query_norm, (dim,)),
            _maybe(layer.key_norm, (dim,)),
            _maybe(layer.post_attention_norm, (width,)),
            _need(layer.mlp_norm, torch.float32, (width,)),
            _maybe(layer.post_mlp_norm, (width,)),
            *pool,
            layer.window,
            _GATES[layer.activation],
        )

    def __call__(
        self, hidden: Tensor, everywhere: tuple[Tensor, Tensor], windowed: tuple[Tensor, Tensor], wanted: Tensor | None = None
    ) -> Tensor:
        """``hidden`` float32 [rows of the step, width] is overwritten; returned are its rows behind the last layer, of ``wanted``
        int64 [n], ascending, these alone: what no other row sees is not computed for the rest. Cosines and sines [rows,
        head_dim / 2] are those of layers that see everything, and of those with a window."""
        rows = hidden.shape[0]
        start = _need(hidden, torch.float32, (self._attention.rows, self._width))
        shape = rows, self._attention.head_dim // 2
        for place, angles in enumerate((everywhere[0], windowed[0], everywhere[1], windowed[1])):
            self._angles[place] = _need(angles, torch.float32, shape)
        together = len(self._starts) if rows <= FEW_ROWS else 1
        step, angles_at = self._attention.address, ctypes.addressof(self._angles)
        chosen, count = (None, -1) if wanted is None else (_need(wanted, torch.int64, (len(wanted),)), len(wanted))
        calls = self._starts[::together]
        for call, first in enumerate(calls, start=1):
            last = (chosen, count) if call == len(calls) else (None, -1)
            check(self._run(step, first, together, angles_at, self._eps, start, rows, self._width, *last))
        return hidden if wanted is None else hidden[:count]
