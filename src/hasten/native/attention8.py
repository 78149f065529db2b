"""Attention over a pool of int8 keys and values, for PyTorch. Rows are those of ``kernels.PagedAttention``; sums of products are
exact integers, so the tensor units of the processor take them without a row's bits depending on its neighbours.

Memory a position and key-value head: 2 * (head_dim + 2) bytes, against 4 * head_dim in bf16. Keys and values are rotated in
Hadamard blocks and rounded with one bf16 scale a position and head; queries to int8 in the call; softmax weights to 16 bits a
split. The part of the projection's bias that stands in ``KeyBias`` is kept out of the stored keys and enters scores in float
(Qwen 2).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.native.kernels import BLOCK_SIZE, _maybe, _need, _StepFields
from hasten.native.loader import NativeLibrary, check


@dataclass(frozen=True)
class KeyBias:
    """What is kept out of one layer's stored keys: ``values`` float32 [kv_heads, head_dim], zero but for the dimensions i and
    i + head_dim / 2 of the pairs i in ``pairs`` int32 [kv_heads, n]."""

    values: Tensor
    pairs: Tensor


def largest_pairs(bias: Tensor, count: int) -> KeyBias:
    """The ``count`` pairs of each head in which a key bias [kv_heads, head_dim] is longest."""
    half = bias.shape[1] // 2
    length = bias[:, :half].square() + bias[:, half:].square()
    pairs = length.topk(min(count, half), dim=1).indices
    kept = torch.zeros_like(length).scatter_(1, pairs, 1.0)
    values = (bias * torch.cat([kept, kept], 1)).to(torch.float32)
    return KeyBias(values.contiguous(), pairs.to(torch.int32).contiguous())


class _CacheFields(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("keys", "values", "key_scale", "value_scale", "key_bias", "chosen", "cosine", "sine")
        ),
        ("pairs", ctypes.c_int64),
        ("positions", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Pool8:
    """``keys`` int8 [layers, blocks, kv_heads, head_dim / 4, 64, 4], ``values`` int8 [layers, blocks, kv_heads, 16, head_dim, 4] (a
    slot's offset o is o // 4, o % 4 there), ``key_scale`` and ``value_scale`` bfloat16 [layers, blocks, kv_heads, 64]."""

    keys: Tensor
    values: Tensor
    key_scale: Tensor
    value_scale: Tensor

    @staticmethod
    def zeros(layers: int, blocks: int, kv_heads: int, head_dim: int) -> Pool8:
        outer = layers, blocks, kv_heads
        return Pool8(
            torch.zeros(*outer, head_dim // 4, BLOCK_SIZE, 4, dtype=torch.int8),
            torch.zeros(*outer, BLOCK_SIZE // 4, head_dim, 4, dtype=torch.int8),
            torch.zeros(*outer, BLOCK_SIZE, dtype=torch.bfloat16),
            torch.zeros(*outer, BLOCK_SIZE, dtype=torch.bfloat16),
        )

    @staticmethod
    def bytes_per_block(layers: int, kv_heads: int, head_dim: int) -> int:
        return 2 * layers * kv_heads * BLOCK_SIZE * (head_dim + 2)

    def move(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy slots (int64, block * 64 + offset) to slots in every layer; all sources are read before anything is written."""
        blocks, offsets = sources // BLOCK_SIZE, sources % BLOCK_SIZE
        to_blocks, to = destinations // BLOCK_SIZE, destinations % BLOCK_SIZE
        self.keys[:, to_blocks, :, :, to] = self.keys[:, blocks, :, :, offsets]
        self.values[:, to_blocks, :, to // 4, :, to % 4] = self.values[:, blocks, :, offsets // 4, :, offsets % 4]
        self.key_scale[:, to_blocks, :, to] = self.key_scale[:, blocks, :, offsets]
        self.value_scale[:, to_blocks, :, to] = self.value_scale[:, blocks, :, offsets]


class PagedAttention8:
    """As ``PagedAttention``, over a ``Pool8``. head_dim is a multiple of 64 up to 512.

    ``biases`` is None, or has one ``KeyBias`` a layer; then ``angles`` are cosines and sines of the rotary embedding, float32
    [head_dim / 2, positions], for every position that will be seen, rounded up to a multiple of 64. With norms of keys there are no
    biases.
    """

    def __init__(
        self,
        library: NativeLibrary,
        pool: Pool8,
        heads: int,
        scale: float,
        softcap: float,
        eps: float,
        biases: list[KeyBias] | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        layers, blocks, kv_heads, quarter, _, _ = pool.keys.shape
        head_dim = 4 * quarter
        if heads % kv_heads or head_dim % 64 or not 64 <= head_dim <= 512:
            raise ValueError(f"cannot attend with {heads} heads over an int8 pool {list(pool.keys.shape)}")
        if (biases is None) != (angles is None) or (biases is not None and len(biases) != layers):
            raise ValueError("key biases need one entry a layer, and cosines and sines")
        _need(pool.keys, torch.int8, (layers, blocks, kv_heads, quarter, BLOCK_SIZE, 4))
        _need(pool.values, torch.int8, (layers, blocks, kv_heads, BLOCK_SIZE // 4, head_dim, 4))
        for scales in (pool.key_scale, pool.value_scale):
            _need(scales, torch.bfloat16, (layers, blocks, kv_heads, BLOCK_SIZE))
        self._heads, self._kv_heads, self._head_dim, self._rows = heads, kv_heads, head_dim, 0
        self._kept: tuple[object, ...] = (pool, biases, angles)
        self._caches = [_cache_fields(pool, layer, biases, angles) for layer in range(layers)]
        self._addresses = [ctypes.addressof(cache) for cache in self._caches]
        self._fields = _StepFields(heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=scale, softcap=softcap, eps=eps)
        self._address = ctypes.addressof(self._fields)
        self._attend = library.call["hst_attention8"]
        self._step: tuple[Tensor, ...] = ()

    def begin(
        self,
        starts: Tensor,
        contexts: Tensor,
        chains: Tensor,
        block_tables: Tensor,
        depths: Tensor,
        paths: Tensor,
        slots: Tensor,
    ) -> None:
        """As ``PagedAttention.begin``."""
        self._fields.place(starts, contexts, chains, block_tables, depths, paths, slots)
        self._step = starts, contexts, chains, block_tables, depths, paths, slots
        self._rows = depths.shape[0]

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        cosine: Tensor,
        sine: Tensor,
        window: int = 0,
    ) -> Tensor:
        """As ``PagedAttention.__call__``."""
        rows, dim = self._rows, self._head_dim
        if key_norm is not None and self._caches[layer].pairs:
            raise ValueError("keys with a norm have no bias to keep out")
        out = torch.empty(rows, self._heads * dim)
        arguments = (
            _need(qkv, torch.float32, (rows, (self._heads + 2 * self._kv_heads) * dim)),
            _maybe(query_norm, (dim,)),
            _maybe(key_norm, (dim,)),
            _need(cosine, torch.float32, (rows, dim // 2)),
            _need(sine, torch.float32, (rows, dim // 2)),
        )
        check(self._attend(self._address, self._addresses[layer], *arguments, window, out.data_ptr()))
        return out


def _cache_fields(pool: Pool8, layer: int, biases: list[KeyBias] | None, angles: tuple[Tensor, Tensor] | None) -> _CacheFields:
    tensors = pool.keys, pool.values, pool.key_scale, pool.value_scale
    fields = _CacheFields(*(tensor[layer].data_ptr() for tensor in tensors))
    if biases is None or angles is None:
        return fields
    kv_heads, head_dim = pool.keys.shape[2], 4 * pool.keys.shape[3]
    bias, (cosine, sine) = biases[layer], angles
    pairs, positions = bias.pairs.shape[1], cosine.shape[1]
    if positions % BLOCK_SIZE or not bool((bias.pairs >= 0).all() and (bias.pairs < head_dim // 2).all()):
        raise ValueError(f"pairs must be from 0 to {head_dim // 2 - 1} and positions a multiple of {BLOCK_SIZE}")
    fields.key_bias = _need(bias.values, torch.float32, (kv_heads, head_dim))
    fields.chosen = _need(bias.pairs, torch.int32, (kv_heads, pairs))
    fields.cosine = _need(cosine, torch.float32, (head_dim // 2, positions))
    fields.sine = _need(sine, torch.float32, (head_dim // 2, positions))
    fields.pairs, fields.positions = pairs, positions
    return fields
