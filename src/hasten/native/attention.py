"""Paged tree attention as PyTorch sees it: objects that hold a pool and a step's layout, over float pools here and over int8 ones
in ``attention8``. Rows are float32; where sizes or types are wrong the calls raise ValueError, a mistake of ours.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hasten.native.kernels import BLOCK_SIZE, _maybe, _need
from hasten.native.loader import NativeLibrary, check

ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)  # of float pools, in the order of pool.h


class _StepFields(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("starts", "contexts", "chains", "tables", "depths", "paths", "slots")),
        *((name, ctypes.c_int64) for name in ("table_stride", "path_stride", "segments", "rows", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "eps")),
        ("element", ctypes.c_int32),
    )


class StepAttention:
    """What attention over every kind of pool shares: heads, and the rows of a step. ``scale`` multiplies q.k; ``softcap`` 0 means
    none; ``eps`` is that of the norms of queries and keys."""

    def __init__(
        self, heads: int, kv_heads: int, head_dim: int, scale: float, softcap: float, eps: float, element: int = 0
    ) -> None:
        self.heads, self.kv_heads, self.head_dim, self.rows = heads, kv_heads, head_dim, 0
        self.width = (heads + 2 * kv_heads) * head_dim  # of queries, keys and values of a row
        self._fields = _StepFields(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=scale,
            softcap=softcap,
            eps=eps,
            element=element,
        )
        self.address = ctypes.addressof(self._fields)
        self._step: tuple[Tensor, ...] = ()
        self._angles: tuple[Tensor | None, Tensor | None, int, int] = (None, None, 0, 0)

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
        """The step's rows, as in ``model.layout.Layout``: ``starts`` [S + 1], ``contexts`` and ``chains`` [S], ``block_tables``
        [S, widest], ``depths`` [T], ``paths`` [T, deepest], all int32; ``slots`` int64 [T]. Their values are trusted."""
        fields, segments, rows = self._fields, contexts.shape[0], depths.shape[0]
        fields.starts = _need(starts, torch.int32, (segments + 1,))
        fields.contexts = _need(contexts, torch.int32, (segments,))
        fields.chains = _need(chains, torch.int32, (segments,))
        fields.tables = _need(block_tables, torch.int32, (segments, block_tables.shape[1]))
        fields.depths = _need(depths, torch.int32, (rows,))
        fields.paths = _need(paths, torch.int32, (rows, paths.shape[1]))
        fields.slots = _need(slots, torch.int64, (rows,))
        fields.table_stride, fields.path_stride = block_tables.shape[1], paths.shape[1]
        fields.segments, fields.rows = segments, rows
        self._step = starts, contexts, chains, block_tables, depths, paths, slots
        self.rows = rows
        self._angles = (None, None, 0, 0)

    def pool_of(self, layer: int) -> tuple[int | None, int | None, int | None]:
        """Addresses of a layer's keys and values, or of its int8 cache."""
        raise NotImplementedError

    def _rotation(
        self, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None, cosine: Tensor, sine: Tensor
    ) -> tuple[int, int | None, int | None, int, int]:
        rows, dim = self.rows, self.head_dim
        return (
            _need(qkv, torch.float32, (rows, self.width)),
            _maybe(query_norm, (dim,)),
            _maybe(key_norm, (dim,)),
            *self._checked_angles(cosine, sine),
        )

    def _checked_angles(self, cosine: Tensor, sine: Tensor) -> tuple[int, int]:
        """Their addresses. The layers of a step are given the same ones, so that most are checked already."""
        if cosine is not self._angles[0] or sine is not self._angles[1]:
            shape = self.rows, self.head_dim // 2
            self._angles = (cosine, sine, _need(cosine, torch.float32, shape), _need(sine, torch.float32, shape))
        return self._angles[2:]


class PagedAttention(StepAttention):
    """Attention over a pool: ``begin`` once a step, then ``__call__`` once a layer.

    ``keys`` [layers, blocks, kv_heads, head_dim, 64] and ``values`` [layers, blocks, kv_heads, 64, head_dim], float32, bfloat16
    or float16, are written in place. head_dim is a multiple of 16 up to 512.
    """

    def __init__(
        self, library: NativeLibrary, keys: Tensor, values: Tensor, heads: int, scale: float, softcap: float, eps: float
    ) -> None:
        layers, blocks, kv_heads, head_dim, _ = keys.shape
        if keys.dtype not in ELEMENTS or heads % kv_heads or head_dim % 16 or not 16 <= head_dim <= 512:
            raise ValueError(f"cannot attend with {heads} heads over a pool {list(keys.shape)} of {keys.dtype}")
        super().__init__(heads, kv_heads, head_dim, scale, softcap, eps, ELEMENTS.index(keys.dtype))
        key_start = _need(keys, keys.dtype, (layers, blocks, kv_heads, head_dim, BLOCK_SIZE))
        value_start = _need(values, keys.dtype, (layers, blocks, kv_heads, BLOCK_SIZE, head_dim))
        size = keys[0].numel() * keys.element_size()
        self._layers = [(key_start + layer * size, value_start + layer * size) for layer in range(layers)]
        self._pool = (keys, values)
        self._rope_write = library.call["hst_rope_write"]
        self._attend = library.call["hst_paged_attention"]
        self._both = library.call["hst_attention"]

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
        """Norm (where there are weights [head_dim]) and rotate queries and keys, write keys and values, attend.

        ``qkv`` [T, (heads + 2 kv_heads) * head_dim]; ``cosine`` and ``sine`` [T, head_dim / 2]; a row at position p sees positions
        above p - ``window`` (0: all). Returns [T, heads * head_dim].
        """
        out = torch.empty(self.rows, self.heads * self.head_dim)
        keys, values = self._layers[layer]
        rotation = self._rotation(qkv, query_norm, key_norm, cosine, sine)
        check(self._both(self.address, *rotation, keys, values, window, out.data_ptr()))
        return out

    def pool_of(self, layer: int) -> tuple[int | None, int | None, int | None]:
        return *self._layers[layer], None

    def rope_write(
        self, layer: int, qkv: Tensor, query_norm: Tensor | None, key_norm: Tensor | None, cosine: Tensor, sine: Tensor
    ) -> Tensor:
        """The first half of ``__call__``: returns the rotated queries [T, heads * head_dim]."""
        query = torch.empty(self.rows, self.heads * self.head_dim)
        keys, values = self._layers[layer]
        rotation = self._rotation(qkv, query_norm, key_norm, cosine, sine)
        check(self._rope_write(self.address, *rotation, keys, values, query.data_ptr()))
        return query

    def attend(self, layer: int, query: Tensor, window: int = 0) -> Tensor:
        """The second half: rotated queries [T, heads * head_dim] to the same shape."""
        start = _need(query, torch.float32, (self.rows, self.heads * self.head_dim))
        out = torch.empty(self.rows, self.heads * self.head_dim)
        keys, values = self._layers[layer]
        check(self._attend(self.address, start, keys, values, window, out.data_ptr()))
        return out
