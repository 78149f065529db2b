"""The tensors behind the block manager: keys and values of every layer, in blocks of 64 positions.

Keys are [layers, blocks, kv_heads, head_dim, 64] (a tile's 64 keys lie side by side in each dimension), values are
[layers, blocks, kv_heads, 64, head_dim]. A *slot* is block * 64 + offset. The pool knows nothing of sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core.types import BLOCK_SIZE


class KeyValuePool:
    """Allocated once, zeroed, so that masked slots never hold NaN."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.keys = torch.zeros(layers, num_blocks, kv_heads, head_dim, BLOCK_SIZE, dtype=dtype, device=device)
        self.values = torch.zeros(layers, num_blocks, kv_heads, BLOCK_SIZE, head_dim, dtype=dtype, device=device)

    @property
    def bytes(self) -> int:
        return (self.keys.numel() + self.values.numel()) * self.keys.element_size()

    @staticmethod
    def bytes_per_block(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        return 2 * layers * kv_heads * head_dim * BLOCK_SIZE * dtype.itemsize

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows [rows, kv_heads, head_dim] of one layer at ``slots`` int64 [rows]."""
        blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
        self.keys[layer][blocks, :, :, offsets] = keys.to(self.keys.dtype)
        self.values[layer][blocks, :, offsets] = values.to(self.values.dtype)

    def move(self, sources: list[int], destinations: list[int]) -> None:
        """Copy slots to slots in every layer; all sources are read before anything is written."""
        if not sources:
            return
        src = torch.tensor(sources, device=self.keys.device)
        dst = torch.tensor(destinations, device=self.keys.device)
        src_blocks, src_offsets, dst_blocks, dst_offsets = src // BLOCK_SIZE, src % BLOCK_SIZE, dst // BLOCK_SIZE, dst % BLOCK_SIZE
        self.keys[:, dst_blocks, :, :, dst_offsets] = self.keys[:, src_blocks, :, :, src_offsets]
        self.values[:, dst_blocks, :, dst_offsets] = self.values[:, src_blocks, :, src_offsets]

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) in every layer."""
        if not pairs:
            return
        src = torch.tensor([pair[0] for pair in pairs], device=self.keys.device)
        dst = torch.tensor([pair[1] for pair in pairs], device=self.keys.device)
        self.keys[:, dst] = self.keys[:, src]
        self.values[:, dst] = self.values[:, src]
