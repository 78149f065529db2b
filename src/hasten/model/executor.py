"""A model with its pool: batch in, logits out. The same class runs the target and a draft model."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.cache.pool import make_pool
from hasten.core.types import BLOCK_SIZE, Batch
from hasten.model.decoder import Decoder
from hasten.model.kernels import bits_are_fixed
from hasten.model.layers import make_layers
from hasten.model.layout import Layout, lay_out
from hasten.model.precision import CACHE_TYPES


class Executor:
    """Owns the pool's tensors and runs the decoder on them. Knows nothing of requests, drafts or who owns which block.

    ``cache`` is the type of keys and values (see ``attention.choose_cache``); None takes the precision's.
    """

    def __init__(self, decoder: Decoder, num_blocks: int, device: torch.device, cache: torch.dtype | None = None) -> None:
        shape = decoder.description
        self.decoder = decoder
        self.device = device
        self.cache = cache or decoder.precision.cache
        self.pool = make_pool(shape.layers, shape.kv_heads, shape.head_dim, num_blocks, self.cache, device)
        self.states: Tensor | None = None  # of the last ``forward``, [wanted rows, hidden]: what the head was given, not normalised
        self.likeliest: Tensor | None = None  # of the same rows, ids of the largest logits (``Decoder.logits``)
        self._layers = make_layers(shape, decoder.weights.layers, self.pool, decoder.precision.stream, device)

    @property
    def exact(self) -> bool:
        """Whether a row's logits have the same bits whatever is computed beside it."""
        return bits_are_fixed(self.decoder.precision, self.device)

    @property
    def precision(self) -> str:
        """The precision's name, and that of keys and values where these are of another type than it says: "int8-kv-int8"."""
        own = self.decoder.precision
        if self.cache is own.cache:
            return own.name
        return f"{own.name}-kv-{next(name for name, dtype in CACHE_TYPES.items() if dtype is self.cache)}"

    def forward(self, batch: Batch) -> Tensor:
        """Compute every row of the batch; logits [wanted rows, vocabulary] in segment order, on the CPU or the device.

        Row i of a segment is written at virtual index context + i of its block table. Raises IndexError for a table that does not
        reach that far or names a block outside the pool, before anything is written.
        """
        layout = self._lay_out(batch)
        states = self.decoder.states(layout, self._layers)
        self.states = states
        logits, self.likeliest = self.decoder.logits(states, layout)
        return logits

    def hidden(self, batch: Batch) -> Tensor:
        """``forward`` up to the head: [wanted rows, hidden]."""
        return self.decoder.hidden(self._lay_out(batch), self._layers)

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

    def _lay_out(self, batch: Batch) -> Layout:
        # The kernels write where the tables say: a number outside the pool would be another's memory.
        lowest = min(min(segment.blocks) for segment in batch.segments)
        highest = max(max(segment.blocks) for segment in batch.segments)
        if lowest < 0 or highest >= self.pool.num_blocks:
            raise IndexError(f"blocks {lowest} to {highest} of a batch are not all in the pool of {self.pool.num_blocks}")
        return lay_out(batch, self.device)

    def release(self) -> None:
        """Let the memory of keys and values go. Nothing can run after this; a second time it does nothing."""
        self.pool.release()
        if hasattr(self, "_layers"):
            del self._layers


def _slot(blocks: list[int], index: int) -> int:
    return blocks[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
