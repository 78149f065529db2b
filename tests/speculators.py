"""Speculators for the tiny models, that nobody trained."""

from __future__ import annotations

import torch

from hasten.draft.speculator import SpeculatorDrafter
from hasten.model import speculator
from hasten.model.head import DenseRows, TrimmedHead
from hasten.model.precision import FP64, Precision
from hasten.model.speculator import Speculator, SpeculatorWeights
from tiny import BASE, CPU, VOCABULARY, tiny_executor


def random_weights(seed: int = 0, ids: list[int] | None = None) -> SpeculatorWeights:
    """Of the shapes that training gives them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.1 if len(shape) > 1 else 1.0)
        for name, shape in speculator.shapes(BASE.hidden_size, [64]).items()
    }
    return SpeculatorWeights(tensors, torch.tensor(ids if ids is not None else list(range(40))).numpy())


def random_speculator(
    make: type[SpeculatorDrafter] = SpeculatorDrafter, kind: str = "llama", precision: Precision = FP64, **shape: object
) -> SpeculatorDrafter:
    """Its head takes states to 40 of the ids, by the embedding's rows. It is mostly wrong."""
    embedding, weights = tiny_executor(kind, precision).decoder.weights.embedding, random_weights()
    head = TrimmedHead(DenseRows(embedding), weights.ids)  # type: ignore[arg-type]
    network = Speculator(weights, embedding, head, precision, CPU)
    return make(network, head, VOCABULARY, 512, **shape)  # type: ignore[arg-type]
