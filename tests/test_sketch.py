"""What the engine makes of a head's leaders: which requests they decide, and real heads."""

from __future__ import annotations

import pytest
import torch

from hasten.core.config import EngineConfig
from hasten.core.progress import silent
from hasten.core.types import Batch, Draw, SamplingParams, Segment
from hasten.engine.llm import LLM
from hasten.engine.loading import LoadedModel, choose_device, load_model
from hasten.native.sketch import SketchedHead
from hasten.sampling.choose import leaders_needed
from hasten.sampling.draws import lone_seed
from real import model_path, text_tokens
from test_native_sketch import check_draws, check_leaders


def test_which_requests_are_decided_by_leaders() -> None:
    def needed(params: SamplingParams, rule: str = "coupled", constrained: bool = False) -> tuple[int, Draw | None]:
        return leaders_needed(params, 9, rule, constrained)

    assert needed(SamplingParams()) == needed(SamplingParams(), "block") == (1, None)
    assert (
        needed(SamplingParams(temperature=0.7, top_p=0.0))
        == needed(SamplingParams(temperature=0.7, top_k=9, top_p=0.0))
        == (1, None)
    )
    assert needed(SamplingParams(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05)) == (20, None)
    assert needed(SamplingParams(temperature=0.7)) == (1, Draw(0.7, 9))
    for rule in ("rejection", "block"):
        assert needed(SamplingParams(temperature=0.7), rule) == (1, Draw(0.7, lone_seed(9)))
    for params in (
        SamplingParams(temperature=1e-300),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=0.7, min_p=0.1),
        SamplingParams(logprobs=0),
        SamplingParams(logit_bias={5: 1.0}),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(presence_penalty=0.5),
        SamplingParams(frequency_penalty=-0.5),
    ):
        assert needed(params) == (0, None), params
    assert needed(SamplingParams(), constrained=True) == needed(SamplingParams(temperature=0.7), constrained=True) == (0, None)


REAL = ["smollm2-135m-int8", "smollm2-135m-file", pytest.param("gemma-3-270m-file", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> LoadedModel:
    name, _, precision = request.param.rpartition("-")
    config = EngineConfig(model=name, precision=precision, cache_tokens=2048)
    return load_model(name, model_path(name), config, choose_device("cpu"), silent)


@pytest.mark.parametrize("count", [256, pytest.param(2048, marks=pytest.mark.slow)])
def test_a_real_heads_leaders(real: LoadedModel, count: int) -> None:
    """Over rows of real text: what is chosen greedily, the twenty that top-k leaves, and what is drawn from all."""
    sketch = real.executor.decoder.weights.sketch
    if sketch is None:
        pytest.skip("needs the native kernels on an x86 processor")
    tokens, size = text_tokens(model_path(real.name), 1024), real.tokenizer.vocabulary_size
    pool, rough, paid = list(range(20)), 0, 0
    for start in range(0, count, 64):
        context, wanted = start % 1024, start // 64 % 4
        leaders, draw = (20, None) if wanted == 3 else (1, None) if wanted == 2 else (1, Draw((0.7, 1.3)[wanted], start))
        rows, some = tokens[context : context + 64], 1 if leaders > 1 else 4 if draw is None else 2
        whole = real.executor.forward(Batch([Segment(pool, context, rows)]))
        for first in range(0, 64, some):  # the same rows again, few at a time as in decoding
            keep = torch.full((some,), leaders)
            again = Segment(pool, context + first, rows[first : first + some], leaders=leaders, draw=draw)
            found, right = real.executor.forward(Batch([again])), whole[first : first + some]
            check_leaders(found, right, size, keep)
            if draw is not None:
                draws = [(draw.temperature, draw.seed, again.context + row + 1) for row in range(some)]
                check_draws(found, right, size, draws)
            rough += not torch.equal(found, right)
            paid += sketch.pays(keep, draw is not None)
    assert paid / 2 < rough <= paid, "nothing else shows that the sketch was read"


@pytest.mark.parametrize(
    "params",
    [SamplingParams(), SamplingParams(temperature=0.9, top_k=40, seed=3), SamplingParams(temperature=1.0, seed=4)],
    ids=["greedy", "top-k", "drawn"],
)
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
        assert bool(looked) == (not params.top_k)  # of so narrow a head forty outputs are not worth it
        looked.clear()
        assert sketched == [answer.tokens for answer in llm.generate(texts, whole)]
        assert not looked
