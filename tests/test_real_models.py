"""Promises on real models: same text with and without drafts, quality near bf16, memory and load time within bounds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hasten import LLM, SamplingParams
from hasten.core.config import EngineConfig, SpeculationParams
from hasten.core.progress import silent
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.engine.loading import load_model
from hasten.model import storage
from hasten.native.loader import load, status
from hasten.train.quantise import quantise
from real import model_path, shared_data

NEEDS_KERNELS = pytest.mark.skipif(load() is None, reason=f"native kernels: {status().get('reason')}")
ALWAYS = SpeculationParams(mode="on")
PRECISIONS = ["int8", *(pytest.param(precision, marks=NEEDS_KERNELS) for precision in ("int4", "file"))]
MODELS = ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma-3-270m"]


def questions(step: int) -> list[str]:
    lines = shared_data("spec_bench_dev.jsonl").read_text().splitlines()
    return [json.loads(line)["turns"][0] for line in lines[::step]]


def differences(llm: LLM, prompts: list[list[int]], params: SamplingParams, batch: int) -> list[str]:
    """Plain, all together, against drafted in every round, ``batch`` at a time; a line for each prompt whose tokens differ."""
    drafters = llm.engine.drafting.drafters
    llm.engine.drafting.drafters = []
    plain = llm.generate(prompts, params)
    llm.engine.drafting.drafters = drafters
    out = []
    drafted = 0
    drafted_texts = [
        spec for at in range(0, len(prompts), batch) for spec in llm.generate(prompts[at : at + batch], params, speculation=ALWAYS)
    ]
    for at, spec in enumerate(drafted_texts):
        drafted += spec.speculation.drafted
        if spec.tokens != plain[at].tokens:
            where = next(i for i, (a, b) in enumerate(zip(spec.tokens, plain[at].tokens, strict=True)) if a != b)
            out.append(f"prompt {at} at token {where}")
    assert drafted > 0, "nothing was drafted, so nothing was shown"
    return out


def check_exact(name: str, step: int, tokens: int, batch: int, precision: str = "int8") -> None:
    model_path(name)
    with LLM(name, draft="auto", cache_tokens=8192, precision=precision) as llm:
        prompts = [
            llm.render_chat([{"role": "user", "content": text}]) if llm.has_chat_template else llm.encode(text)
            for text in questions(step)
        ]
        room = llm.context_length - tokens
        prompts = [prompt[-room:] for prompt in prompts]
        for params in (
            SamplingParams(max_tokens=tokens, ignore_eos=True),
            SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.8, seed=20),
        ):
            found = differences(llm, prompts, params, batch)
            assert not found, f"{name}, temperature {params.temperature}: {found}"


@pytest.mark.real
@pytest.mark.parametrize(
    "precision",
    ["int8", pytest.param("int4", marks=NEEDS_KERNELS), pytest.param("file", marks=[NEEDS_KERNELS, pytest.mark.slow])],
)  # of "file" the fast test is test_precision_file.test_drafts_change_no_token
def test_a_real_model_is_exact(precision: str) -> None:
    check_exact("smollm2-135m", step=20, tokens=24, batch=1, precision=precision)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_all_dev_prompts_are_exact(name: str, precision: str) -> None:
    check_exact(name, step=1, tokens=64, batch=4, precision=precision)


def perplexity(name: str, precision: str, chunks: int, chunk: int = 512) -> float:
    config = EngineConfig(model=name, precision=precision, cache_tokens=chunk)
    model = load_model(name, model_path(name), config, torch.device("cpu"), silent)
    text = shared_data("wikitext2_test_part.txt").read_text()
    tokens = model.tokenizer.encode(text[: chunks * chunk * 8], add_bos=False)
    lead = list(model.tokenizer.prefix_ids)
    total, count = 0.0, 0
    for start in range(0, chunk * chunks, chunk):
        piece = lead + tokens[start : start + chunk - len(lead)]
        logits = model.executor.forward(Batch([Segment(list(range(chunk // BLOCK_SIZE)), 0, piece)]))
        total += float(torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(piece[1:]), reduction="sum"))
        count += len(piece) - 1
    return math.exp(total / count)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", MODELS)
def test_int8_perplexity_is_within_one_percent_of_bf16(name: str) -> None:
    chunks = 4 if "1.5b" in name else 8
    reference, ours = perplexity(name, "bf16", chunks), perplexity(name, "int8", chunks)
    print(f"{name}: bf16 {reference:.3f}, int8 {ours:.3f} ({100 * (ours / reference - 1):+.2f} %)")
    assert abs(ours / reference - 1) <= 0.01


@NEEDS_KERNELS
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(3600)
def test_knowing_the_inputs_beats_rounding_to_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated on the model's own text, int4 loses less than half of what plain rounding loses on another text."""
    name = "smollm2-135m"
    file = model_path(name)
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    storage.gguf_directory().mkdir()
    storage.catalogue_path(name).symlink_to(file)
    exact, plain = perplexity(name, "fp32", 8), perplexity(name, "int4", 8)
    outcome = quantise(EngineConfig(model=name))
    ours = perplexity(name, "int4", 8)
    print(f"{name}: fp32 {exact:.3f}, int4 nearest {plain:.3f}, calibrated {ours:.3f}, {outcome.bytes} bytes")
    assert ours / exact - 1 < 0.5 * (plain / exact - 1)


LOAD = """
import resource, sys, time, torch
from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import Batch, Segment
from hasten.engine.loading import load_model
from hasten.model import storage
from hasten.native.loader import load, status
from hasten.train.quantise import quantise
from pathlib import Path
started = time.perf_counter()
model = load_model("m", Path(sys.argv[1]), EngineConfig(precision="int8", cache_tokens=4096), torch.device("cpu"), silent)
seconds = time.perf_counter() - started
model.executor.forward(Batch([Segment(list(range(64)), 0, [1] * 512)]))
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
@pytest.mark.real
def test_memory_and_second_load_of_the_large_model() -> None:
    path = model_path("qwen2.5-coder-1.5b")
    subprocess.run([sys.executable, "-c", LOAD, str(path)], check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], check=True, capture_output=True, text=True)
    seconds, gigabytes = map(float, done.stdout.split())
    print(f"second load {seconds:.1f} s, peak {gigabytes:.2f} GB")
    assert gigabytes <= 3.2
    assert seconds <= 8.0
