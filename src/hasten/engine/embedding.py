"""Embeddings from a decoder: the last layer's output, normalised as the head would see it, of the last token or the mean of all.

A model that was not trained to embed gives what it gives; which of the two poolings it wants is its author's to say.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch

from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.engine import Engine
from hasten.engine.scheduler import MIXED_SHARE

Pooling = Literal["last", "mean"]


def embed(engine: Engine, tokens: list[int], pooling: Pooling) -> Generator[torch.Tensor | None, None, None]:
    """None after each chunk of the text, so that steps may come between; at last the embedding, [hidden] float64 of length 1.

    Takes blocks of the engine's pool while it runs and frees them, also when it is closed early. While others have so many that
    too few are left it gives None and waits. ``tokens`` have passed ``Engine.check``.
    """
    pool, needed = engine.scheduler.blocks, -(-len(tokens) // BLOCK_SIZE)
    while pool.available < needed and pool.used:
        yield None
    blocks = pool.allocate(needed)
    try:
        total = torch.zeros(engine.executor.decoder.description.hidden_size, dtype=torch.float64)
        start = 0
        while start < len(tokens):
            chunk = tokens[start : start + _rows(engine)]
            rows = engine.executor.hidden(Batch([Segment(blocks, start, chunk, first_logit=0)])).double().cpu()
            if pooling == "mean":
                total += rows.sum(dim=0)
            else:
                total = rows[-1]
            start += len(chunk)
            yield None
        yield torch.nn.functional.normalize(total, dim=0)
    finally:
        pool.free(blocks)


def _rows(engine: Engine) -> int:
    """Rows of the next chunk: as many as of a prompt, of which beside others only a part is read at once."""
    return engine.max_rows if engine.idle else max(1, engine.max_rows // MIXED_SHARE)
