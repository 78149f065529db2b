"""Paged tree attention: write the rows' keys and values, then let each row see its context, its chain and its own path.

``TorchAttention`` runs everywhere and in every dtype; its sums are right to rounding. ``NativeAttention`` takes over on a CPU where
the kernels are built: it reduces over keys in tiles by position, so that a row's bits do not depend on batch, chunks, tree or
prefix. (``linear`` and this file are those that choose kernels.)
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hasten.cache.pool import FloatPool, Int8Pool, Pool
from hasten.core.errors import ConfigError
from hasten.core.types import BLOCK_SIZE, Segment
from hasten.model.description import ModelDescription
from hasten.model.layout import Layout, visibility
from hasten.model.linear import rms_norm
from hasten.model.precision import CACHE_TYPES, Precision
from hasten.model.rope import RotaryTable, apply_rotary, rotary_tables
from hasten.native.attention import ELEMENTS, PagedAttention
from hasten.native.attention8 import PagedAttention8, largest_pairs
from hasten.native.loader import NativeLibrary, load

# Of each head's key bias, where there is one. Qwen2.5-Coder-0.5B, divergence of its laws from those with float keys: 0.0087 with
# none kept out, 0.0018 with 8, and bf16 has 0.0013 (benchmarks/cache_divergence.py).
KEPT_OUT_PAIRS = 16
# Layers with a window take the second of two rotary tables. Those that rotate nothing have one a window that leaves nothing out.
EVERYTHING = 1 << 30


def window_of(description: ModelDescription, layer: int) -> int:
    """Positions that a layer sees, as attention takes it: 0 for all, under the first rotary table."""
    return description.window(layer) if description.rotates(layer) else EVERYTHING


class Attention(Protocol):
    """Attention of every layer over one pool. ``begin`` prepares what all layers share in a step; ``__call__`` runs one layer.

    ``qkv`` [rows, (heads + 2 kv_heads) * head_dim] to [rows, heads * head_dim]; norm weights [head_dim] where the family has them
    (Qwen 3, Gemma 3).
    """

    def begin(self, layout: Layout) -> None: ...

    def __call__(self, layer: int, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None) -> Tensor: ...


def choose_cache(name: str, precision: Precision, description: ModelDescription, device: torch.device) -> torch.dtype:
    """The type of keys and values for a ``kv_cache_dtype``; ``auto`` is that of the precision.

    Raises ConfigError where int8 is asked for and its kernels are not built, or do not take this model.
    """
    if name == "auto":
        return precision.cache
    if name != "int8":
        return CACHE_TYPES[name]
    if device.type != "cpu" or precision.stream is not torch.float32 or load() is None:
        raise ConfigError(
            "kv_cache_dtype int8 needs a CPU, the native kernels ('hasten doctor' says whether they are in use) and a precision "
            "other than fp64; use auto."
        )
    if description.head_dim % 64 or description.head_dim > 512:
        raise ConfigError(
            f"kv_cache_dtype int8 takes heads of a multiple of 64 up to 512 dimensions, and this model has {description.head_dim}; "
            "use auto."
        )
    return torch.int8


def make_attention(
    description: ModelDescription, pool: Pool, key_biases: list[Tensor | None], stream: torch.dtype, device: torch.device
) -> Attention:
    """The native kernel where it is built and takes these shapes and types, else PyTorch. ``key_biases`` float32 [kv_heads *
    head_dim], one a layer, are those of the projections."""
    library = load()
    if isinstance(pool, Int8Pool):
        assert library is not None, "choose_cache says so before anything is allocated"
        return NativeAttention(_int8_kernel(library, description, pool, key_biases), description, stream, device)
    assert isinstance(pool, FloatPool)
    fits = device.type == "cpu" and stream is torch.float32 and pool.keys.dtype in ELEMENTS
    if library is None or not fits or description.head_dim % 16:
        return TorchAttention(description, pool, stream, device)
    kernel = PagedAttention(
        library,
        pool.keys,
        pool.values,
        description.heads,
        description.attention_scale,
        description.attention_softcap,
        description.norm_eps,
    )
    return NativeAttention(kernel, description, stream, device)


def _int8_kernel(
    library: NativeLibrary, description: ModelDescription, pool: Int8Pool, key_biases: list[Tensor | None]
) -> PagedAttention8:
    biases = [bias.view(description.kv_heads, -1) for bias in key_biases if bias is not None]
    kept = angles = None
    if biases and not description.qk_norm:
        kept = [largest_pairs(bias, KEPT_OUT_PAIRS) for bias in biases]
        angles = _angles(description, pool.num_blocks * BLOCK_SIZE)
    keys, values, key_scales, value_scales = pool.tensors
    return PagedAttention8(
        library,
        (keys, values, key_scales, value_scales),
        description.heads,
        description.attention_scale,
        description.attention_softcap,
        description.norm_eps,
        kept,
        angles,
    )


def _angles(description: ModelDescription, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [head_dim / 2, positions] of all that a pool can hold."""
    full, local = rotary_tables(description, torch.float32, torch.device("cpu"))
    assert local is full, "no family has biases and two rotary bases"
    cosine, sine = full.rows(torch.arange(positions), positions - 1)
    return cosine.T.contiguous(), sine.T.contiguous()


Rotations = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
_NO_ROTATIONS: Rotations = ((torch.empty(0), torch.empty(0)),) * 2


class NativeAttention:
    """One kernel call a layer. ``rotations`` are cosines and sines of the step's rows, as in ``_rotations``."""

    def __init__(
        self,
        kernel: PagedAttention | PagedAttention8,
        description: ModelDescription,
        stream: torch.dtype,
        device: torch.device,
    ) -> None:
        self._windows = [window_of(description, layer) for layer in range(description.layers)]
        self._tables = rotary_tables(description, stream, device)
        self.rotations = _NO_ROTATIONS
        self.kernel = kernel

    def begin(self, layout: Layout) -> None:
        self.rotations = _rotations(self._tables, layout)
        self.kernel.begin(
            layout.starts, layout.contexts, layout.chains, layout.block_tables, layout.depths, layout.paths, layout.slots
        )

    def __call__(self, layer: int, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None) -> Tensor:
        window = self._windows[layer]
        cos, sin = self.rotations[1 if window else 0]
        return self.kernel(layer, qkv, query_norm, key_norm, cos, sin, window)


def _rotations(tables: tuple[RotaryTable, RotaryTable], layout: Layout) -> Rotations:
    """Cosine and sine of the step's rows under both tables."""
    full, local = tables
    rotation = full.rows(layout.positions, layout.highest_position)
    return rotation, rotation if local is full else local.rows(layout.positions, layout.highest_position)


class TorchAttention:
    """Segment by segment: gather the keys and values of its blocks, mask, softmax."""

    def __init__(self, description: ModelDescription, pool: FloatPool, stream: torch.dtype, device: torch.device) -> None:
        self._description = description
        self._pool = pool
        self._device = device
        self._tables = rotary_tables(description, stream, device)
        self._layout: Layout | None = None
        self._rotations = _NO_ROTATIONS
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
        window = window_of(shape, layer)
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
