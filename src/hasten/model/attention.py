"""Paged tree attention: write the rows' keys and values, then let each row see its context, its chain and its own path.

The PyTorch path here runs everywhere and in every dtype. Its sums are exact to rounding; that they do not depend on the batch
bit for bit is a property of the native kernels, which take over where they are built (``linear`` and this file choose kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.cache.pool import KeyValuePool
from hasten.core.types import BLOCK_SIZE, Segment
from hasten.model.description import ModelDescription
from hasten.model.layout import Layout, visibility
from hasten.model.linear import rms_norm
from hasten.model.rope import apply_rotary, rotary_tables


class Attention:
    """Attention of every layer over one pool. ``begin`` prepares what all layers share in a step; ``__call__`` runs one layer."""

    def __init__(self, description: ModelDescription, pool: KeyValuePool, stream: torch.dtype, device: torch.device) -> None:
        self._description = description
        self._pool = pool
        self._device = device
        self._tables = rotary_tables(description, stream, device)
        self._layout: Layout | None = None
        self._rotations: tuple[tuple[Tensor, Tensor], ...] = ()
        self._masks: dict[int, list[Tensor]] = {}

    def begin(self, layout: Layout) -> None:
        full, local = self._tables
        rotation = full.rows(layout.positions, layout.highest_position)
        other = rotation if local is full else local.rows(layout.positions, layout.highest_position)
        self._layout, self._rotations, self._masks = layout, (rotation, other), {}

    def __call__(self, layer: int, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None) -> Tensor:
        """``qkv`` [rows, (heads + 2 kv_heads) * head_dim] to [rows, heads * head_dim]; norm weights [head_dim] where the family has
        them (Qwen3, Gemma 3)."""
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
