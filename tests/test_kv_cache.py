"""Types of keys and values: who is refused, what a pool takes, what an answer says of it, and that nothing else about it shows."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from hasten import LLM, SamplingParams
from hasten.cache.pool import FloatPool, Int8Pool, Pool, bytes_per_block, make_pool
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.loading import load_model
from hasten.model import attention
from hasten.model.attention import choose_cache
from hasten.model.precision import BF16, CACHE_TYPES, FP64, INT8
from hasten.native.loader import load
from real import model_path, shared_data, text_tokens
from tiny import BASE, CPU, tiny_executor

WIDE = replace(BASE, head_dim=64)
needs_kernels = pytest.mark.skipif(load() is None, reason="the native kernels are not built here")


def test_auto_is_what_the_precision_says() -> None:
    for precision in (INT8, BF16, FP64):
        assert choose_cache("auto", precision, BASE, CPU) is precision.cache
    assert choose_cache("bf16", INT8, BASE, CPU) is torch.bfloat16
    assert INT8.cache is torch.float16
    assert choose_cache("fp32", BF16, BASE, CPU) is torch.float32


@needs_kernels
def test_int8_where_its_kernels_take_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_cache("int8", INT8, WIDE, CPU) is torch.int8
    for precision, description, device in (
        (FP64, WIDE, CPU),
        (INT8, BASE, CPU),
        (INT8, replace(BASE, head_dim=576), CPU),
        (BF16, WIDE, torch.device("cuda")),
    ):
        with pytest.raises(ConfigError, match=r"^kv_cache_dtype int8 [^.]*; use auto\.$"):
            choose_cache("int8", precision, description, device)
    monkeypatch.setattr(attention, "load", lambda: None)
    with pytest.raises(ConfigError, match="native kernels"):
        choose_cache("int8", INT8, WIDE, CPU)


def test_a_wrong_name_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype must be one of auto, fp32, fp16, bf16, int8, not 'fp8'"):
        EngineConfig(kv_cache_dtype="fp8")


@pytest.mark.parametrize("dtype", CACHE_TYPES.values(), ids=CACHE_TYPES)
@pytest.mark.parametrize("head_dim", [64, 192])
def test_a_pool_takes_what_was_said(dtype: torch.dtype, head_dim: int) -> None:
    pool = make_pool(3, 2, head_dim, 5, dtype, CPU)
    assert pool.bytes == 5 * bytes_per_block(3, 2, head_dim, dtype)
    assert isinstance(pool, Int8Pool) == (dtype is torch.int8)


def test_int8_halves_bf16_but_for_its_scales() -> None:
    for head_dim in (64, 128, 256):
        ours, bf16, full = (bytes_per_block(1, 1, head_dim, dtype) for dtype in (torch.int8, torch.bfloat16, torch.float32))
        assert ours / bf16 == 0.5 + 1 / head_dim
        assert ours / full == 0.25 + 0.5 / head_dim


def slots(pool: Pool) -> torch.Tensor:
    """Every slot's bytes in its own line: [blocks * 64, bytes of a slot]."""
    lines = []
    for tensor in pool.tensors:
        inside = list(tensor.shape[3:])
        if isinstance(pool, Int8Pool) and len(inside) == 3 and inside[2] == 4 and inside[0] == BLOCK_SIZE // 4:
            tensor = tensor.transpose(-1, -2).reshape(*tensor.shape[:3], BLOCK_SIZE, -1)  # values: fours of slots, then dimensions
            place = 3
        else:
            place = 3 + inside.index(BLOCK_SIZE)
        lines.append(tensor.movedim(place, 2).transpose(0, 1).transpose(1, 2).reshape(pool.num_blocks * BLOCK_SIZE, -1).float())
    return torch.cat(lines, 1)


def test_half_keys_and_values_end_at_the_largest_half() -> None:
    pool = make_pool(1, 1, 16, 1, torch.float16, CPU)
    assert isinstance(pool, FloatPool)
    rows = torch.tensor([7e4, -1e9, 65504.0, 1.0]).repeat(4).view(1, 1, 16)
    pool.write(0, torch.tensor([5]), rows, rows)
    for kept in (pool.keys[0, 0, 0, :, 5], pool.values[0, 0, 0, 5]):
        assert kept.float().tolist() == [65504.0, -65504.0, 65504.0, 1.0] * 4


@pytest.mark.parametrize("dtype", CACHE_TYPES.values(), ids=CACHE_TYPES)
def test_slots_and_blocks_are_copied_whole_and_nothing_else_is(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    pool = make_pool(2, 3, 192, 4, dtype, CPU)
    for tensor in pool.tensors:
        tensor.copy_(torch.randint(-100, 100, tensor.shape, generator=generator))
    wanted = slots(pool).clone()
    sources, destinations = [70, 71, 5, 200], [69, 70, 6, 1]
    wanted[destinations] = wanted[sources].clone()
    pool.move(sources, destinations)
    assert torch.equal(slots(pool), wanted)
    pool.copy_blocks([(1, 3), (0, 2)])
    wanted = wanted.view(4, BLOCK_SIZE, -1)
    wanted[3], wanted[2] = wanted[1].clone(), wanted[0].clone()
    assert torch.equal(slots(pool), wanted.view(4 * BLOCK_SIZE, -1))
    pool.move([], [])
    pool.copy_blocks([])


@needs_kernels
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_int8_keys_and_values_are_close_to_float_ones(kind: str) -> None:
    """Logits move by a few percent of their spread; zeroed keys or lost scales would move them by all of it."""
    tokens = [(7 * i * i + 3 * i) % 60 for i in range(130)]
    batch = Batch([Segment([1, 0, 2], 0, tokens)])
    executor = tiny_executor(kind, INT8, cache=torch.int8)
    floats = type(executor)(executor.decoder, 16, CPU)
    ours, wanted = executor.forward(batch), floats.forward(batch)
    assert 0 < (ours - wanted).norm() < 0.08 * (wanted - wanted.mean(0)).norm()
    assert (executor.precision, floats.precision) == ("int8-kv-int8", "int8")


@needs_kernels
@pytest.mark.real
def test_a_real_model_is_exact_with_int8_keys_and_values() -> None:
    model_path("smollm2-135m")
    lines = shared_data("spec_bench_dev.jsonl").read_text().splitlines()
    with LLM("smollm2-135m", precision="int8", kv_cache_dtype="int8") as llm:
        prompts = [llm.encode(json.loads(line)["turns"][0])[:200] for line in lines[::30]]
        for params in (SamplingParams(max_tokens=16, ignore_eos=True), SamplingParams(max_tokens=16, temperature=0.8, seed=3)):
            drafted = llm.generate(prompts, params)
            drafters, llm.engine.drafting.drafters = llm.engine.drafting.drafters, []
            plain = [llm.generate([prompt], params)[0] for prompt in prompts]
            llm.engine.drafting.drafters = drafters
            assert [answer.tokens for answer in drafted] == [answer.tokens for answer in plain]
            assert {answer.precision for answer in drafted} == {"int8-kv-int8"}
        assert llm.precision == "int8-kv-int8"


@needs_kernels
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_int8_keys_and_values_cost_at_most_0_3_percent_of_perplexity(name: str) -> None:
    """Beyond what noise explains: two standard errors of the paired difference, which must itself be small enough to tell."""
    path, chunk, chunks = model_path(name), 512, 12
    model = load_model(name, path, EngineConfig(model=name, precision="int8", cache_tokens=chunk), CPU, silent)
    tokens = text_tokens(path, chunk * chunks)
    lead, losses = list(model.tokenizer.prefix_ids), []
    for cache in (torch.float32, torch.int8):
        executor = type(model.executor)(model.executor.decoder, model.num_blocks, CPU, cache)
        pieces = [lead + tokens[start : start + chunk - len(lead)] for start in range(0, len(tokens), chunk)]
        batches = [Batch([Segment(list(range(chunk // BLOCK_SIZE)), 0, piece)]) for piece in pieces]
        loss = torch.nn.functional.cross_entropy  # piece by piece: logits of a large vocabulary are gigabytes together
        losses.append([loss(executor.forward(b)[:-1].double(), torch.tensor(p[1:])) for b, p in zip(batches, pieces, strict=True)])
    difference = torch.stack(losses[1]) - torch.stack(losses[0])
    mean, error = float(difference.mean()), float(difference.std()) / math.sqrt(chunks)
    print(f"{name}: {100 * mean:+.3f} +- {100 * error:.3f} %")
    assert error < 0.003
    assert mean - 2 * error < 0.003
