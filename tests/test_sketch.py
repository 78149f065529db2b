"""What the engine makes of a head's leaders: which requests they decide, and real heads."""

from __future__ import annotations

import pytest
import torch

from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import Batch, SamplingParams, Segment
from hasten.engine.llm import LLM
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.native.sketch import SketchedHead
from hasten.sampling.choose import leaders_needed
from real import model_path, text_tokens
from test_native_sketch import check_leaders


def test_which_requests_are_decided_by_leaders() -> None:
    assert leaders_needed(SamplingParams(), False) == 1
    assert leaders_needed(SamplingParams(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05), False) == 20
    for params in (
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=0.7, min_p=0.1),
        SamplingParams(logprobs=0),
        SamplingParams(logit_bias={5: 1.0}),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(presence_penalty=0.5),
        SamplingParams(frequency_penalty=-0.5),
    ):
        assert leaders_needed(params, False) == 0, params
    assert leaders_needed(SamplingParams(), True) == 0


REAL = ["smollm2-135m-int8", "smollm2-135m-file", "gemma-3-270m-file"]


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> LoadedModel:
    name, _, precision = request.param.rpartition("-")
    config = EngineConfig(model=name, precision=precision, cache_tokens=2048)
    return load_model(name, model_path(name), config, choose_device("cpu"), silent)


def test_a_real_heads_leaders(real: LoadedModel) -> None:
    """Over a thousand rows of real text: what is chosen greedily, and the twenty that top-k leaves."""
    sketch = real.executor.decoder.weights.sketch
    if sketch is None:
        pytest.skip("needs the native kernels on an x86 processor")
    tokens = text_tokens(model_path(real.name), 1024)
    pool, count = list(range(20)), real.tokenizer.vocabulary_size
    rough = paid = 0
    for start in range(0, 1024, 64):
        rows, leaders = tokens[start : start + 64], 20 if start % 128 else 1
        whole = real.executor.forward(Batch([Segment(pool, start, rows)]))
        some = 1 if leaders > 1 else 4
        for first in range(0, 64, some):  # the same rows again, few at a time as in decoding
            keep = torch.full((some,), leaders)
            found = real.executor.forward(Batch([Segment(pool, start + first, rows[first : first + some], leaders=leaders)]))
            check_leaders(found, whole[first : first + some], count, keep)
            rough += not torch.equal(found, whole[first : first + some])
            paid += sketch.pays(keep)
    assert paid / 2 < rough <= paid, "nothing else shows that the sketch was read"


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.9, top_k=40, seed=3)], ids=["greedy", "top-k"])
def test_answers_are_those_of_the_whole_head(params: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logprobs take the whole head, and change nothing else."""
    model_path("smollm2-135m")
    texts = ["The capital of France is", "def fibonacci(n):", "Once upon a time, in a"]
    with LLM("smollm2-135m", draft="suffix+recycling", cache_tokens=2048) as llm:
        sketch = llm.engine.executor.decoder.weights.sketch
        if sketch is None:
            pytest.skip("needs the native kernels on an x86 processor")
        looked: list[int] = []
        monkeypatch.setattr(sketch, "leaders", lambda *given: looked.append(len(given[0])) or SketchedHead.leaders(sketch, *given))
        asked = SamplingParams(**{name: getattr(params, name) for name in ("temperature", "top_k", "seed")}, max_tokens=120)
        whole = SamplingParams(
            **{name: getattr(asked, name) for name in ("temperature", "top_k", "seed", "max_tokens")}, logprobs=0
        )
        sketched = [answer.tokens for answer in llm.generate(texts, asked)]
        assert bool(looked) == params.greedy  # of so narrow a head forty outputs are not worth it
        looked.clear()
        assert sketched == [answer.tokens for answer in llm.generate(texts, whole)]
        assert not looked
