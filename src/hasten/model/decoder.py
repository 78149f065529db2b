"""One decoder for all families of ``description.Family``: what differs between them is data in ``ModelDescription``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

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


class Sketch(Protocol):
    """A head's largest outputs, without the whole head (``sketch.sketch_of``). ``keep`` int64 [rows]: how many of each row's.
    ``draws`` as in ``Layout``. ``likeliest`` int64 [rows, n] takes the ids of the n largest, -1 where there are fewer."""

    @property
    def bytes(self) -> int: ...

    def pays(self, keep: Tensor, drawn: bool) -> bool: ...

    def leaders(
        self,
        x: Tensor,
        keep: Tensor,
        weight: Tensor,
        eps: float,
        draws: Sequence[tuple[float, int, int]] | None,
        likeliest: Tensor | None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """``embedding`` [vocabulary, hidden]; ``head`` maps hidden to the vocabulary, or to some ids of it; ``sketch`` finds the
    largest of its outputs sooner."""

    embedding: EmbeddingTable
    layers: list[LayerWeights]
    final_norm: Tensor
    head: Linear
    sketch: Sketch | None = None


class Layers(Protocol):
    """All layers over one pool (``layers.make_layers``). ``begin`` prepares what they share in a step; ``__call__`` takes hidden
    rows [rows, hidden], which it may overwrite, to those of ``Layout.logit_rows`` behind the last layer."""

    def begin(self, layout: Layout) -> None: ...

    def __call__(self, hidden: Tensor) -> Tensor: ...


class Decoder:
    """Rows in, logits out. Holds no state of its own: keys and values live in the pool that ``layers`` write to."""

    def __init__(self, description: ModelDescription, precision: Precision, weights: DecoderWeights) -> None:
        self.description = description
        self.precision = precision
        self.weights = weights

    def with_head(self, head: Linear) -> Decoder:
        """The same decoder with another head; everything else is shared."""
        return Decoder(self.description, self.precision, replace(self.weights, head=head, sketch=None))

    def with_sketch(self, sketch: Sketch | None) -> Decoder:
        """The same decoder with another way to the largest logits."""
        return Decoder(self.description, self.precision, replace(self.weights, sketch=sketch))

    @torch.inference_mode()
    def logits(self, hidden: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
        """[len(layout.logit_rows), outputs of the head] in the stream dtype from these rows' ``states``, exact where
        ``layout.leaders`` says; and ids int64 [rows, ``batch.likeliest``] of the largest of each, None where they are not asked
        for or would have to be looked for."""
        shape, weights, wanted = self.description, self.weights, layout.batch.likeliest
        keep, sketch = layout.leaders, self._sketch_for(layout)
        likeliest = None
        if sketch is not None and keep is not None:
            likeliest = torch.empty((len(keep), wanted), dtype=torch.int64) if wanted else None
            logits = sketch.leaders(hidden, keep, weights.final_norm, shape.norm_eps, layout.draws, likeliest)
        else:
            logits = weights.head.after_norm(hidden, weights.final_norm, shape.norm_eps)
        if shape.final_softcap:
            logits = torch.tanh(logits / shape.final_softcap) * shape.final_softcap
        return logits, likeliest

    @torch.inference_mode()
    def hidden(self, layout: Layout, layers: Layers) -> Tensor:
        """What the head would be given, [len(layout.logit_rows), hidden] in the stream dtype: the last layer's output, normalised.
        Writes the rows' keys and values."""
        return rms_norm(self.states(layout, layers), self.weights.final_norm, self.description.norm_eps)

    def _sketch_for(self, layout: Layout) -> Sketch | None:
        """The sketch, where it finds what has to be exact, and sooner. What is drawn it knows from the head's own outputs only."""
        sketch, drawn = self.weights.sketch, layout.draws is not None
        if sketch is None or layout.leaders is None or (drawn and self.description.final_softcap):
            return None
        return sketch if sketch.pays(layout.leaders, drawn) else None

    @torch.inference_mode()
    def states(self, layout: Layout, layers: Layers) -> Tensor:
        """The last layer's output, [len(layout.logit_rows), hidden] in the stream dtype. Writes the rows' keys and values."""
        shape = self.description
        layers.begin(layout)
        hidden = self.weights.embedding[layout.tokens].to(self.precision.stream)
        if shape.embedding_scale != 1.0:
            hidden *= shape.embedding_scale
        return layers(hidden)
