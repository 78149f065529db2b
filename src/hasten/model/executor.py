"""A model with its pool: batch in, logits out. The same class runs the target and a draft model."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.cache.pool import KeyValuePool
from hasten.core.types import BLOCK_SIZE, Batch
from hasten.model.attention import make_attention
from hasten.model.decoder import Decoder
from hasten.model.layout import lay_out


class Executor:
    """Owns the pool's tensors and runs the decoder on them. Knows nothing of requests, drafts or who owns which block."""

    def __init__(self, decoder: Decoder, num_blocks: int, device: torch.device) -> None:
        shape = decoder.description
        self.decoder = decoder
        self.device = device
        self.pool = KeyValuePool(shape.layers, shape.kv_heads, shape.head_dim, num_blocks, decoder.precision.cache, device)
        self._attention = make_attention(shape, self.pool, decoder.precision.stream, device)

    def forward(self, batch: Batch) -> Tensor:
        """Compute every row of the batch; logits [wanted rows, vocabulary] in segment order, on the CPU or the device.

        Row i of a segment is written at virtual index context + i of its block table, which must reach that far.
        """
        return self.decoder.forward(lay_out(batch, self.device), self._attention)

    def hidden(self, batch: Batch) -> Tensor:
        """``forward`` up to the head: [wanted rows, hidden]."""
        return self.decoder.hidden(lay_out(batch, self.device), self._attention)

    def commit(self, blocks: list[int], context: int, kept: list[int]) -> None:
        """After verification of a segment that stood at ``context``: rows ``kept`` (row numbers, ascending) become the next
        positions, in that order. Rows that are in line already cost nothing."""
        sources, destinations = [], []
        for place, row in enumerate(kept):
            if row != place:
                sources.append(_slot(blocks, context + row))
                destinations.append(_slot(blocks, context + place))
        self.pool.move(sources, destinations)

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        self.pool.copy_blocks(pairs)


def _slot(blocks: list[int], index: int) -> int:
    return blocks[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
