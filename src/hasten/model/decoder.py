"""One decoder for Llama, Qwen 2, Qwen 3, Mistral and Gemma 3 text: what differs between them is data in ``ModelDescription``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from hasten.model.attention import Attention
from hasten.model.description import ModelDescription
from hasten.model.layout import Layout
from hasten.model.linear import Linear, Mlp, rms_norm
from hasten.model.precision import Precision


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: fused projections, and norm weights in the stream dtype (None where the family has none). ``key_bias`` [kv_heads *
    head_dim] is the part of ``qkv``'s bias that keys get."""

    attention_norm: Tensor
    qkv: Linear
    key_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    mlp: Mlp
    post_mlp_norm: Tensor | None


class EmbeddingTable(Protocol):
    """Rows [len(tokens), hidden] for ``tokens`` int64, in a floating dtype; a tensor is one."""

    def __getitem__(self, tokens: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """``embedding`` [vocabulary, hidden]; ``head`` maps hidden to the vocabulary, or to some ids of it."""

    embedding: EmbeddingTable
    layers: list[LayerWeights]
    final_norm: Tensor
    head: Linear


class Decoder:
    """Rows in, logits out. Holds no state of its own: keys and values live in the pool that ``attention`` writes to."""

    def __init__(self, description: ModelDescription, precision: Precision, weights: DecoderWeights) -> None:
        self.description = description
        self.precision = precision
        self.weights = weights

    def with_head(self, head: Linear) -> Decoder:
        """The same decoder with another head; everything else is shared."""
        return Decoder(self.description, self.precision, replace(self.weights, head=head))

    @torch.inference_mode()
    def forward(self, layout: Layout, attention: Attention) -> Tensor:
        """Logits [len(layout.logit_rows), outputs of the head] in the stream dtype. Writes the rows' keys and values."""
        shape = self.description
        hidden = self._hidden(layout, attention)
        logits = self.weights.head.after_norm(hidden, self.weights.final_norm, shape.norm_eps)
        if shape.final_softcap:
            logits = torch.tanh(logits / shape.final_softcap) * shape.final_softcap
        return logits

    @torch.inference_mode()
    def hidden(self, layout: Layout, attention: Attention) -> Tensor:
        """What the head would be given, [len(layout.logit_rows), hidden] in the stream dtype: the last layer's output, normalised.
        Writes the rows' keys and values."""
        return rms_norm(self._hidden(layout, attention), self.weights.final_norm, self.description.norm_eps)

    def _hidden(self, layout: Layout, attention: Attention) -> Tensor:
        shape = self.description
        attention.begin(layout)
        hidden = self.weights.embedding[layout.tokens].to(self.precision.stream)
        if shape.embedding_scale != 1.0:
            hidden *= shape.embedding_scale
        for index, layer in enumerate(self.weights.layers):
            hidden = self._layer(index, layer, hidden, attention)
        if layout.logit_rows.numel() != hidden.shape[0]:
            hidden = hidden[layout.logit_rows]
        return hidden

    def _layer(self, index: int, layer: LayerWeights, hidden: Tensor, attention: Attention) -> Tensor:
        eps = self.description.norm_eps
        qkv = layer.qkv.after_norm(hidden, layer.attention_norm, eps)
        mixed = attention(index, qkv, layer.query_norm, layer.key_norm)
        if layer.post_attention_norm is None or layer.post_mlp_norm is None:
            hidden = layer.output(mixed, residual=hidden)
            return layer.mlp(hidden, layer.mlp_norm, eps, residual=hidden)
        hidden = hidden + rms_norm(layer.output(mixed), layer.post_attention_norm, eps)
        return hidden + rms_norm(layer.mlp(hidden, layer.mlp_norm, eps), layer.post_mlp_norm, eps)
