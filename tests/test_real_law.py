"""Rejection and drafts of another vocabulary on real models: the law of short continuations, and unchanged texts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats

from hasten import LLM, SamplingParams
from hasten.core.types import Batch, Segment
from hasten.draft.foreign import MATCHES
from hasten.draft.lm import LanguageModelDrafter
from hasten.sampling.filters import adjusted
from hasten.sampling.laws import Law, warped_law
from real import model_path
from test_real_models import differences, questions

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(3600)]

NAME = "smollm2-135m"
ALPHA = 1e-4
LENGTH = 3
ANSWERS = 800
WARM = SamplingParams(temperature=1.0, top_k=3, max_tokens=LENGTH, ignore_eos=True)


def law_after(llm: LLM, tokens: list[int]) -> Law:
    logits = llm.engine.executor.forward(Batch([Segment([0, 1], 0, tokens, first_logit=len(tokens) - 1)]))[0]
    return warped_law(adjusted(logits, WARM, len(tokens), vocabulary_size=llm.engine.vocabulary), WARM)


def joint(llm: LLM, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The target's law of the next ``LENGTH`` tokens, by passes over every continuation."""
    out: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        for path, chance in out.items():
            law = law_after(llm, [*prompt, *path])
            longer.update({(*path, int(x)): chance * float(p) for x, p in zip(law.ids, law.masses, strict=True)})
        out = longer
    return out


def poor_twin(llm: LLM) -> None:
    """The draft model is the target itself with its logits flattened: much alike, and often wrong."""
    drafter = llm.engine.drafting.drafters[0]
    assert isinstance(drafter, LanguageModelDrafter)
    whole = drafter._forward

    def flattened(batch: Batch) -> torch.Tensor:
        return whole(batch) * 0.4

    drafter._forward = flattened


@pytest.mark.parametrize(("verify", "draft"), [
    ("rejection", "lm(width=1)"),
    ("rejection", "lm(tree=rsd-s,width=2)"),
    ("block", "lm(width=1)"),
    ("block", "lm(tree=rsd-c)"),
])  # fmt: skip
def test_the_law_of_short_continuations(verify: str, draft: str) -> None:
    model_path(NAME)
    spec = draft.replace("(", f"(model='{NAME}',")
    with LLM(NAME, draft=spec, verify=verify, control="fixed(2)", cache_tokens=4096, prefix_cache=False) as llm:
        prompt = llm.encode("My favourite animal is the")
        expected = joint(llm, prompt)
        assert sum(expected.values()) == pytest.approx(1.0)
        poor_twin(llm)
        each = [SamplingParams(**{**_fields(WARM), "seed": seed, "n": 40}) for seed in range(ANSWERS // 40)]
        done = llm.generate([prompt] * len(each), each)
        counts = Counter(tuple(answer.tokens) for completion in done for answer in completion.answers)
    accepted = sum(completion.speculation.accepted for completion in done)
    drafted = sum(completion.speculation.drafted for completion in done)
    assert 0.1 < accepted / drafted < 0.95, "neither rule is put to the test"
    assert set(counts) <= set(expected)
    common = [path for path, p in expected.items() if p * ANSWERS >= 5]
    rare = sum(counts[path] for path in expected if path not in common)
    means = [expected[path] * ANSWERS for path in common]
    seen = [counts[path] for path in common]
    if len(common) < len(expected):
        seen, means = [*seen, rare], [*means, ANSWERS - sum(means)]
    assert stats.chisquare(seen, means).pvalue > ALPHA


def _fields(params: SamplingParams) -> dict[str, object]:
    return {"temperature": params.temperature, "top_k": params.top_k, "max_tokens": params.max_tokens, "ignore_eos": True}


@pytest.mark.parametrize("match", MATCHES)
def test_a_draft_model_of_another_vocabulary_leaves_the_text_alone(match: str) -> None:
    for name in ("qwen2.5-coder-0.5b", NAME):
        model_path(name)
    with LLM("qwen2.5-coder-0.5b", draft=f"lm(model={NAME!r},match={match})", cache_tokens=4096, control="fixed(4)") as llm:
        assert [drafter.name for drafter in llm.engine.drafting.drafters] == ["foreign"]
        prompts = [llm.render_chat([{"role": "user", "content": text}])[-512:] for text in questions(40)]
        for params in (
            SamplingParams(max_tokens=24, ignore_eos=True),
            SamplingParams(max_tokens=24, ignore_eos=True, temperature=0.8, seed=4),
        ):
            assert not differences(llm, prompts, params, batch=2)
        tally = llm.engine.drafting.statistics()["foreign"]
        assert tally.accepted > 0.1 * tally.verified  # a fifth here; by chance next to none
