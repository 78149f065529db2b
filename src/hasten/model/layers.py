"""The layers of a decoder over one pool: one kernel call for all of them where every part is a kernel, else one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.cache.pool import Pool
from hasten.model.attention import Attention, NativeAttention, make_attention, window_of
from hasten.model.decoder import Layers, LayerWeights
from hasten.model.description import ModelDescription
from hasten.model.layout import Layout
from hasten.model.linear import rms_norm
from hasten.native.kernels import FromRows
from hasten.native.layers import LayerParts, LayerStack
from hasten.native.loader import load


def _wanted(layout: Layout) -> Tensor | None:
    """The rows that anything is asked of behind the last layer; None for all. Of the others, which are most of a prompt, only the
    last layer's keys and values are needed."""
    return layout.logit_rows if layout.logit_rows.numel() != layout.tokens.numel() else None


class ComposedLayers:
    """Each layer's projections, attention and MLP as calls of their own."""

    def __init__(self, description: ModelDescription, layers: list[LayerWeights], attention: Attention) -> None:
        self._eps, self._layers, self._attention = description.norm_eps, layers, attention
        self._wanted: Tensor | None = None

    def begin(self, layout: Layout) -> None:
        self._attention.begin(layout)
        self._wanted = _wanted(layout)

    def __call__(self, hidden: Tensor) -> Tensor:
        for index, layer in enumerate(self._layers):
            hidden = self._layer(index, layer, hidden)
        return hidden

    def _layer(self, index: int, layer: LayerWeights, hidden: Tensor) -> Tensor:
        eps = self._eps
        qkv = layer.qkv.after_norm(hidden, layer.attention_norm, eps)
        mixed = self._attention(index, qkv, layer.query_norm, layer.key_norm)
        if self._wanted is not None and index == len(self._layers) - 1:
            mixed, hidden = mixed[self._wanted], hidden[self._wanted]
        if layer.post_attention_norm is None or layer.post_mlp_norm is None:
            hidden = layer.output(mixed, residual=hidden)
            return layer.mlp(hidden, layer.mlp_norm, eps, residual=hidden)
        hidden = hidden + rms_norm(layer.output(mixed), layer.post_attention_norm, eps)
        return hidden + rms_norm(layer.mlp(hidden, layer.mlp_norm, eps), layer.post_mlp_norm, eps)


class NativeLayers:
    """One kernel call for all layers."""

    def __init__(self, stack: LayerStack, attention: NativeAttention) -> None:
        self._stack, self._attention = stack, attention
        self._wanted: Tensor | None = None

    def begin(self, layout: Layout) -> None:
        self._attention.begin(layout)
        self._wanted = _wanted(layout)

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._stack(hidden, *self._attention.rotations, self._wanted)


def make_layers(
    description: ModelDescription, layers: list[LayerWeights], pool: Pool, stream: torch.dtype, device: torch.device
) -> Layers:
    """The layers over ``pool``, in the fastest way that these weights and this machine have."""
    attention = make_attention(description, pool, [layer.key_bias for layer in layers], stream, device)
    library = load()
    if library is not None and isinstance(attention, NativeAttention):
        parts = [_parts(layer, description, window_of(description, index)) for index, layer in enumerate(layers)]
        packed = [each for each in parts if each is not None]
        if len(packed) == len(layers):
            return NativeLayers(LayerStack(library, packed, attention.kernel, description.norm_eps), attention)
    return ComposedLayers(description, layers, attention)


def _parts(layer: LayerWeights, description: ModelDescription, window: int) -> LayerParts | None:
    """The layer as the kernels take it; None where a projection is none of theirs."""
    qkv, output, gate_up, down = layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down
    if not (
        isinstance(qkv, FromRows) and isinstance(output, FromRows) and isinstance(gate_up, FromRows) and isinstance(down, FromRows)
    ):
        return None
    return LayerParts(
        qkv,
        output,
        gate_up,
        down,
        description.activation,
        layer.attention_norm,
        layer.query_norm,
        layer.key_norm,
        layer.post_attention_norm,
        layer.mlp_norm,
        layer.post_mlp_norm,
        window,
    )
