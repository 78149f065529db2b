"""A level of a speculator in one call, and guesses from it: what the same parts give one after the other."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from hasten.core.types import DraftTree, SamplingParams, Sequence
from hasten.draft import speculator as drafter_module
from hasten.draft.base import DraftBudget
from hasten.draft.speculator import SpeculatorDrafter
from hasten.model import speculator
from hasten.model.head import ConvertedRows, TrimmedHead, rows_for_guesses
from hasten.model.precision import INT8
from hasten.model.speculator import Speculator, SpeculatorWeights
from hasten.native.loader import NativeLibrary
from tiny import CPU

WIDTH, VOCABULARY = 128, 400
FIXED = np.arange(3, 300, 2)


def made(layers: int = 1) -> tuple[Speculator, TrimmedHead]:
    generator = torch.Generator().manual_seed(layers)
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.1 if len(shape) > 1 else 1.0)
        for name, shape in speculator.shapes(WIDTH, [192, 64, 128][:layers]).items()
    }
    codes = torch.randint(-127, 128, (VOCABULARY, WIDTH), dtype=torch.int8, generator=generator)
    scale = torch.rand(VOCABULARY, generator=generator) / 1000 + 1e-4
    rows = ConvertedRows(codes.numpy(), scale.numpy(), False)
    head = TrimmedHead(rows, FIXED, rows_for_guesses(rows))
    embedding = torch.randn(VOCABULARY, WIDTH, generator=generator)
    return Speculator(SpeculatorWeights(tensors, FIXED), embedding, head, INT8, CPU), head


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_level_has_the_bits_of_its_parts(native: NativeLibrary, layers: int) -> None:
    network, head = made(layers)
    level = network._level
    assert level is not None
    for isa in native.available_isas():
        native.set_isa(isa)
        for more in ([], [0], [2, 4, 6, 301, 399], [4]):
            head.hold(np.array(more, np.int64))
            for rows in (1, 2, 3, 9, 20):
                states, tokens = torch.randn(rows, WIDTH), torch.randint(0, VOCABULARY, (rows,))
                hidden, logits = network(states, tokens)
                network._level = None
                by_parts, said = network(states, tokens)
                network._level = level
                assert torch.equal(hidden, by_parts)
                assert torch.equal(logits, said)
                assert logits.shape == (rows, len(FIXED) + len(more))
    empty, none = network(torch.randn(0, WIDTH), torch.zeros(0, dtype=torch.int64))
    assert (len(empty), len(none)) == (0, 0)


def text_of(number: int, params: SamplingParams) -> Sequence:
    rng = random.Random(number)
    tokens = [rng.randrange(VOCABULARY) for _ in range(8 + 5 * number)]
    return Sequence(number, f"request-{number}", params, 7, tokens, len(tokens), length_limit=400)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("tree", [{}, {"tree": "top-k", "width": 4}, {"tree": "rsd-c", "branching": (3, 2)}])
@pytest.mark.parametrize("numbers", [(1,), (0, 1, 2, 3)])
def test_guesses_in_one_call_are_those_row_by_row(
    tree: dict[str, object], numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text's from the head's fixed ids and its own; also beside one that draws with noise, and where bias is told by id."""
    greedy = SamplingParams(temperature=0.0)
    calls: list[int] = []
    found = drafter_module.likeliest_children

    def counted(*given: object) -> object:
        calls.append(1)
        return found(*given)  # type: ignore[arg-type]

    def propose(some: list[SamplingParams]) -> list[DraftTree]:
        network, head = made()
        drafter = SpeculatorDrafter(network, head, VOCABULARY, 512, **tree)  # type: ignore[arg-type]
        sequences = [text_of(number, params) for number, params in zip(numbers, some, strict=False)]
        for sequence in sequences:
            drafter.begin(sequence)
            drafter.follow(sequence, torch.randn(WIDTH, generator=torch.Generator().manual_seed(sequence.id)))
        trees = drafter.propose(sequences, [DraftBudget(nodes=9 + sequence.id, depth=3) for sequence in sequences])
        assert all(len(each) > 3 for each in trees)
        return trees

    for others in (greedy, replace(greedy, temperature=0.8), replace(greedy, logit_bias={5: 3.0})):
        some = [greedy, *[others] * (len(numbers) - 1)]
        monkeypatch.setattr(drafter_module, "likeliest_children", counted)
        at_once = propose(some)
        assert bool(calls) == all(params == greedy for params in some)
        calls.clear()
        monkeypatch.setattr(drafter_module, "likeliest_children", lambda *given: None)
        one_by_one = propose(some)
        assert [(each.tokens, each.parents) for each in at_once] == [(each.tokens, each.parents) for each in one_by_one]
        for some_tree, other in zip(at_once, one_by_one, strict=True):
            assert some_tree.scores == pytest.approx(other.scores, rel=1e-6)
