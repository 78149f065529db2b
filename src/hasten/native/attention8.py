"""Attention over a pool of int8 keys and values, for PyTorch. Rows are those of ``attention.PagedAttention``; sums of products are
exact integers, so the integer units of the processor take them without a row's bits depending on its neighbours.

Keys and values are rotated in Hadamard blocks and rounded with one bf16 scale a position and head; queries to int8 in the call;
softmax weights to 15 bits a split. The part of the projection's bias that stands in ``KeyBias`` is kept out of the stored keys and
enters scores in float (Qwen 2).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.native.attention import StepAttention
from hasten.native.kernels import BLOCK_SIZE, _need
from hasten.native.loader import NativeLibrary, check

Int8Tensors = tuple[Tensor, Tensor, Tensor, Tensor]


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


class PagedAttention8(StepAttention):
    """As ``PagedAttention``, over the tensors of an int8 pool: keys, values, key scales and value scales, of the shapes that
    ``cache.pool.Int8Pool`` says. head_dim is a multiple of 64 up to 512.

    ``biases`` is None, or has one ``KeyBias`` a layer; then ``angles`` are cosines and sines of the rotary embedding, float32
    [head_dim / 2, positions], for every position that will be seen, rounded up to a multiple of 64. With norms of keys there are no
    biases.
    """

    def __init__(
        self,
        library: NativeLibrary,
        tensors: Int8Tensors,
        heads: int,
        scale: float,
        softcap: float,
        eps: float,
        biases: list[KeyBias] | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        keys, values, key_scale, value_scale = tensors
        layers, blocks, kv_heads, quarter, _, _ = keys.shape
        head_dim = 4 * quarter
        if heads % kv_heads or head_dim % 64 or not 64 <= head_dim <= 512:
            raise ValueError(f"cannot attend with {heads} heads over an int8 pool {list(keys.shape)}")
        if (biases is None) != (angles is None) or (biases is not None and len(biases) != layers):
            raise ValueError("key biases need one entry a layer, and cosines and sines")
        _need(keys, torch.int8, (layers, blocks, kv_heads, quarter, BLOCK_SIZE, 4))
        _need(values, torch.int8, (layers, blocks, kv_heads, BLOCK_SIZE // 4, head_dim, 4))
        for scales in (key_scale, value_scale):
            _need(scales, torch.bfloat16, (layers, blocks, kv_heads, BLOCK_SIZE))
        super().__init__(heads, kv_heads, head_dim, scale, softcap, eps)
        self._kept: tuple[object, ...] = (tensors, biases, angles)
        self._caches = [_cache_fields(tensors, layer, biases, angles) for layer in range(layers)]
        self._addresses = [ctypes.addressof(cache) for cache in self._caches]
        self._attend = library.call["hst_attention8"]

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
        if key_norm is not None and self._caches[layer].pairs:
            raise ValueError("keys with a norm have no bias to keep out")
        out = torch.empty(self.rows, self.heads * self.head_dim)
        rotation = self._rotation(qkv, query_norm, key_norm, cosine, sine)
        check(self._attend(self.address, self._addresses[layer], *rotation, window, out.data_ptr()))
        return out

    def pool_of(self, layer: int) -> tuple[int | None, int | None, int | None]:
        return None, None, self._addresses[layer]


def _cache_fields(
    tensors: Int8Tensors, layer: int, biases: list[KeyBias] | None, angles: tuple[Tensor, Tensor] | None
) -> _CacheFields:
    fields = _CacheFields(*(tensor[layer].data_ptr() for tensor in tensors))
    if biases is None or angles is None:
        return fields
    kv_heads, head_dim = tensors[0].shape[2], 4 * tensors[0].shape[3]
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
