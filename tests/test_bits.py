"""With the native kernels a row's logits are the same bits whatever else is in the step: promise 1 in int8 and int4, always."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from drafters import Random, RightThenWrong
from hasten.core.types import Batch, SamplingParams, Segment, Sequence
from hasten.draft.suffix import SuffixDrafter
from hasten.model.precision import INT3, INT4, INT8
from hasten.native.loader import load
from test_decoder import KINDS, random_tree, tokens_of
from test_exact import SAMPLED, SETTINGS, prompt_of
from tiny import INT8_CACHE, Form, run_all, tiny_engine, tiny_executor

pytestmark = pytest.mark.skipif(load() is None, reason="the native kernels are not built here")

CASES = [
    *((kind, Form(INT8)) for kind in KINDS),
    ("qwen2", Form(INT4)),
    ("gemma3", Form(INT4)),
    ("llama", Form(INT3)),
    *((kind, INT8_CACHE) for kind in KINDS),
]


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_chunks_batches_and_trees_change_no_bit(kind: str, form: Form) -> None:
    tokens = tokens_of(140, 1)
    whole = tiny_executor(kind, form.precision, cache=form.cache).forward(Batch([Segment([0, 1, 2], 0, tokens)]))
    for seed in range(6):
        rng = random.Random(seed)
        executor = tiny_executor(kind, form.precision, cache=form.cache)
        blocks = rng.sample(range(16), 5)
        at = 0
        while at < len(tokens):
            size = min(rng.choice([1, 1, 2, 7, 40, 64, 100]), len(tokens) - at)
            tree = random_tree(rng, rng.randrange(12))
            others = [Segment([b], 0, tokens_of(rng.randrange(1, 50), seed)) for b in _free(blocks, rng)]
            segment = Segment(blocks, at, tokens[at : at + size], tree)
            logits = executor.forward(Batch([*others, segment]))
            first = sum(other.rows for other in others)
            assert torch.equal(logits[first : first + size], whole[at : at + size]), (kind, seed, at, size)
            at += size


def _free(blocks: list[int], rng: random.Random) -> list[int]:
    return rng.sample([block for block in range(16) if block not in blocks], rng.randrange(3))


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_a_node_has_the_bits_of_its_plain_text(kind: str, form: Form) -> None:
    rng = random.Random(4)
    for context in (3, 50, 62, 64, 120):
        tokens, tree = tokens_of(context + 1, context), random_tree(rng, 20)
        executor = tiny_executor(kind, form.precision, cache=form.cache)
        executor.forward(Batch([Segment([3, 2, 1], 0, tokens[:context])]))
        logits = executor.forward(Batch([Segment([3, 2, 1], context, tokens[context:], tree)]))
        for node in range(len(tree)):
            text = tokens + [tree.tokens[step] for step in tree.path(node)]
            fresh = tiny_executor(kind, form.precision, cache=form.cache)
            plain = fresh.forward(Batch([Segment([7, 8, 9], 0, text, first_logit=len(text) - 1)]))
            assert torch.equal(logits[1 + node], plain[0])


WISHES = [*SETTINGS.values(), replace(SAMPLED, n=2)]


@pytest.mark.parametrize(("place", "kind", "form"), [(place, *case) for place, case in enumerate(CASES)])
def test_the_integer_engine_is_exact(place: int, kind: str, form: Form) -> None:
    """Plain and alone against drafted, batched, chunked, preempted and cached; two settings a case, all of them over the cases."""
    check_exact(kind, form, [WISHES[place % len(WISHES)], WISHES[(place + len(WISHES) // 2) % len(WISHES)]])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_the_integer_engine_is_exact_at_every_setting(kind: str, form: Form) -> None:
    check_exact(kind, form, WISHES)


def check_exact(kind: str, form: Form, wishes: list[SamplingParams]) -> None:
    prompts = [prompt_of(length, length) for length in (1, 30, 64, 100, 140)]
    for params in wishes:
        plain = []
        for prompt in prompts:
            engine = tiny_engine(kind, precision=form.precision, cache=form.cache, max_rows=512, prefix_cache=False)
            plain += run_all(engine, [engine.submit(list(prompt), params)])

        def known(sequence: Sequence, params: object = params, plain: list[list[int]] = plain) -> list[int]:
            return plain[[len(p) for p in prompts].index(sequence.prompt_length)] if sequence.index == 0 else []

        for num_blocks, max_rows, max_sequences in ((24, 512, 8), (5, 16, 3), (9, 40, 5)):
            drafters = [SuffixDrafter(), Random(), RightThenWrong(known)]
            engine = tiny_engine(
                kind,
                drafters,
                precision=form.precision,
                cache=form.cache,
                num_blocks=num_blocks,
                max_rows=max_rows,
                max_sequences=max_sequences,
            )
            for _ in range(2):  # the second time prefixes are found
                assert run_all(engine, [engine.submit(list(prompt), params) for prompt in prompts]) == plain


def test_threads_change_no_bit() -> None:
    library = load()
    assert library is not None
    before = library.threads
    tokens = tokens_of(100, 3)
    try:
        results = []
        for threads in (1, 2, 3):
            library.set_threads(threads)
            results.append(tiny_executor("gemma3", INT8).forward(Batch([Segment([0, 1], 0, tokens)])))
    finally:
        library.set_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
