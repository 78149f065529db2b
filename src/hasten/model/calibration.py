"""What every projection of a model is given while it reads a text, one layer after another.

Each projection is made when its turn comes, and the rows go on through what was made: later projections see the errors of the
earlier ones, and can make up for them. Rows of the whole text are kept, weights of one projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hasten.cache.pool import FloatPool
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.model.attention import Attention, make_attention
from hasten.model.description import ModelDescription
from hasten.model.hadamard import hadamard_block, rotate
from hasten.model.layout import lay_out
from hasten.model.linear import Linear, gated, quantise_rows, rms_norm
from hasten.model.precision import Precision
from hasten.model.weights import FusedLinear, Weights, embedding_table, layer_projections, projection_bias

ROWS = 4096  # that go through a layer together
MOMENTS = 1024  # columns of a piece of H
CPU = torch.device("cpu")

Rows = list[Tensor]  # one tensor a batch
Make = Callable[[FusedLinear, Tensor | None, Rows], Linear]  # from a projection, its bias and the rows that it is given


@dataclass(frozen=True, slots=True)
class _Norms:
    """Norm weights of one layer; None where the family has none."""

    attention: Tensor
    mlp: Tensor
    query: Tensor | None
    key: Tensor | None
    post_attention: Tensor | None
    post_mlp: Tensor | None

    @staticmethod
    def read(source: Weights, base: str) -> _Norms:
        names = source.names()

        def maybe(name: str) -> Tensor | None:
            return source.read(base + name).float() if base + name in names else None

        return _Norms(
            source.read(base + "attention_norm").float(),
            source.read(base + "mlp_norm").float(),
            *(maybe(name) for name in ("q_norm", "k_norm", "post_attention_norm", "post_mlp_norm")),
        )


def input_moments(rows: Rows) -> Tensor:
    """The mean of x x^T over all rows as the integer kernels see them, rotated and rounded: float32 [inputs, inputs]."""
    inputs = rows[0].shape[1]
    block = hadamard_block(inputs)
    out = torch.zeros(inputs, inputs)
    for piece in rows:
        codes, scale = quantise_rows(rotate(piece, block))
        seen = codes.float().mul_(scale)
        for start in range(0, inputs, MOMENTS):  # only above the diagonal: the rest is the same
            out[start : start + MOMENTS, start:].addmm_(seen[:, start : start + MOMENTS].T, seen[:, start:])
    out.div_(sum(piece.shape[0] for piece in rows))
    return out.triu_().add_(out.triu(1).T)


class Reader:
    """A text on its way through a model. ``texts``: token ids, each within the context, each on its own."""

    def __init__(self, source: Weights, precision: Precision, texts: Sequence[Sequence[int]]) -> None:
        self._source, self._shape = source, source.description
        batches = _batches(texts)
        self._layouts = [lay_out(batch, CPU) for batch in batches]
        self._attention: tuple[ModelDescription, Attention] | None = None
        blocks = max(1 + segment.blocks[-1] for batch in batches for segment in batch.segments)
        shape = self._shape
        self._pool = FloatPool(1, shape.kv_heads, shape.head_dim, blocks, precision.cache, CPU)
        table = embedding_table(source, precision.embedding)
        self._hidden = [table[layout.tokens].to(precision.stream) * shape.embedding_scale for layout in self._layouts]

    @property
    def hidden(self) -> Rows:
        """The residual stream behind the layers that were read: float32 [rows, hidden] a batch."""
        return self._hidden

    @torch.inference_mode()
    def layer(self, index: int, make: Make) -> None:
        """Take the rows through one layer; ``make`` is asked for its four projections in turn."""
        shape, eps = self._shape, self._shape.norm_eps
        base = f"layers.{index}."
        norms = _Norms.read(self._source, base)
        linears = {linear.name.removeprefix(base): linear for linear in layer_projections(self._source, index)}

        def made(name: str, rows: Rows) -> Linear:
            return make(linears[name], projection_bias(self._source, linears[name], torch.float32), rows)

        rows = [rms_norm(hidden, norms.attention, eps) for hidden in self._hidden]
        qkv = made("qkv", rows)
        attention = self._attention_of(index)
        mixed = []
        for layout, piece in zip(self._layouts, rows, strict=True):
            attention.begin(layout)
            mixed.append(attention(0, qkv(piece), norms.query, norms.key))
        self._add(made("o", mixed), mixed, norms.post_attention)
        rows = [rms_norm(hidden, norms.mlp, eps) for hidden in self._hidden]
        gate_up = made("gate_up", rows)
        inner = [gated(gate_up(piece), shape.activation) for piece in rows]
        self._add(made("down", inner), inner, norms.post_mlp)

    def _add(self, linear: Linear, rows: Rows, norm: Tensor | None) -> None:
        for hidden, piece in zip(self._hidden, rows, strict=True):
            out = linear(piece)
            hidden += out if norm is None else rms_norm(out, norm, self._shape.norm_eps)

    def _attention_of(self, index: int) -> Attention:
        """Attention over the one layer there is room for, with that layer's window."""
        sliding, unrotated = (each[index : index + 1] for each in (self._shape.sliding, self._shape.unrotated))
        shape = replace(self._shape, layers=1, sliding=sliding, unrotated=unrotated)
        if self._attention is None or self._attention[0] != shape:
            self._attention = shape, make_attention(shape, self._pool, [None], torch.float32, CPU)
        return self._attention[1]


def _batches(texts: Sequence[Sequence[int]]) -> list[Batch]:
    """Texts that together have about ``ROWS`` rows, in blocks of their own."""
    out: list[Batch] = []
    segments: list[Segment] = []
    blocks = rows = 0
    for text in texts:
        needed = -(-len(text) // BLOCK_SIZE)
        segments.append(Segment(list(range(blocks, blocks + needed)), 0, list(text)))
        blocks, rows = blocks + needed, rows + len(text)
        if rows >= ROWS:
            out.append(Batch(segments))
            segments, blocks, rows = [], 0, 0
    return [*out, Batch(segments)] if segments else out
