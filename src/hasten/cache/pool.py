"""The tensors behind the block manager: keys and values of every layer, in blocks of 64 positions, as floats or as int8.

A *slot* is block * 64 + offset. Pools know nothing of sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hasten.core.types import BLOCK_SIZE
from hasten.native.memory import zeros


class Pool(ABC):
    """Blocks of keys and values in every layer. ``tensors`` have layers and blocks as their first two dimensions. Allocated once,
    zeroed, so that masked slots never hold NaN."""

    def __init__(self, num_blocks: int, tensors: tuple[Tensor, ...]) -> None:
        self.num_blocks = num_blocks
        self.tensors = tensors

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def move(self, sources: list[int], destinations: list[int]) -> None:
        """Copy slots to slots in every layer; all sources are read before anything is written."""
        if sources:
            device = self.tensors[0].device
            source, destination = torch.tensor(sources, device=device), torch.tensor(destinations, device=device)
            self._move(_split(source), _split(destination))

    @abstractmethod
    def _move(self, source: tuple[Tensor, Tensor], destination: tuple[Tensor, Tensor]) -> None:
        """``move``, of blocks and offsets int64 [n] to as many."""

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) in every layer."""
        if not pairs:
            return
        device = self.tensors[0].device
        source = torch.tensor([pair[0] for pair in pairs], device=device)
        destination = torch.tensor([pair[1] for pair in pairs], device=device)
        for tensor in self.tensors:
            tensor[:, destination] = tensor[:, source]

    def touch(self) -> None:
        """Have the system hand out all of the memory now, which it else does when a page is first written to. What was kept is
        lost."""
        for tensor in self.tensors:
            tensor.zero_()

    def release(self) -> None:
        """Let the memory go; the pool is not used after this."""
        self.tensors = ()


class FloatPool(Pool):
    """Keys are [layers, blocks, kv_heads, head_dim, 64] (a tile's 64 keys lie side by side in each dimension), values are
    [layers, blocks, kv_heads, 64, head_dim]."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        outer = layers, num_blocks, kv_heads
        shapes = (*outer, head_dim, BLOCK_SIZE), (*outer, BLOCK_SIZE, head_dim)
        on_cpu = device.type == "cpu"
        super().__init__(
            num_blocks, tuple(zeros(s, dtype) if on_cpu else torch.zeros(s, dtype=dtype, device=device) for s in shapes)
        )

    @property
    def keys(self) -> Tensor:
        return self.tensors[0]

    @property
    def values(self) -> Tensor:
        return self.tensors[1]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows [rows, kv_heads, head_dim] of one layer at ``slots`` int64 [rows]. What float16 has no number for becomes its
        largest one, for an infinite key would make a row NaN."""
        blocks, offsets = _split(slots)
        if self.keys.dtype is torch.float16:
            most = torch.finfo(torch.float16).max
            keys, values = keys.clamp(-most, most), values.clamp(-most, most)
        self.keys[layer][blocks, :, :, offsets] = keys.to(self.keys.dtype)
        self.values[layer][blocks, :, offsets] = values.to(self.values.dtype)

    def _move(self, source: tuple[Tensor, Tensor], destination: tuple[Tensor, Tensor]) -> None:
        (blocks, offsets), (to_blocks, to) = source, destination
        self.keys[:, to_blocks, :, :, to] = self.keys[:, blocks, :, :, offsets]
        self.values[:, to_blocks, :, to] = self.values[:, blocks, :, offsets]


class Int8Pool(Pool):
    """int8 codes with one bfloat16 scale a position and head, written and read by the native kernels only.

    Keys are [layers, blocks, kv_heads, head_dim / 4, 64, 4], values [layers, blocks, kv_heads, 16, head_dim, 4] (a slot's offset o
    is o // 4, o % 4 there), both scales [layers, blocks, kv_heads, 64]. A slot's bits are those of its own row and of nothing else.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, num_blocks: int) -> None:
        outer = layers, num_blocks, kv_heads
        keys = zeros((*outer, head_dim // 4, BLOCK_SIZE, 4), torch.int8)
        values = zeros((*outer, BLOCK_SIZE // 4, head_dim, 4), torch.int8)
        scales = (zeros((*outer, BLOCK_SIZE), torch.bfloat16) for _ in range(2))
        super().__init__(num_blocks, (keys, values, *scales))

    def _move(self, source: tuple[Tensor, Tensor], destination: tuple[Tensor, Tensor]) -> None:
        (blocks, offsets), (to_blocks, to) = source, destination
        keys, values, key_scale, value_scale = self.tensors
        keys[:, to_blocks, :, :, to] = keys[:, blocks, :, :, offsets]
        values[:, to_blocks, :, to // 4, :, to % 4] = values[:, blocks, :, offsets // 4, :, offsets % 4]
        key_scale[:, to_blocks, :, to] = key_scale[:, blocks, :, offsets]
        value_scale[:, to_blocks, :, to] = value_scale[:, blocks, :, offsets]


def make_pool(layers: int, kv_heads: int, head_dim: int, num_blocks: int, dtype: torch.dtype, device: torch.device) -> Pool:
    """The pool whose elements are of ``dtype``; int8 ones lie on the CPU."""
    if dtype is torch.int8:
        return Int8Pool(layers, kv_heads, head_dim, num_blocks)
    return FloatPool(layers, kv_heads, head_dim, num_blocks, dtype, device)


def bytes_per_block(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """What a block of such a pool takes in all layers."""
    scale = torch.bfloat16.itemsize if dtype is torch.int8 else 0
    return 2 * layers * kv_heads * BLOCK_SIZE * (head_dim * dtype.itemsize + scale)


def _split(slots: Tensor) -> tuple[Tensor, Tensor]:
    return slots // BLOCK_SIZE, slots % BLOCK_SIZE
