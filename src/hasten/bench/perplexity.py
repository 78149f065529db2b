"""Perplexity of a loaded model on a text, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.model.executor import Executor
from hasten.model.tokenizer import Tokenizer


def chunks_of(tokenizer: Tokenizer, text: str, length: int, count: int) -> list[list[int]]:
    """The first ``count`` pieces of a text of ``length`` tokens each, every one after what the tokenizer puts first.

    Fewer where the text is shorter; a piece that is not full is left out.
    """
    lead = list(tokenizer.prefix_ids)
    tokens = tokenizer.encode(text, add_bos=False)
    step = length - len(lead)
    pieces = [tokens[at : at + step] for at in range(0, len(tokens), length)][:count]
    return [lead + piece for piece in pieces if len(piece) == step]


def perplexity(executor: Executor, chunks: Sequence[list[int]]) -> float:
    """exp of the mean loss (nats) of tokens 1.. of each chunk, each computed afresh. The pool must hold a chunk and be idle."""
    losses: list[float] = []
    for chunk in chunks:
        blocks = list(range(-(-len(chunk) // BLOCK_SIZE)))
        logits = executor.forward(Batch([Segment(blocks, 0, chunk)]))
        losses += token_losses(logits[:-1], chunk[1:])
    return of_losses(losses)


def token_losses(logits: Tensor, tokens: list[int]) -> list[float]:
    """Loss (nats) of each token under its row of ``logits`` [tokens, vocabulary]."""
    found: list[float] = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(tokens), reduction="none").tolist()
    return found


def of_losses(losses: list[float]) -> float:
    """Perplexity; the sum is rounded once, so that it does not depend on how the text was cut."""
    return math.exp(math.fsum(losses) / len(losses))
