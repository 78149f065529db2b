"""Promise 1: the text is a function of weights, prompt, parameters and seed, and of nothing else. In double precision, 100 %.

The reference chooses every token from a whole fresh pass; the engine must say the same with any drafter, any batch, any chunking,
any budget, with prefix hits, with preemption, at any temperature.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from drafters import Malformed, OutOfVocabulary, Raising, Random, Right, RightThenWrong, TooLong, Wrong
from hasten.cache.blocks import BlockManager
from hasten.control.cost import CostCurve
from hasten.core.types import DraftTree, SamplingParams, Sequence
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.suffix import SuffixDrafter
from hasten.native.loader import load
from hasten.sampling.laws import DraftLaws
from speculators import random_speculator
from tiny import (
    DESCRIPTIONS,
    DOUBLE,
    INT8_CACHE,
    VOCABULARY,
    Form,
    naive_text,
    run_all,
    tiny_engine,
    tiny_executor,
    whole_pass_text,
)

KINDS = list(DESCRIPTIONS)
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=0.8, seed=7)
HOT = replace(GREEDY, temperature=1.5, seed=11, top_p=0.95, top_k=30, min_p=0.02)
PENALISED = replace(GREEDY, temperature=0.7, seed=3, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3)
BIASED = replace(GREEDY, logit_bias={5: 3.0, 9: -100.0}, frequency_penalty=1.0)
INT8_KEYS = pytest.param(INT8_CACHE, id="int8 cache", marks=pytest.mark.skipif(load() is None, reason="needs the native kernels"))
FORMS = [pytest.param(DOUBLE, id="fp64"), INT8_KEYS]
SETTINGS = {"greedy": GREEDY, "sampled": SAMPLED, "hot": HOT, "penalised": PENALISED, "biased": BIASED}


def prompt_of(length: int, seed: int) -> tuple[int, ...]:
    """Repetitive enough for the suffix drafter to find matches."""
    rng = random.Random(seed)
    phrase = rng.choices(range(VOCABULARY - 1), k=max(3, length // 4))
    return tuple((phrase * 5)[:length])


def answers(kind: str, form: Form = DOUBLE) -> Callable[[Sequence], list[int]]:
    def lookup(sequence: Sequence) -> list[int]:
        params = replace(sequence.params, seed=sequence.seed)
        return naive_text(kind, tuple(sequence.tokens[: sequence.prompt_length]), params, form=form)

    return lookup


def expected_texts(
    kind: str, asked: list[tuple[tuple[int, ...], SamplingParams]], outputs: list[list[int]], form: Form = DOUBLE
) -> list[list[int]]:
    """What was to be said, prompt by prompt. What was said is the guess, which saves passes where it is right."""
    return [
        naive_text(kind, prompt, replace(params, seed=params.seed or 0), form=form, guess=output)
        for (prompt, params), output in zip(asked, outputs, strict=True)
    ]


@cache
def foretell(kind: str, prompts: tuple[tuple[int, ...], ...], settings: tuple[str, ...], form: Form) -> None:
    """Have the answers remembered, for drafters that know them: one plain batch guesses all, which costs far less than one each."""
    engine = tiny_engine(
        kind, precision=form.precision, cache=form.cache, num_blocks=96, max_rows=512, max_sequences=len(prompts) * len(settings)
    )
    asked = [(prompt, SETTINGS[setting]) for prompt in prompts for setting in settings]
    expected_texts(kind, asked, run_all(engine, [engine.submit(list(prompt), params) for prompt, params in asked]), form)


def draft_model(kind: str, perturbed: float, num_blocks: int = 24, form: Form = DOUBLE, **shape: Any) -> LanguageModelDrafter:
    executor = tiny_executor(kind, form.precision, num_blocks, perturbed=perturbed, cache=form.cache)
    return LanguageModelDrafter(executor.forward, BlockManager(num_blocks, prefix_cache=False), VOCABULARY, 512, **shape)


class GuessingAhead(LanguageModelDrafter):
    """Its passes have rows for guesses whatever those cost."""

    def _draft(self, sequences: list[Sequence], budgets: list[DraftBudget], drawing: bool) -> list[tuple[DraftTree, DraftLaws]]:
        return super()._draft(sequences, [replace(budget, ahead=(0.0,) * 4) for budget in budgets], drawing)


def guessing_ahead(kind: str, form: Form) -> LanguageModelDrafter:
    executor, blocks = (
        tiny_executor(kind, form.precision, 24, perturbed=0.05, cache=form.cache),
        BlockManager(24, prefix_cache=False),
    )
    return GuessingAhead(executor.forward, blocks, VOCABULARY, 512, commit=executor.commit)


DRAFTERS: dict[str, Callable[[str, Form], list[Drafter]]] = {
    "none": lambda kind, form: [],
    "suffix": lambda kind, form: [SuffixDrafter()],
    "lm-good": lambda kind, form: [draft_model(kind, 0.02, form=form)],
    "lm-poor": lambda kind, form: [draft_model(kind, 0.5, form=form)],
    "lm-ahead": lambda kind, form: [guessing_ahead(kind, form)],
    "lm-rsd-c": lambda kind, form: [draft_model(kind, 0.05, form=form, tree="rsd-c", branching=(3, 2))],
    "lm-rsd-s": lambda kind, form: [draft_model(kind, 0.05, form=form, tree="rsd-s", width=4)],
    "lm-top-k": lambda kind, form: [draft_model(kind, 0.05, form=form, tree="top-k", width=4)],
    "suffix+lm": lambda kind, form: [SuffixDrafter(), draft_model(kind, 0.05, form=form)],
    "speculator": lambda kind, form: [random_speculator(kind=kind, precision=form.precision)],
    "right": lambda kind, form: [Right(answers(kind, form))],
    "wrong": lambda kind, form: [Wrong(answers(kind, form))],
    "twigs": lambda kind, form: [RightThenWrong(answers(kind, form))],
    "random": lambda kind, form: [Random()],
    "foreign": lambda kind, form: [OutOfVocabulary()],
    "too long": lambda kind, form: [TooLong()],
    "all at once": lambda kind, form: [
        Random(),
        SuffixDrafter(),
        RightThenWrong(answers(kind, form)),
        TooLong(),
        OutOfVocabulary(),
    ],
}
TOLD = {"right", "wrong", "twigs", "all at once"}  # drafters that know the answer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_guess_changes_nothing_in_the_reference(kind: str, form: Form) -> None:
    """Right to the end, wrong from the first, in the middle or everywhere, too short or too long."""
    prompt, params = prompt_of(30, 3), replace(PENALISED, max_tokens=12)
    text = whole_pass_text(kind, prompt, params, 0, form, [])
    wrong = [(token + 1) % VOCABULARY for token in text]
    for guess in (text, wrong, [*text[:5], *wrong[5:]], [*wrong[:1], *text[1:]], text[:7], text * 20):
        assert whole_pass_text(kind, prompt, params, 0, form, guess) == text
    assert naive_text(kind, prompt, params, form=form) == text


def form_of(*places: int) -> int:
    """Every combination once, in one of the two forms; any two of its parts together in both. The rest is slow."""
    return sum(places) % 2


def in_forms(combinations: Iterable[tuple[tuple[Any, ...], int]]) -> list[Any]:
    """Both forms of each combination; slow where it is not the one that comes with it."""
    return [
        pytest.param(*values, *form.values, marks=[*form.marks, *([] if at == fast else [pytest.mark.slow])])
        for values, fast in combinations
        for at, form in enumerate(FORMS)
    ]


PAIRS = list(itertools.product(DRAFTERS, SETTINGS))


def form_of_pair(drafter: str, setting: str) -> int:
    return form_of(list(DRAFTERS).index(drafter), list(SETTINGS).index(setting))


def test_drafters_and_settings_meet_both_forms() -> None:
    for names, place in ((DRAFTERS, 0), (SETTINGS, 1)):
        for name in names:
            assert {form_of_pair(*pair) for pair in PAIRS if pair[place] == name} == {0, 1}


@pytest.mark.parametrize(("drafter", "setting", "form"), in_forms((pair, form_of_pair(*pair)) for pair in PAIRS))
def test_every_drafter_leaves_the_text_alone(drafter: str, setting: str, form: Form) -> None:
    """Eight prompts of different lengths in a batch of four, long prompts in chunks."""
    kind = KINDS[sum(map(ord, drafter + setting)) % len(KINDS)]
    params = SETTINGS[setting]
    prompts = tuple(prompt_of(length, seed) for seed, length in enumerate((1, 2, 5, 17, 63, 64, 65, 100)))
    if drafter in TOLD:
        foretell(kind, prompts, (setting,), form)
    engine = tiny_engine(
        kind, DRAFTERS[drafter](kind, form), precision=form.precision, cache=form.cache, max_rows=48, max_sequences=4
    )
    outputs = run_all(engine, [engine.submit(list(prompt), params) for prompt in prompts])
    assert outputs == expected_texts(kind, [(prompt, params) for prompt in prompts], outputs, form)


ROWS, SEQUENCES = (16, 17, 64, 300), (1, 3, 8)
SHAPES = list(itertools.product(KINDS, ROWS, SEQUENCES))


def form_of_shape(kind: str, max_rows: int, max_sequences: int) -> int:
    return form_of(KINDS.index(kind), ROWS.index(max_rows), SEQUENCES.index(max_sequences))


def test_budgets_and_batches_meet_both_forms() -> None:
    for first, second in itertools.combinations(range(3), 2):
        seen = {(shape[first], shape[second], form_of_shape(*shape)) for shape in SHAPES}
        assert len(seen) == 2 * len({(shape[first], shape[second]) for shape in SHAPES})


@pytest.mark.parametrize(
    ("kind", "max_rows", "max_sequences", "form"),
    in_forms((shape, form_of_shape(*shape)) for shape in SHAPES),
)
def test_budgets_batches_and_chunks(kind: str, max_rows: int, max_sequences: int, form: Form) -> None:
    prompts = tuple(prompt_of(length, 50 + length) for length in (3, 40, 90, 130))
    foretell(kind, prompts, ("greedy", "sampled"), form)
    engine = tiny_engine(
        kind,
        [SuffixDrafter(), RightThenWrong(answers(kind, form))],
        precision=form.precision,
        cache=form.cache,
        max_rows=max_rows,
        max_sequences=max_sequences,
    )
    asked = [(prompt, params) for prompt in prompts for params in (GREEDY, SAMPLED)]
    outputs = run_all(engine, [engine.submit(list(prompt), params) for prompt, params in asked])
    assert outputs == expected_texts(kind, asked, outputs, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_prefix_cache_hits(kind: str, form: Form) -> None:
    shared = prompt_of(140, 1)
    engine = tiny_engine(kind, [SuffixDrafter()], precision=form.precision, cache=form.cache)
    for tail in ((), (3,), (4, 5, 6), prompt_of(50, 2)):
        prompt = shared + tail
        request = engine.submit(list(prompt), GREEDY)
        assert run_all(engine, [request]) == [naive_text(kind, prompt, replace(GREEDY, seed=0), form=form)]
        assert (request.answers[0].sequence.cached >= 128) == (tail != ())
    other = engine.submit(list(shared), GREEDY, tenant="somebody else")
    run_all(engine, [other])
    assert other.answers[0].sequence.cached == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_blocks", [4, 5, 7])
def test_preemption(num_blocks: int, form: Form) -> None:
    """A pool far too small for the batch: sequences are thrown out and computed again, and nobody can tell."""
    prompts = [prompt_of(length, 70 + length) for length in (60, 100, 30, 128, 90)]
    engine = tiny_engine(
        "qwen3", [SuffixDrafter(), Random()], precision=form.precision, cache=form.cache, num_blocks=num_blocks, max_rows=64
    )
    outputs = run_all(engine, [engine.submit(list(prompt), SAMPLED) for prompt in prompts])
    assert outputs == expected_texts("qwen3", [(prompt, SAMPLED) for prompt in prompts], outputs, form)
    assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_top_p_0_is_the_text_of_the_likeliest_tokens(rule: str) -> None:
    """Whatever the seed, the rule and the drafts; its log-probabilities are the model's own, not those of the one token left."""
    prompt, likeliest = prompt_of(30, 9), replace(GREEDY, logprobs=2)
    asked = [likeliest, *(replace(likeliest, temperature=1.5, top_p=top_p, seed=5) for top_p in (0.0, 1e-300))]
    for drafter in ("none", "suffix+lm", "lm-rsd-s", "lm-top-k"):
        engine = tiny_engine("llama", DRAFTERS[drafter]("llama", DOUBLE), rule=rule)
        requests = [engine.submit(list(prompt), params) for params in asked]
        assert run_all(engine, requests) == [naive_text("llama", prompt, GREEDY)] * 3
        told = [request.answers[0].sequence.logprobs for request in requests]
        assert all(one.top[0] == (one.token, one.logprob) and one.logprob < 0.0 for one in told[1])
        assert [one.logprob for one in told[1]] == pytest.approx([one.logprob for one in told[0]], abs=1e-9)
        assert drafter == "none" or requests[1].speculation.accepted > 0


@pytest.mark.parametrize("tree", ["chain", "rsd-c", "rsd-s"])
@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_a_self_draft_is_always_accepted(tree: str, rule: str) -> None:
    """The draft model is the target itself: every chain token must be accepted, hot or cold, and in a tree its best path."""
    for params in (GREEDY, SAMPLED, HOT):
        drafter = draft_model("llama", 0.0, tree=tree)
        engine = tiny_engine("llama", [drafter], rule=rule)
        request = engine.submit(list(prompt_of(30, 9)), params)
        run_all(engine, [request])
        rounds = request.speculation.rounds
        assert request.speculation.accepted == 39 - rounds, "the first token and one a round are the target's own"
        assert rounds <= 20


@pytest.mark.parametrize(
    "drafter",
    [Raising("begin"), Raising("propose"), Raising("observe"), Raising("end"), Raising("begin", "propose", "observe", "end"),
     Malformed("too few"), Malformed("lengths"), Malformed("order")],
    ids=lambda drafter: f"{drafter.name}-{getattr(drafter, '_moments', getattr(drafter, '_kind', ''))}",
)  # fmt: skip
def test_a_failing_drafter_costs_the_drafter_only(drafter: Drafter, caplog: pytest.LogCaptureFixture) -> None:
    prompt = prompt_of(30, 5)
    engine = tiny_engine("llama", [SuffixDrafter(), drafter])
    requests = [engine.submit(list(prompt), GREEDY), engine.submit(list(prompt), SAMPLED)]
    assert run_all(engine, requests) == [naive_text("llama", prompt, replace(p, seed=p.seed or 0)) for p in (GREEDY, SAMPLED)]
    assert "failed" in caplog.text


def test_the_controller_may_do_anything() -> None:
    """Costs that make every kind of decision, down to never drafting."""
    prompt = prompt_of(60, 8)
    for curve in (
        CostCurve.measured({1: 1.0, 32: 1.0}),
        CostCurve.measured({1: 1.0, 2: 50.0, 32: 1000.0}),
        CostCurve.measured({1: 1e-9, 64: 1e-3}),
        CostCurve(),
    ):
        engine = tiny_engine("llama", [SuffixDrafter(), draft_model("llama", 0.1)], curve=curve)
        requests = [engine.submit(list(prompt), GREEDY), engine.submit(list(prompt), HOT)]
        assert run_all(engine, requests) == [naive_text("llama", prompt, replace(p, seed=p.seed or 0)) for p in (GREEDY, HOT)]


def test_fuzzed_schedules() -> None:
    """Requests arrive and are cancelled at random moments; those that finish say what they would have said alone."""
    rng = random.Random(2026)
    for trial in range(6):
        kind = rng.choice(KINDS)
        engine = tiny_engine(
            kind,
            [SuffixDrafter(), Random(), RightThenWrong(answers(kind))],
            num_blocks=rng.choice([6, 9, 24]),
            max_rows=rng.choice([16, 33, 128]),
            max_sequences=rng.choice([2, 5, 8]),
        )
        pending = [(prompt_of(rng.randrange(1, 150), rng.randrange(8)), rng.choice(list(SETTINGS))) for _ in range(12)]
        for setting in SETTINGS:
            foretell(kind, tuple(prompt for prompt, wish in pending if wish == setting), (setting,), DOUBLE)
        running = []
        while pending or not engine.idle:
            if pending and rng.random() < 0.3:
                prompt, setting = pending.pop()
                running.append((prompt, SETTINGS[setting], engine.submit(list(prompt), SETTINGS[setting])))
            if running and rng.random() < 0.02:
                engine.cancel(rng.choice(running)[2])
            engine.step()
            engine.scheduler.check_integrity()
        for prompt, params, request in running:
            sequence = request.answers[0].sequence
            expected = expected_texts(kind, [(prompt, params)], [sequence.output])[0]
            if sequence.finish_reason == "cancelled":
                assert sequence.output == expected[: sequence.output_length]
            else:
                assert sequence.output == expected, f"trial {trial}"
        assert engine.scheduler.blocks.available == engine.scheduler.blocks.num_blocks
