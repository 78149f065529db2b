"""Paged tree attention: write the rows' keys and values, then let each row see its context, its chain and its own path.

``TorchAttention`` runs everywhere and in every dtype; its sums are right to rounding. ``NativeAttention`` takes over on a CPU where
the kernels are built: it reduces over keys in tiles by position, so that a row's bits do not depend on batch, chunks, tree or
prefix. (``linear`` and this file are those that choose kernels.)
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hasten.cache.pool import KeyValuePool
from hasten.core.types import BLOCK_SIZE, Segment
from hasten.model.description import ModelDescription
from hasten.model.layout import Layout, visibility
from hasten.model.linear import rms_norm
from hasten.model.rope import RotaryTable, apply_rotary, rotary_tables
from hasten.native.kernels import PagedAttention
from hasten.native.loader import NativeLibrary, load


class Attention(Protocol):
    """Attention of every layer over one pool. ``begin`` prepares what all layers share in a step; ``__call__`` runs one layer.

    ``qkv`` [rows, (heads + 2 kv_heads) * head_dim] to [rows, heads * head_dim]; norm weights [head_dim] where the family has them
    (Qwen 3, Gemma 3).
    """

    def begin(self, layout: Layout) -> None: ...

    def __call__(self, layer: int, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None) -> Tensor: ...


def make_attention(description: ModelDescription, pool: KeyValuePool, stream: torch.dtype, device: torch.device) -> Attention:
    """The native kernel where it is built and takes these shapes and types, else PyTorch."""
    library = load()
    fits = device.type == "cpu" and stream is torch.float32 and pool.keys.dtype in (torch.float32, torch.bfloat16)
    if library is None or not fits or description.head_dim % 16:
        return TorchAttention(description, pool, stream, device)
    return NativeAttention(library, description, pool, stream, device)


class NativeAttention:
    """One kernel call a layer."""

    def __init__(
        self, library: NativeLibrary, description: ModelDescription, pool: KeyValuePool, stream: torch.dtype, device: torch.device
    ) -> None:
        self._windows = [description.window(layer) for layer in range(description.layers)]
        self._tables = rotary_tables(description, stream, device)
        self._rotations: tuple[tuple[Tensor, Tensor], ...] = ()
        self._kernel = PagedAttention(
            library,
            pool.keys,
            pool.values,
            description.heads,
            description.attention_scale,
            description.attention_softcap,
            description.norm_eps,
        )

    def begin(self, layout: Layout) -> None:
        self._rotations = _rotations(self._tables, layout)
        self._kernel.begin(
            layout.starts, layout.contexts, layout.chains, layout.block_tables, layout.depths, layout.paths, layout.slots
        )

    def __call__(self, layer: int, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None) -> Tensor:
        window = self._windows[layer]
        cos, sin = self._rotations[1 if window else 0]
        return self._kernel(layer, qkv, query_norm, key_norm, cos, sin, window)


def _rotations(tables: tuple[RotaryTable, RotaryTable], layout: Layout) -> tuple[tuple[Tensor, Tensor], ...]:
    """Cosine and sine of the step's rows: for full-attention layers, and for sliding ones."""
    full, local = tables
    rotation = full.rows(layout.positions, layout.highest_position)
    return rotation, rotation if local is full else local.rows(layout.positions, layout.highest_position)


class TorchAttention:
    """Segment by segment: gather the keys and values of its blocks, mask, softmax."""

    def __init__(self, description: ModelDescription, pool: KeyValuePool, stream: torch.dtype, device: torch.device) -> None:
        self._description = description
        self._pool = pool
        self._device = device
        self._tables = rotary_tables(description, stream, device)
        self._layout: Layout | None = None
        self._rotations: tuple[tuple[Tensor, Tensor], ...] = ()
        self._masks: dict[int, list[Tensor]] = {}

    def begin(self, layout: Layout) -> None:
        self._layout, self._rotations, self._masks = layout, _rotations(self._tables, layout), {}

    def __call__(self, layer: int, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None) -> Tensor:
        assert self._layout is not None
        shape = self._description
        rows = qkv.shape[0]
        query, key, value = torch.split(qkv, [shape.query_size, shape.kv_size, shape.kv_size], dim=-1)
        query = query.reshape(rows, shape.heads, shape.head_dim)
        key = key.reshape(rows, shape.kv_heads, shape.head_dim)
        if query_norm is not None and key_norm is not None:
            query = rms_norm(query, query_norm, shape.norm_eps)
            key = rms_norm(key, key_norm, shape.norm_eps)
        window = shape.window(layer)
        cos, sin = self._rotations[1 if window else 0]
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        self._pool.write(layer, self._layout.slots, key, value.reshape(key.shape))
        if window not in self._masks:
            self._masks[window] = [visibility(s, window, self._device) for s in self._layout.batch.segments]
        out = torch.empty_like(query)
        start = 0
        for segment, mask in zip(self._layout.batch.segments, self._masks[window], strict=True):
            out[start : start + segment.rows] = self._segment(layer, segment, query[start : start + segment.rows], mask)
            start += segment.rows
        return out.view(rows, -1)

    def _segment(self, layer: int, segment: Segment, query: Tensor, mask: Tensor) -> Tensor:
        """Attention of one segment's rows: query [rows, heads, head_dim], mask [rows, keys] to [rows, heads, head_dim]."""
        shape = self._description
        keys = segment.context + segment.rows
        blocks = segment.blocks[: -(-keys // BLOCK_SIZE)]
        stored_keys = self._pool.keys[layer][blocks].permute(1, 2, 0, 3).reshape(shape.kv_heads, shape.head_dim, -1)
        stored_values = self._pool.values[layer][blocks].transpose(0, 1).reshape(shape.kv_heads, -1, shape.head_dim)
        # [kv_heads, group * rows, head_dim]: query heads that share a key head are rows of one product
        grouped = query.view(segment.rows, shape.kv_heads, -1, shape.head_dim).permute(1, 2, 0, 3)
        group = grouped.shape[1]
        scores = grouped.reshape(shape.kv_heads, -1, shape.head_dim) @ stored_keys[:, :, :keys].to(query.dtype)
        scores *= shape.attention_scale
        if shape.attention_softcap:
            scores = torch.tanh(scores / shape.attention_softcap) * shape.attention_softcap
        scores = scores.view(shape.kv_heads, group, segment.rows, keys).masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1).view(shape.kv_heads, -1, keys)
        mixed = weights @ stored_values[:, :keys].to(query.dtype)
        return mixed.view(shape.kv_heads, group, segment.rows, shape.head_dim).permute(2, 0, 1, 3).reshape(query.shape)
