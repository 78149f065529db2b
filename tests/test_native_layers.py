"""All layers in one call: the bits of one layer after the other, refusals, and who falls back."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from hasten.core.types import Batch, Segment
from hasten.model.attention import NativeAttention, make_attention
from hasten.model.decoder import Layers
from hasten.model.executor import Executor
from hasten.model.layers import ComposedLayers, NativeLayers, _parts
from hasten.model.layout import lay_out
from hasten.model.loaders import open_gguf
from hasten.model.precision import FILE, FP32, INT3, INT4, INT8
from hasten.model.weights import load_decoder
from hasten.native.layers import FEW_ROWS, LayerStack
from hasten.native.loader import NativeLibrary
from loader_files import write_gguf
from test_decoder import KINDS, random_tree, tokens_of
from test_precision_file import write_mixed
from tiny import CPU, Form, tiny_executor

FORMS = [Form(INT8), Form(INT8, torch.float32), Form(INT8, torch.int8), Form(INT4, torch.bfloat16), Form(INT3)]


def executor_of(kind: str, form: Form) -> Executor:
    return tiny_executor(kind, form.precision, cache=form.cache)


def one_by_one(executor: Executor) -> ComposedLayers:
    """The same layers over the same pool, a call each."""
    decoder = executor.decoder
    shape, layers = decoder.description, decoder.weights.layers
    attention = make_attention(shape, executor.pool, [layer.key_bias for layer in layers], torch.float32, CPU)
    return ComposedLayers(shape, layers, attention)


def both(executor: Executor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden rows of one call for all layers, and of a call each."""
    layout = lay_out(batch, CPU)
    together = executor.decoder.hidden(layout, executor._layers)
    return together, executor.decoder.hidden(layout, one_by_one(executor))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_in_one_call_are_one_after_the_other(native: NativeLibrary, kind: str, form: Form) -> None:
    rng = random.Random(5)
    executor = executor_of(kind, form)
    assert isinstance(executor._layers, NativeLayers)
    context, blocks = 0, rng.sample(range(16), 6)
    for size in (1, FEW_ROWS - 1, 1, FEW_ROWS + 30, 3, 150):
        segment = Segment(blocks, context, tokens_of(size, size), random_tree(rng, rng.randrange(9)), first_logit=0)
        spare = [block for block in range(16) if block not in blocks]
        together, apart = both(executor, Batch([Segment(spare, 0, tokens_of(2, 1), first_logit=0), segment]))
        if kind in ("gemma2", "gemma3"):  # norms behind attention and MLP are PyTorch's there
            assert (together - apart).norm() < 0.02 * apart.norm()
        else:
            assert torch.equal(together, apart), size
        context += size


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_nothing_is_asked_of_change_nothing(native: NativeLibrary, kind: str, form: Form) -> None:
    """Behind the last layer's attention only wanted rows go on: theirs are the bits that they have where all do, and the keys and
    values of the others are all written."""
    executor = executor_of(kind, form)
    layers, first, second = executor._layers, [3, 9], [1, 4]

    def hidden(segments: list[Segment], made: Layers) -> torch.Tensor:
        return executor.decoder.hidden(lay_out(Batch(segments), CPU), made)

    def text(seed: int, size: int, wanted: int) -> list[Segment]:
        return [Segment(first, 0, tokens_of(size, seed), first_logit=wanted), Segment(second, 0, tokens_of(size - 1, seed + 1))]

    for size, wanted in ((7, 7), (7, 5), (FEW_ROWS + 20, FEW_ROWS + 17), (FEW_ROWS + 20, FEW_ROWS + 20), (5, 0)):
        behind = [Segment(first, size, tokens_of(2, 3)), Segment(second, size - 1, tokens_of(2, 4))]
        whole, goes_on = hidden(text(1, size, 0), layers), hidden(behind, layers)
        for made in (layers, one_by_one(executor)):
            hidden(text(5, size, 0), layers)  # so that nothing of the first text is left
            rows, after = hidden(text(1, size, wanted), made), hidden(behind, layers)
            if made is layers or kind not in ("gemma2", "gemma3"):
                assert torch.equal(rows, whole[wanted:]), (size, wanted)
                assert torch.equal(after, goes_on), (size, wanted)
            else:
                assert rows.shape == whole[wanted:].shape


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_with_the_codes_of_a_file(native: NativeLibrary, kind: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", kind=GGMLQuantizationType[kind])
    executor = Executor(load_decoder(open_gguf(tmp_path / "a.gguf"), FILE, CPU, None), 4, CPU)
    assert isinstance(executor._layers, NativeLayers)
    together, apart = both(executor, Batch([Segment([2, 0], 0, [3, 1, 2, 5, 4], first_logit=0)]))
    assert torch.equal(together.nan_to_num(), apart.nan_to_num())


def test_who_is_no_kernel_goes_one_after_the_other(native: NativeLibrary, tmp_path: Path) -> None:
    write_mixed(tmp_path / "mixed.gguf")
    executor = Executor(load_decoder(open_gguf(tmp_path / "mixed.gguf"), FILE, CPU, None), 4, CPU)
    assert isinstance(executor._layers, ComposedLayers)
    assert isinstance(tiny_executor("llama", FP32)._layers, ComposedLayers)


def test_layers_that_do_not_fit_are_refused(native: NativeLibrary) -> None:
    executor = tiny_executor("qwen3", INT8)
    shape, weights = executor.decoder.description, executor.decoder.weights.layers
    attention = make_attention(shape, executor.pool, [None] * len(weights), torch.float32, CPU)
    assert isinstance(attention, NativeAttention)
    good = _parts(weights[0], shape, 0)
    assert good is not None
    narrow = torch.ones(3)
    for bad in (
        replace(good, qkv=good.output),
        replace(good, down=good.gate_up),
        replace(good, attention_norm=narrow),
        replace(good, query_norm=narrow),
        replace(good, mlp_norm=good.mlp_norm.double()),
    ):
        with pytest.raises(ValueError, match=r"fit|needs a contiguous"):
            LayerStack(native, [bad], attention.kernel, 1e-6)
    stack = LayerStack(native, [replace(good, post_mlp_norm=good.mlp_norm)], attention.kernel, 1e-6)
    attention.begin(lay_out(Batch([Segment([0], 0, [1, 2])]), CPU))
    with pytest.raises(ValueError, match="refused its arguments"):  # a norm behind the MLP and none behind attention
        stack(torch.zeros(2, good.qkv.inputs), *attention.rotations)
    with pytest.raises(ValueError, match="needs a contiguous"):
        stack(torch.zeros(3, good.qkv.inputs), *attention.rotations)
    stack = LayerStack(native, [good], attention.kernel, 1e-6)
    for wanted in ([2], [-1], [1, 0], [0, 0]):
        with pytest.raises(ValueError, match="refused its arguments"):
            stack(torch.zeros(2, good.qkv.inputs), *attention.rotations, torch.tensor(wanted))
