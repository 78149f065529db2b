"""A level of a speculator in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.native.kernels import PackedMlp, _Linear, _need
from hasten.native.loader import NativeLibrary, check


class _GatedLayerFields(ctypes.Structure):
    _fields_ = (("norm", ctypes.c_void_p), ("gate_up", ctypes.c_void_p), ("down", ctypes.c_void_p))


class _SpeculatorFields(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("state", "token", "head", "more")),
        *((name, ctypes.c_void_p) for name in ("state_norm", "token_norm", "final_norm")),
        ("layers", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


class SpeculatorLevel:
    """The same kernels, and the same bits, as the projections one after the other: ``state`` and ``token`` of what is normed,
    added; gated layers, each added to what it is given; then the head's outputs, and behind them those of ``more``, which may
    change."""

    def __init__(
        self,
        library: NativeLibrary,
        state: tuple[Tensor, _Linear],
        token: tuple[Tensor, _Linear],
        layers: Sequence[tuple[Tensor, PackedMlp]],
        final_norm: Tensor,
        head: tuple[_Linear, _Linear],
        eps: float,
    ) -> None:
        """Each norm is float32 [width]. Everything is kept."""
        self._kept = state, token, list(layers), final_norm
        self._head, self._more = head
        self._width = state[1].inputs
        shape = (self._width,)
        gated = [
            _GatedLayerFields(_need(norm, torch.float32, shape), mlp.gate_up._address, mlp.down._address) for norm, mlp in layers
        ]
        self._layers = (_GatedLayerFields * len(gated))(*gated)
        self._fields = _SpeculatorFields(
            *(layer._address for layer in (state[1], token[1], self._head, self._more)),
            *(_need(norm, torch.float32, shape) for norm in (state[0], token[0], final_norm)),
            ctypes.addressof(self._layers),
            len(gated),
            eps,
        )
        self._address = ctypes.addressof(self._fields)
        self._run = library.call["hst_speculator"]

    def __call__(self, states: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [rows, width] both: the states at the embedded tokens [rows, width], and their logits [rows, outputs]."""
        rows = states.shape[0]
        shape = rows, self._width
        sources = _need(states, torch.float32, shape), _need(embedded, torch.float32, shape)
        hidden, logits = torch.empty(shape), torch.empty(rows, self._head.outputs + self._more.outputs)
        check(self._run(self._address, *sources, rows, hidden.data_ptr(), logits.data_ptr()))
        return hidden, logits
